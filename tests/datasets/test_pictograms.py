"""Pictograms: a font's pictures and names, what captions say of a scene, and the folder of the dataset."""

import csv
import importlib
import sys

import numpy as np
import pytest
from tiny_font import build_font

from teachclip import decode_frames
from teachclip.cli.make_data import main
from teachclip.data.video.sampling import FrameSampling
from teachclip.datasets.folder import read_manifest
from teachclip.datasets.pictograms import dataset as pictograms_dataset
from teachclip.datasets.pictograms import font as font_module
from teachclip.datasets.pictograms.dataset import PictogramsSettings, make_pictograms
from teachclip.datasets.pictograms.drawing import EVENT_FRAMES, SIZE, scene_frames
from teachclip.datasets.pictograms.font import Pictogram, read_pictograms
from teachclip.datasets.pictograms.scenes import (
    MOTIONS,
    Caption,
    Event,
    Scene,
    Vocabulary,
    draw_captions,
    draw_scene,
    is_true,
    oracle_recall_at_1,
)
from teachclip.errors import DataError
from teachclip.pretraining.clip import ClipSettings
from teachclip.recipe.loading import load_recipe

TINY_CLIP = ClipSettings(steps=2, batch_size=4, width=64, vision_layers=1, text_layers=1)
SMALL = PictogramsSettings(train_videos=6, val_videos=2, test_videos=4, clip_frames=6, clip=TINY_CLIP)
APPLE, FROG, BRICK = (Pictogram(letter, name) for letter, name in zip("afb", ("apple", "frog", "brick"), strict=True))
SCENE = Scene((Event(APPLE, "grow", None), Event(FROG, "left", BRICK), Event(BRICK, "spin", None)), 0)


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """Return a font of 60 coloured squares for the code points from U+1F400 (rat) on, built for this test."""
    path = tmp_path_factory.mktemp("font") / "squares.ttf"
    build_font(path, range(0x1F400, 0x1F400 + 60))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, font):
    folder = tmp_path_factory.mktemp("pictograms") / "dataset"
    assert make_pictograms(folder, SMALL, font=font, progress=False)
    return folder


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_font_gives_its_pictures_by_their_unicode_names(font):
    found = read_pictograms(font)
    assert len(found) == 60 and found[:3] == [
        Pictogram("\U0001f400", "rat"),
        Pictogram("\U0001f401", "mouse"),
        Pictogram("\U0001f402", "ox"),
    ]


def test_a_caption_is_true_of_the_scenes_in_which_its_clauses_happen_in_their_order():
    assert is_true(Caption("", (("apple", None),)), SCENE)
    assert is_true(Caption("", (("apple", "grow"), ("brick", "spin"))), SCENE)
    assert not is_true(Caption("", (("brick", "spin"), ("apple", "grow"))), SCENE)
    assert not is_true(Caption("", (("apple", "spin"),)), SCENE)
    assert not is_true(Caption("", (("brick", "left"),)), SCENE), "a bystander does nothing"


def test_captions_are_true_of_their_scene_and_differ():
    pictograms = [Pictogram(chr(97 + number), f"thing{number}") for number in range(26)]
    vocabulary = Vocabulary(pictograms, 0)
    texts = []
    for number in range(50):
        scene = draw_scene(vocabulary, (0, number))
        captions = draw_captions(scene, 4, (1, number))
        assert all(is_true(caption, scene) for caption in captions)
        assert len({caption.text for caption in captions}) == 4
        texts += [caption.text for caption in captions]
    assert any(", then " in text for text in texts) and any(" after " in text for text in texts)
    assert all(any(phrase in text for text in texts) for ways in MOTIONS.values() for phrase in ways)


def test_then_and_after_name_the_same_order():
    """What is said after "after" happens first."""
    for number in range(200):
        (caption,) = draw_captions(SCENE, 1, (number,))
        if " after " in caption.text:
            late, early = caption.text.split(" after ")
        elif ", then " in caption.text:
            early, late = caption.text.split(", then ")
        else:
            continue
        assert early.split()[1] == caption.clauses[0][0] and late.split()[1] == caption.clauses[1][0]


def test_an_oracle_guesses_among_the_scenes_that_a_caption_is_true_of():
    other = Scene((Event(APPLE, "left", None), Event(FROG, "left", None), Event(BRICK, "spin", None)), 1)
    shared, only = Caption("", (("apple", None),)), Caption("", (("apple", "grow"),))
    assert oracle_recall_at_1([[shared, only], []], [SCENE, other]) == pytest.approx(75)


def test_frequent_names_are_drawn_more_often():
    pictograms = [Pictogram(chr(97 + number), f"thing{number}") for number in range(26)]
    vocabulary = Vocabulary(pictograms, 3)
    rng = np.random.default_rng(0)
    drawn = [item for _ in range(400) for item in vocabulary.draw(rng, 3)]
    assert drawn.count(vocabulary.pictograms[0]) > 2 * drawn.count(vocabulary.pictograms[-1]) > 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_seen(font, motion):
    rat = Pictogram("\U0001f400", "rat")
    shown = scene_frames(Scene((Event(rat, motion, None),), 5), str(font))
    assert shown.shape == (EVENT_FRAMES, SIZE, SIZE, 3) and shown.dtype == np.uint8
    assert (shown[0] != shown[-2]).any()


def test_the_folder_holds_real_videos_captions_in_the_csv_format_and_a_clip(dataset):
    with open(dataset / "captions.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    videos = {row["video"]: row["split"] for row in table}
    assert sorted(videos) == sorted(path.name for path in (dataset / "videos").iterdir())
    assert [list(videos.values()).count(split) for split in ("train", "val", "test")] == [6, 2, 4]
    assert sum(row["split"] == "train" for row in table) == 24
    assert decode_frames(dataset / "videos" / "test0.mp4", FrameSampling("intervals", 4)).shape == (4, 3, SIZE, SIZE)
    facts = read_manifest(dataset, "pictograms")["results"]["splits"]["test"]
    assert facts["videos"] == 4 and facts["captions"] == 8 and 0 < facts["oracle_recall_at_1"] <= 100
    assert (dataset / "clip" / "model.safetensors").exists() and not list(dataset.rglob("*part*"))


def test_missing_pictogram_files_are_made_again_with_the_same_bytes(dataset, font, monkeypatch):
    before = content(dataset)
    (dataset / "videos" / "val1.mp4").unlink()
    monkeypatch.setattr(
        pictograms_dataset, "pretrain_clip", lambda *args, **options: pytest.fail("the CLIP is there")
    )
    assert make_pictograms(dataset, SMALL, font=font, progress=False)
    assert content(dataset) == before
    assert not make_pictograms(dataset, SMALL, font=font, progress=False)


@pytest.mark.slow
def test_two_processes_draw_the_same_bytes(dataset, font, tmp_path):
    assert make_pictograms(tmp_path / "w", SMALL, font=font, workers=2, progress=False)
    assert content(tmp_path / "w") == content(dataset)


def test_another_font_is_another_dataset(dataset, tmp_path):
    build_font(tmp_path / "other.ttf", range(0x1F400, 0x1F400 + 61))
    with pytest.raises(DataError, match="holds another pictograms dataset"):
        make_pictograms(dataset, SMALL, font=tmp_path / "other.ttf", progress=False)


def test_fonts_that_cannot_serve_are_refused(tmp_path, capsys):
    with pytest.raises(DataError, match=r"there is no font .*none.ttf. Debian and Ubuntu: apt-get install"):
        read_pictograms(tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(DataError, match="cannot be read as a font"):
        read_pictograms(tmp_path / "text.ttf")
    build_font(tmp_path / "few.ttf", range(0x1F400, 0x1F400 + 9))
    with pytest.raises(DataError, match=r"has 9 coloured pictograms .* expected at least 50"):
        read_pictograms(tmp_path / "few.ttf")
    assert main(["pictograms", "--font", str(tmp_path / "text.ttf"), "--out", str(tmp_path / "w")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'text.ttf'} cannot be read as a font")


def test_a_font_whose_pictograms_cannot_be_drawn_is_refused(tmp_path):
    build_font(tmp_path / "empty.ttf", range(0x1F400, 0x1F400 + 60), drawn=False)
    with pytest.raises(DataError, match=r"empty.ttf: 'rat' is drawn as nothing; gradients .* cannot be drawn"):
        read_pictograms(tmp_path / "empty.ttf")


def test_without_fonttools_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fontTools.ttLib", None)
    with pytest.raises(DataError, match=r"pictograms need fontTools .*pip install 'teachclip\[datasets\]'"):
        importlib.reload(font_module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_videos": 0}, "val_videos is 0; allowed: 1 or more"),
        ({"clip_frames": 99}, "clip_frames is 99; allowed: 128 or more, as many as the tiny CLIP has in a batch"),
    ],
)
def test_pictograms_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        PictogramsSettings(**change)


def test_the_pictograms_recipe_loads():
    assert load_recipe("pictograms").text.max_tokens <= pictograms_dataset.MAX_TOKENS
