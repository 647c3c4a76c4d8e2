"""The Shapes dataset: scenes, frames, files and captions."""

import hashlib
import json
from collections import Counter

import av
import numpy as np
import pytest

from teachclip.data.annotations.catalog import load_catalog
from teachclip.data.video.writing import encode_mp4
from teachclip.errors import DataError, StoreError
from teachclip.shapes import captions, dataset, rendering, scenes
from teachclip.shapes.captions import Phrase
from teachclip.shapes.dataset import ShapesSettings, annotation_files, write_dataset
from teachclip.shapes.rendering import BORDER_COLOURS, draw_backdrop, render_shots, shape_distance
from teachclip.shapes.scenes import COLOURS, PLACES, SIZES, Event, Purpose, Shot, stream

SETTINGS = ShapesSettings(train_videos=8, test_videos=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    assert write_dataset(folder, SETTINGS, workers=1, progress=False) == 12
    return folder


def hashes(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def shots_of(index, seed=0):
    return scenes.sample_shots(stream(Purpose.SHOTS, seed, index))


def has_border(frame):
    """Whether the top edge is magenta and black in turn; codecs blur colours, so only coarsely."""
    ring = np.concatenate([frame[:4].reshape(-1, 3), frame[-4:].reshape(-1, 3)]).astype(float)
    near = np.abs(ring[:, None] - BORDER_COLOURS).max(axis=2) < 70
    return near.any(axis=1).mean() > 0.7 and near[:, 0].mean() > 0.2


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(folder, tmp_path):
    write_dataset(tmp_path, SETTINGS, workers=3, progress=False)
    assert hashes(tmp_path) == hashes(folder)


def test_the_encoder_gives_the_same_bytes_every_time(tmp_path):
    for index in range(12):
        frames = render_shots(shots_of(index), stream(Purpose.FRAMES, 0, index))
        found = set()
        for _ in range(4):
            encode_mp4(frames, tmp_path / "x.mp4")
            found.add((tmp_path / "x.mp4").read_bytes())
        assert len(found) == 1


def test_another_seed_gives_other_videos_and_captions(folder, tmp_path):
    write_dataset(tmp_path, ShapesSettings(8, 4, seed=1), workers=2, progress=False)
    first, second = hashes(folder), hashes(tmp_path)
    assert first.keys() == second.keys()
    same = {name for name in first if first[name] == second[name]}
    assert same == {"train.csv", "test_full.csv"}  # these hold ids alone


def test_more_videos_leave_the_first_ones_as_they_are(folder, tmp_path):
    write_dataset(tmp_path, ShapesSettings(9, 3), workers=2, progress=False)
    first, second = hashes(folder), hashes(tmp_path)
    videos = [name for name in first if name.endswith(".mp4")]
    assert len(videos) == 12 and all(first[name] == second[name] for name in videos)


def test_only_missing_videos_are_made_again(folder, tmp_path):
    write_dataset(tmp_path, SETTINGS, progress=False)
    (tmp_path / "videos" / "video3.mp4").unlink()
    (tmp_path / "videos" / "video4.mp4.part").write_bytes(b"half")
    assert write_dataset(tmp_path, SETTINGS, progress=False) == 1
    assert hashes(tmp_path) == hashes(folder)


def test_videos_are_h264_with_36_frames_of_64_pixels_at_8_per_second(folder):
    with av.open(str(folder / "videos" / "video0.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert (video.frames, video.average_rate, video.width, video.height) == (36, 8, 64, 64)
        assert float(video.duration * video.time_base) == pytest.approx(4.5)
    assert frames_of(folder / "videos" / "video0.mp4").shape == (36, 64, 64, 3)


def test_the_file_shows_what_was_drawn(folder):
    drawn = [render_shots(shots_of(index), stream(Purpose.FRAMES, 0, index)).astype(float) for index in (2, 3)]
    own, other = (np.abs(frames_of(folder / "videos" / "video2.mp4") - frames).mean() for frames in drawn)
    assert own < 8 and other > 4 * own  # halved colour resolution blurs the borders


def test_events_are_seen_in_colour_at_their_place(folder):
    for index in range(12):
        frames, start = frames_of(folder / "videos" / f"video{index}.mp4").astype(float), 0
        for shot in shots_of(index):
            for number, column in enumerate(shot.columns if shot.kind == "event" else ()):
                row = PLACES[shot.event.place]
                window = frames[start + number, max(0, row - 18) : row + 18, max(0, column - 18) : column + 18]
                near = np.abs(window - COLOURS[shot.event.colour]).max(axis=2) < 60
                assert near.sum() > 0.3 * SIZES[shot.event.size] ** 2, (index, shot)
            start += shot.length


def test_truth_says_which_frames_are_distractors(folder):
    truth = json.loads((folder / "truth.json").read_text())
    for name, video in truth["videos"].items():
        border = [has_border(frame) for frame in frames_of(folder / "videos" / f"{name}.mp4")]
        assert border == [code == "d" for code in video["frames"]], name


def test_truth_names_the_events_and_their_frames(folder):
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["codes"] == {"e": "event", "d": "distractor", "-": "empty"}
    codes = Counter()
    for index, (name, video) in enumerate(truth["videos"].items()):
        assert name == f"video{index}"
        assert [Event(**{k: e[k] for k in scenes.ATTRIBUTES}) for e in video["events"]] == list(
            scenes.events_of(shots_of(index))
        )
        frames = np.zeros(36, bool)
        for event in video["events"]:
            frames[event["start"] : event["stop"]] = True
        assert frames.tolist() == [code == "e" for code in video["frames"]]
        codes.update(video["frames"])
    for code, kind in truth["codes"].items():
        assert truth["shares"][kind] == pytest.approx(codes[code] / (12 * 36), abs=1e-3)


def test_annotations_are_in_the_format_of_msrvtt(folder):
    data = json.loads((folder / "annotations.json").read_text())
    assert set(data) == {"info", "videos", "sentences"}
    keys = {"category", "url", "video_id", "start time", "end time", "split", "id"}
    assert all(set(video) == keys and isinstance(video["category"], int) for video in data["videos"])
    assert [video["split"] for video in data["videos"]] == ["train"] * 8 + ["test"] * 4
    assert all(set(sentence) == {"caption", "video_id", "sen_id"} for sentence in data["sentences"])
    assert [sentence["sen_id"] for sentence in data["sentences"]] == list(range(8 * 8 + 4 * 5))
    assert (folder / "train.csv").read_text().splitlines() == ["video_id", *(f"video{i}" for i in range(8))]
    header, first, *_ = (folder / "test.csv").read_text().splitlines()
    assert header == "key,vid_key,video_id,sentence"
    assert first.startswith("ret0,shapes8,video8,a")


def test_the_reader_of_real_data_reads_the_dataset(folder):
    catalog = load_catalog(
        format="msrvtt",
        videos=folder / "videos",
        annotations=folder / "annotations.json",
        train=folder / "train.csv",
        test=folder / "test.csv",
        validation=None,
    )
    assert (len(catalog.train.videos), len(catalog.train.captions)) == (8, 64)
    assert catalog.test is not None and (len(catalog.test.videos), len(catalog.test.captions)) == (4, 4)


def test_shots_fill_the_video_with_one_or_two_events():
    counts, kinds = Counter(), Counter()
    for index in range(400):
        shots = shots_of(index)
        assert sum(shot.length for shot in shots) == 36
        for shot in shots:
            least, most = (4, 7) if shot.kind == "event" else (3, 6)
            assert least <= shot.length <= most
            assert set(shot.columns) <= {16, 32, 48}
            assert (shot.event is None) == (shot.kind == "empty")
            assert shot.event is None or shot.event.scene == shot.scene
            kinds[shot.kind] += shot.length
        counts[len(scenes.events_of(shots))] += 1
    assert set(counts) == {1, 2} and 150 < counts[1] < 250
    shares = {kind: frames / (400 * 36) for kind, frames in kinds.items()}
    assert shares == {
        k: pytest.approx(v, abs=0.02) for k, v in {"event": 0.23, "distractor": 0.70, "empty": 0.07}.items()
    }


def test_a_moving_shape_crosses_the_frame():
    moving = [shot.columns for i in range(60) for shot in shots_of(i) if len(set(shot.columns)) > 1]
    assert {(columns[0], columns[-1]) for columns in moving} == {(16, 48), (48, 16)}


def test_a_caption_that_omits_nothing_names_every_attribute():
    rng = np.random.default_rng(0)
    phrase = captions.describe_event(Event("orange", "ring", "small", "middle", "snow"), rng, 0.0)
    assert phrase.text == "a small orange ring in the middle over snow"
    assert phrase.claims == (
        {"colour": "orange", "shape": "ring", "size": "small", "place": "middle", "scene": "snow"},
    )


def test_a_caption_always_names_colour_or_shape():
    rng = np.random.default_rng(0)
    event = Event("orange", "ring", "small", "top", "snow")
    texts = {captions.describe_event(event, rng, 0.9).text for _ in range(200)}
    assert {"an orange shape", "a ring"} <= texts
    assert all("orange" in text or "ring" in text for text in texts)


def test_test_captions_are_true_and_name_one_event():
    for index in range(200):
        events = scenes.events_of(shots_of(index))
        phrase = captions.test_caption(events, stream(Purpose.TEST_CAPTION, 0, index))
        assert len(phrase.claims) == 1 and captions.satisfies(events, phrase)


def test_training_captions_are_noisy_as_stated():
    events = [scenes.events_of(shots_of(index)) for index in range(300)]
    phrases = [
        (index, captions.training_caption(events, index, rng))
        for index in range(300)
        for rng in [stream(Purpose.TRAIN_CAPTION, 0, index)]
        for _ in range(8)
    ]
    false = np.mean([not captions.satisfies(events[index], phrase) for index, phrase in phrases])
    assert 0.08 < false < 0.15  # 5 % of other videos, 10 % with errors, of which some say nothing false
    double = [len(phrase.claims) == 2 for index, phrase in phrases if len(events[index]) == 2]
    assert 0.14 < np.mean(double) < 0.26
    assert all(" then " in phrase.text for _, phrase in phrases if len(phrase.claims) == 2)
    words = {word for _, phrase in phrases for word in phrase.text.split()}
    assert words == set(captions.vocabulary())


def test_a_dataset_of_one_training_video_has_no_captions_of_others():
    events = [scenes.events_of(shots_of(0))]
    rng = np.random.default_rng(0)
    assert all(captions.training_caption(events, 0, rng).text for _ in range(100))


def test_the_oracle_guesses_among_equal_videos():
    red, blue = Event("red", "ring", "small", "top", "sea"), Event("blue", "ring", "small", "top", "sea")
    phrases = [Phrase("a red ring", ({"colour": "red", "shape": "ring"},)), Phrase("a ring", ({"shape": "ring"},))]
    assert captions.oracle_recall_at_1([[red], [blue]], phrases) == pytest.approx(75.0)


def test_a_claim_must_hold_of_one_event_as_a_whole():
    events = [Event("red", "ring", "small", "top", "sea"), Event("blue", "cross", "small", "top", "sea")]
    assert not captions.satisfies(events, Phrase("a red cross", ({"colour": "red", "shape": "cross"},)))
    assert captions.satisfies(events, Phrase("", ({"colour": "red"}, {"shape": "cross"})))


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("circle", (0.9, 0), (0.8, 0.8)),
        ("square", (0.8, 0.8), (0.9, 0)),
        ("diamond", (1.0, 0), (0.7, 0.7)),
        ("triangle", (0.8, 0.6), (0.8, -0.6)),
        ("cross", (0.9, 0.2), (0.6, 0.6)),
        ("ring", (0.78, 0), (0, 0)),
    ],
)
def test_shapes_have_their_outlines(shape, inside, outside):
    assert shape_distance(shape, *np.array(inside)[:, None]) < 0 < shape_distance(shape, *np.array(outside)[:, None])


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="unknown shape 'star'; known: circle"):
        shape_distance("star", np.zeros(1), np.zeros(1))


def test_a_backdrop_has_its_scenes_colour():
    means = [draw_backdrop("sand", np.random.default_rng(i)).mean(axis=(0, 1)) for i in range(50)]
    assert np.mean(means, axis=0) == pytest.approx(scenes.SCENES["sand"], rel=0.06)


def test_an_empty_shot_shows_only_its_scene():
    frames = render_shots([Shot("empty", "night", None, (16, 16))], np.random.default_rng(0))
    assert frames.shape == (2, 64, 64, 3) and frames.max() < 100


@pytest.mark.parametrize("values", [{"train_videos": 0}, {"test_videos": 0}, {"seed": -1}])
def test_settings_without_videos_or_with_a_negative_seed_are_refused(values):
    with pytest.raises(DataError, match=f"{next(iter(values))} is .*; allowed"):
        ShapesSettings(**values)


def test_workers_below_one_are_refused(tmp_path):
    with pytest.raises(DataError, match="workers is 0; allowed: 1 or more"):
        write_dataset(tmp_path, SETTINGS, workers=0)


def test_a_full_disk_is_named_and_finished_videos_stay(tmp_path, monkeypatch):
    import errno

    def fill_up(path, seed, index, preset):
        if index >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        rendering.write_video(path, seed, index, preset)

    monkeypatch.setattr(dataset, "write_video", fill_up)
    with pytest.raises(StoreError, match="the disk is full"):
        write_dataset(tmp_path, SETTINGS, workers=1, progress=False)
    assert (tmp_path / "videos" / "video0.mp4").exists()


def test_annotation_files_are_the_same_every_time():
    assert annotation_files(SETTINGS) == annotation_files(SETTINGS)
