"""Presets of the Shapes dataset: each does what it says, and `default` gives the recorded files."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.video.probe import read_facts
from teachclip.data.video.writing import ENCODER
from teachclip.errors import DataError
from teachclip.shapes import captions
from teachclip.shapes.dataset import ShapesSettings, annotation_files, write_dataset
from teachclip.shapes.presets import DEFAULT, PRESETS, Preset, find_preset, preset_settings
from teachclip.shapes.rendering import BORDER_COLOURS, render_shots, write_video
from teachclip.shapes.scenes import Event, Purpose, Shot, events_of, sample_video, stream

NAMES = tuple(PRESETS)
RECORDED = {
    "annotations.json": "aa1566cd742fd475c8f01a8a366722c4a7452d02cf42105b974f52f23438bdaf",
    "train.csv": "bc546278633cc65f8afbae838ce2b67de432863b746da6320fd8e0e97bedd1a7",
    "test.csv": "e117d1bf0a9d7a7f52747817f4880cd684c7ca5e291e4afc5e87f2f9bc2c6463",
    "test_full.csv": "87ac36d66b07e8074ed3ae367e2b9aa2e91da17640262c6f97e3b6f7868f4d89",
    "truth.json": "f0b751f6330f52405c9e165ffdd79aa9b918b11ba9c2fdb6335c4b872988ef1a",
}
"""sha256 of the files of 8 + 4 videos, written before there were presets."""


@cache
def dataset(name, seed=0):
    """A dataset of 200 + 100 videos: its settings, the ground truth, and the captions of every video."""
    settings = ShapesSettings(200, 100, seed, name)
    files = {file: content.decode() for file, content in annotation_files(settings).items()}
    texts = {}
    for sentence in json.loads(files["annotations.json"])["sentences"]:
        texts.setdefault(sentence["video_id"], []).append(sentence["caption"])
    return settings, json.loads(files["truth.json"]), texts


def videos_of(name, count=200):
    return [sample_video(0, index, PRESETS[name]) for index in range(count)]


def false_share(name):
    """How many training captions say something false about their video."""
    events = [events_of(shots) for shots in videos_of(name)]
    false = []
    for index in range(len(events)):
        rng = stream(Purpose.TRAIN_CAPTION, 0, index)
        for _ in range(8):
            phrase = captions.training_caption(events, index, rng, PRESETS[name])
            false.append(not captions.satisfies(events[index], phrase))
    return float(np.mean(false))


def test_default_gives_the_recorded_annotations():
    found = {
        name: hashlib.sha256(content).hexdigest() for name, content in annotation_files(ShapesSettings(8, 4)).items()
    }
    assert found == RECORDED


def test_default_gives_the_recorded_frames_and_encoding():
    for index, total in ((0, 35495635), (7, 37642401)):
        pixels = render_shots(sample_video(0, index), stream(Purpose.FRAMES, 0, index))
        assert pixels.sum(dtype=np.int64) == pytest.approx(total, abs=50)  # rounding may differ between processors
    assert ENCODER["g"] == "36" and len(ENCODER) == 7


def test_default_is_not_named_in_the_settings():
    assert ShapesSettings().record() == {"train_videos": 700, "test_videos": 300, "seed": 0}
    assert preset_settings("default") == {}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "default"])
def test_other_presets_record_their_name_and_what_differs(name):
    settings = ShapesSettings(preset=name).record()
    recorded = settings["preset_numbers"]
    assert settings["preset"] == name
    assert replace(DEFAULT, **recorded) == replace(
        PRESETS[name],
        **{key: getattr(DEFAULT, key) for key in ("summary", "overrides", "train_videos", "test_videos")},
    )
    assert recorded or name == "many"  # there, the number of videos says it all


def test_a_number_of_a_preset_that_changes_is_another_dataset(monkeypatch):
    before = ShapesSettings(preset="noisy").record()
    changed = {**PRESETS, "noisy": replace(PRESETS["noisy"], wrong_share=0.21)}
    monkeypatch.setattr("teachclip.shapes.presets.PRESETS", changed)
    assert ShapesSettings(preset="noisy").record() != before


@pytest.mark.parametrize(
    ("name", "meant"), [("nosy", "; did you mean noisy?"), ("one-caption", "one_caption"), ("x", "")]
)
def test_an_unknown_preset_is_refused_with_the_nearest(name, meant):
    with pytest.raises(DataError, match=f"unknown preset '{name}'; known: default, plain, .*{meant}") as caught:
        ShapesSettings(preset=name)
    assert "\n" not in str(caught.value)
    assert find_preset("plain") is PRESETS["plain"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_gives_the_same_dataset_every_time_and_another_for_another_seed(name):
    small = ShapesSettings(6, 4, 3, name)
    assert annotation_files(small) == annotation_files(small)
    assert annotation_files(small)["truth.json"] != annotation_files(ShapesSettings(6, 4, 4, name))["truth.json"]


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_holds_for_every_frame_of_every_preset(name):
    settings, truth, _ = dataset(name)
    counts = Counter()
    for index, video in enumerate(truth["videos"].values()):
        expected = np.zeros(PRESETS[name].frames, bool)
        for event in video["events"]:
            expected[event["start"] : event["stop"]] = True
        assert expected.tolist() == [code == "e" for code in video["frames"]]
        assert len(video["events"]) == len(events_of(sample_video(settings.seed, index, PRESETS[name])))
        counts.update(video["frames"])
    for code, kind in truth["codes"].items():
        assert truth["shares"][kind] == pytest.approx(counts[code] / counts.total(), abs=1e-3)


SHARES = {"default": (0.23, 0.70, 0.07), "plain": (0.23, 0.35, 0.42), "order": (0.305, 0.625, 0.07)}


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_frame_kinds_are_as_stated(name):
    shares = dataset(name)[1]["shares"]
    expected = SHARES.get(name, SHARES["default"])
    assert list(shares.values()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_finds_most_videos(name):
    found = dataset(name)[1]["oracle_recall_at_1"]
    assert 97 < found <= 100 if PRESETS[name].test_then else 60 < found < 99


@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_clip_knows_all_words_and_captions_are_short_enough_for_it(name):
    texts = [text.split() for texts in dataset(name)[2].values() for text in texts]
    assert {word for text in texts for word in text} <= set(captions.vocabulary())
    assert max(map(len, texts)) <= 26  # 28 with start and end of text


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_captions_are_as_stated(name):
    settings, _, texts = dataset(name)
    counts = [len(texts[f"video{index}"]) for index in range(settings.videos)]
    assert counts == [PRESETS[name].train_captions] * 200 + [5] * 100


def test_one_caption_gives_one_per_training_video():
    assert len(dataset("one_caption")[2]["video0"]) == 1


def test_the_noise_of_captions_is_as_stated():
    # of captions with errors, some say nothing false: errors may hit what the caption leaves out
    usual, noisy = false_share("default"), false_share("noisy")
    assert 0.08 < usual < 0.16 and 0.33 < noisy < 0.44
    assert false_share("one_caption") == usual


def test_plain_distractors_have_no_border_and_are_drawn_like_events():
    shots = next(shots for shots in videos_of("plain") if any(shot.kind == "distractor" for shot in shots))
    frames = render_shots(shots, np.random.default_rng(0), border=PRESETS["plain"].border)
    as_events = [Shot("event" if shot.event else "empty", *list(vars(shot).values())[1:]) for shot in shots]
    assert np.array_equal(frames, render_shots(as_events, np.random.default_rng(0)))
    assert not np.array_equal(frames, render_shots(shots, np.random.default_rng(0)))


def test_the_files_of_plain_show_no_border(tmp_path):
    import av

    write_dataset(tmp_path, ShapesSettings(3, 2, preset="plain"), workers=1, progress=False)
    assert "d" in json.loads((tmp_path / "truth.json").read_text())["videos"]["video0"]["frames"]
    with av.open(str(tmp_path / "videos" / "video0.mp4")) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    magenta = np.abs(frames[:, :4].astype(float) - BORDER_COLOURS[0]).max(axis=-1) < 70
    assert magenta.mean() < 0.02


def test_long_videos_are_twice_as_long_with_two_to_four_events(tmp_path):
    counts = Counter(len(events_of(shots)) for shots in videos_of("long", 300))
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 70
    assert all(sum(shot.length for shot in shots) == 72 for shots in videos_of("long"))
    assert PRESETS["long"].overrides == ("frames.count=24",)
    write_dataset(tmp_path, ShapesSettings(2, 1, preset="long"), workers=1, progress=False)
    catalog = load_catalog(
        format="msrvtt",
        videos=tmp_path / "videos",
        annotations=tmp_path / "annotations.json",
        train=tmp_path / "train.csv",
        test=tmp_path / "test.csv",
        validation=None,
    )
    assert len(catalog.train.videos) == 2
    videos = json.loads((tmp_path / "annotations.json").read_text())["videos"]
    assert {video["end time"] for video in videos} == {9.0}


def test_captions_of_videos_with_many_events_name_two_in_their_order():
    events = [events_of(shots) for shots in videos_of("long")]
    exact = replace(PRESETS["long"], wrong_share=0, corrupted_share=0, then_share=1)
    for index, own in enumerate(events):
        phrase = captions.training_caption(events, index, np.random.default_rng(index), exact)
        assert len(phrase.claims) == 2 and captions.satisfies(own, phrase)


def test_many_has_four_times_the_videos_to_train_on():
    assert PRESETS["many"].train_videos - 300 == 4 * (DEFAULT.train_videos - 300)
    assert ShapesSettings(40, 20, preset="many").videos == 60


def test_claims_must_hold_in_their_order():
    red, blue = Event("red", "ring", "small", "top", "sea"), Event("blue", "cross", "small", "top", "sea")
    phrase = captions.Phrase("a red ring then a cross", ({"colour": "red", "shape": "ring"}, {"shape": "cross"}))
    assert captions.satisfies([red, blue], phrase)
    assert not captions.satisfies([blue, red], phrase)
    assert not captions.satisfies([red], captions.Phrase("", ({"colour": "red"}, {"shape": "ring"})))


def test_a_preset_of_ones_own_needs_only_what_differs():
    own = Preset("few frames", frames=20, events=(1, 1), distractor_share=0)
    shots = sample_video(0, 0, own)
    assert sum(shot.length for shot in shots) == 20 and {shot.kind for shot in shots} == {"event", "empty"}


def test_a_twin_has_the_same_shots_with_its_two_events_exchanged():
    for first, second in zip(videos_of("order")[::2], videos_of("order")[1::2], strict=True):
        assert first != second and Counter(first) == Counter(second)
        assert events_of(first) == events_of(second)[::-1] and len(events_of(first)) == 2
        moved = [place for place, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]
        assert len(moved) == 2 and {first[place].kind for place in moved} == {"event"}


def test_every_pair_of_twins_is_another():
    first = videos_of("order")[::2]
    assert len({events_of(shots) for shots in first}) == len(first)


def test_captions_of_order_name_both_events_and_only_their_order_distinguishes_twins():
    preset, distinguished = PRESETS["order"], []
    for index, shots in enumerate(videos_of("order")):
        own, twin = events_of(shots), events_of(shots)[::-1]
        phrase = captions.test_caption(own, stream(Purpose.TEST_CAPTION, 0, index), preset)
        assert len(phrase.claims) == 2 and " then " in phrase.text and captions.satisfies(own, phrase)
        assert captions.satisfies(twin, captions.Phrase(phrase.text, phrase.claims[::-1]))
        distinguished.append(not captions.satisfies(twin, phrase))
    assert np.mean(distinguished) > 0.97
    assert all(" then " in text for texts in dataset("order")[2].values() for text in texts)


def test_one_who_ignores_order_finds_half_of_the_videos():
    events = [events_of(shots) for shots in videos_of("order")]
    phrases = [captions.test_caption(own, np.random.default_rng(i), PRESETS["order"]) for i, own in enumerate(events)]
    either = [[*own, *own] for own in events]  # both orders are true of it
    assert captions.oracle_recall_at_1(either, phrases) == pytest.approx(50, abs=2)
    assert captions.oracle_recall_at_1(events, phrases) > 97


@pytest.mark.parametrize("numbers", [(7, 4), (8, 3)])
def test_twins_come_in_even_numbers(numbers):
    with pytest.raises(DataError, match=r"_videos is [73]; allowed: even numbers, as order makes twins"):
        ShapesSettings(*numbers, preset="order")


def test_rare_keyframes_stand_where_no_shot_need_begin(tmp_path):
    found = {}
    for name in ("default", "rare_keyframes"):
        path = tmp_path / f"{name}.mp4"
        write_video(path, 0, 0, PRESETS[name])
        found[name] = read_facts(path)[1].keys
    assert list(found["rare_keyframes"]) == [0, 12, 24] and len(found["default"]) > 3
    assert sample_video(0, 0, PRESETS["rare_keyframes"]) == sample_video(0, 0)  # the same pictures
