"""Pre-training of a tiny CLIP on the frames and captions of a recipe."""

import pytest
import torch
from transformers import AutoTokenizer

from teachclip.cli.pretrain_clip import main
from teachclip.errors import DataError
from teachclip.models.clip import load_clip
from teachclip.pretraining.clip import ClipSettings, Pictures, pretrain_clip
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
    pictures = Pictures(
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["red", "red blue ball red blue ball"], tokenizer
    )
    assert pictures.input_ids.shape == (2, 6)
    assert (pictures.input_ids[:, -1] == tokenizer.eos_token_id).all()
    assert "truncation" in tokenizer.backend_tokenizer.to_str() and tokenizer.backend_tokenizer.truncation is None


def test_an_epoch_shows_one_frame_of_each_video(tokenizer):
    groups = [0, 0, 0, 1, 2, 2]
    pictures = Pictures(torch.zeros(6, 3, 16, 16, dtype=torch.uint8), ["red"] * 6, tokenizer, groups)
    generator = torch.Generator().manual_seed(0)
    epochs = [pictures.epoch(generator).tolist() for _ in range(20)]
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
    data = Pictures(torch.zeros(2, 3, size, size, dtype=torch.uint8), ["red", "blue"], tokenizer)
    settings = ClipSettings(**{**SETTINGS.__dict__, **change})
    with pytest.raises(DataError, match=message):
        pretrain_clip(tmp_path, data, None, tokenizer, settings, progress=False)


def test_frames_without_a_caption_each_are_refused(tokenizer):
    with pytest.raises(DataError, match="2 frames have 1 captions"):
        Pictures(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["red"], tokenizer)


def test_a_width_without_whole_heads_is_refused():
    with pytest.raises(DataError, match="width is 100; allowed: multiples of 64"):
        ClipSettings(width=100)
