"""Pre-training of a tiny CLIP on the frames and captions of a recipe."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from teachclip.cli.pretrain_clip import main
from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.errors import DataError
from teachclip.models.clip import load_clip
from teachclip.pretraining import clip as pretraining
from teachclip.pretraining import recipe_frames
from teachclip.pretraining.clip import ClipSettings, SingleFrames, pretrain_clip
from teachclip.pretraining.tokenizer import build_tokenizer, words_of

SMALL = ["--steps", "2", "--batch-size", "4", "--width", "64", "--vision-layers", "1", "--text-layers", "1"]
SETTINGS = ClipSettings(steps=2, batch_size=2, width=64, vision_layers=1, text_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["red", "blue", "ball"], 6)


def test_a_recipe_gives_a_clip_that_a_student_starts_from(project, tmp_path, capsys):
    from teachclip import distill

    recipe, out = project(), tmp_path / "clip"
    assert main([str(recipe), "frames.size=32", "--out", str(out), *SMALL]) == 0
    assert "text-to-frame R@1" in capsys.readouterr().err
    clip = load_clip(out)
    assert clip.config.vision_config.image_size == 32
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer("a red circle")["input_ids"]) == 5  # every word of the captions is a token
    results = distill(
        recipe, [f"student.backbone={out}", "teachers=[]", "train.steps=1", f"stores={tmp_path / 'new'}"]
    )
    assert results["test"]["videos"] == 3


def test_a_folder_with_files_is_left_alone(project, tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "thesis.txt").write_text("mine")
    assert main([str(project()), "--out", str(tmp_path / "clip"), *SMALL]) == 2
    assert "is not empty; give another --out" in capsys.readouterr().err


def test_words_are_the_most_frequent_of_any_language_and_the_rest_is_spelled():
    words = words_of(["Une élève rit", "une fille rit et une élève chante", "R2-D2"], most=3)
    assert words == ["rit", "une", "élève"]
    tokenizer = build_tokenizer(words, 16)
    assert [len(tokenizer(word)["input_ids"]) - 2 for word in words] == [1, 1, 1]
    assert len(tokenizer("fille")["input_ids"]) - 2 > 1


def test_captions_that_are_too_long_are_cut_and_keep_their_end(tokenizer):
    frames = SingleFrames(
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["red", "red blue ball red blue ball"], tokenizer
    )
    assert frames.input_ids.shape == (2, 6)
    assert (frames.input_ids[:, -1] == tokenizer.eos_token_id).all()
    assert "truncation" in tokenizer.backend_tokenizer.to_str() and tokenizer.backend_tokenizer.truncation is None


def test_an_epoch_shows_one_frame_of_each_video(tokenizer):
    groups = [0, 0, 0, 1, 2, 2]
    frames = SingleFrames(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), ["red"] * 6, tokenizer, groups)
    generator = torch.Generator().manual_seed(0)
    epochs = [frames.epoch(generator).tolist() for _ in range(20)]
    assert all(sorted(groups[row] for row in epoch) == [0, 1, 2] for epoch in epochs)
    assert {row for epoch in epochs for row in epoch} == set(range(6))


@pytest.mark.parametrize(
    ("size", "change", "message"),
    [
        (16, {"batch_size": 3}, "batch_size is 3, but there are 2 frames"),
        (24, {}, "patch_size is 16; allowed: what divides the frames' size, 24"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tokenizer, tmp_path, size, change, message):
    data = SingleFrames(torch.zeros(2, 3, size, size, dtype=torch.uint8), ["red", "blue"], tokenizer)
    settings = ClipSettings(**{**SETTINGS.__dict__, **change})
    with pytest.raises(DataError, match=message):
        pretrain_clip(tmp_path, data, None, tokenizer, settings, progress=False)


def test_frames_without_a_caption_each_are_refused(tokenizer):
    with pytest.raises(DataError, match="2 frames have 1 captions"):
        SingleFrames(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["red"], tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 0}, "patch_size is 0; allowed: 1 or more"),
        ({"lr": -1.0}, "lr is -1.0; allowed: more than 0"),
        ({"lr": float("nan")}, "lr is nan; allowed: more than 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        ClipSettings(**change)


def test_a_folder_appears_only_when_it_is_complete(project, tmp_path, monkeypatch):
    recipe, out = project(), tmp_path / "clip"
    monkeypatch.setattr(pretraining, "image_settings", lambda size: 1 / 0)  # after the weights are written
    with pytest.raises(ZeroDivisionError):
        main([str(recipe), "frames.size=32", "--out", str(out), *SMALL])
    assert not out.exists()
    monkeypatch.undo()
    assert main([str(recipe), "frames.size=32", "--out", str(out), *SMALL]) == 0
    assert [path.name for path in tmp_path.glob("clip*")] == ["clip"]


class FewAtOnce:
    """Frames of 5 videos with 1 to 3 frames each, which may not be read all at once."""

    pixels = (
        torch.arange(5 * 3, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).reshape(5, 3, 3, 16, 16)
    )
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]]).bool()

    def rows_of(self, ids):
        return np.array([int(name) for name in ids])

    def read(self, rows):
        assert len(rows) <= 2
        return self.pixels[rows], self.mask[rows]


@pytest.mark.parametrize(
    ("middle", "expected"), [(False, [0, 1, 2, 3, 6, 7, 9, 10, 11, 12, 13]), (True, [1, 3, 7, 10, 13])]
)
def test_frames_are_read_a_few_videos_at_a_time(tokenizer, monkeypatch, middle, expected):
    monkeypatch.setattr(recipe_frames, "VIDEOS_AT_ONCE", 2)
    videos = [Video(str(number), Path(f"{number}.mp4")) for number in range(5)]
    captions = [Caption(f"{n}{text}", str(n), text) for n in range(5) for text in ("red", "blue ball")]
    split = Split("train", tuple(videos), tuple(captions))
    found = recipe_frames._single_frames(FewAtOnce(), split, tokenizer, middle=middle)
    assert found.pixels[:, 0, 0, 0].tolist() == expected
    place = [value % 3 for value in expected]
    texts = tokenizer(["red" if at % 2 == 0 else "blue ball" for at in place], padding=True)["input_ids"]
    assert found.input_ids.tolist() == texts


def test_a_width_without_whole_heads_is_refused():
    with pytest.raises(DataError, match="width is 100; allowed: multiples of 64"):
        ClipSettings(width=100)
