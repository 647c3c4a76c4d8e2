"""What a vision-language model writes about frames, as candidates that a teacher filters."""

import pytest
from PIL import Image
from sentence_models import save_llava

from teachclip.data.annotations.uncaptioned import read_texts
from teachclip.errors import CheckpointError
from teachclip.texts import suggest
from teachclip.texts.captioner import open_captioner, text_of, written_texts
from teachclip.texts.suggest import suggest_texts


@pytest.fixture
def recipe(project, monkeypatch):
    """A recipe without captions on the made project; the bank holds one text."""
    monkeypatch.setattr(suggest, "bank", lambda: ["a square"])
    (project.folder / "texts.txt").write_text("red\na blue circle\n")
    texts = str(project.folder / "texts.txt")
    return project(
        data={"annotations": None, "format": None, "texts": texts, "validation": {"videos": 3}},
        teachers=[{"name": "dual_encoder", "checkpoint": str(project.root / "clip")}],
        losses={"frame_text": {"targets": "video", "surest": 2}},
    )


def test_a_real_model_writes_the_same_about_the_same_picture(tmp_path):
    write = open_captioner(str(save_llava(tmp_path / "llava")), "cpu")
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    assert write(red) == write(red) and isinstance(write(blue), str) and write(red)
    with pytest.raises(CheckpointError):
        open_captioner(str(tmp_path / "nothing"), "cpu")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A red ring is at the top. It moves.", "A red ring is at the top"),
        ("\n  two   boats\non the sea", "two boats"),
        ("\ufffd\x00 ...", ""),
        ("1 2 3", ""),
        (" ".join(["word"] * 50), " ".join(["word"] * 30)),
    ],
)
def test_an_answer_becomes_one_sentence_or_nothing(answer, text):
    assert text_of(answer) == text


def test_the_teacher_decides_which_written_texts_are_kept_and_none_is_written_twice(recipe, monkeypatch):
    pictures = []

    def opened(source, device):
        def write(picture):
            pictures.append(picture)
            return "a red circle over sea." if len(pictures) % 2 else "..."

        return write

    def written(work, source):
        return written_texts(work, source, opened)

    monkeypatch.setattr(suggest, "written_texts", written)
    found = read_texts(suggest_texts(recipe, per_video=4, most=20, captioner="some/model"))
    assert "a red circle over sea" in found and set(found) <= {
        "a red circle over sea",
        "red",
        "a blue circle",
        "a square",
    }
    count = len(pictures)
    assert count == 2 * 11 and {picture.size for picture in pictures} == {(32, 32)}
    suggest_texts(recipe, per_video=4, most=20, captioner="some/model")
    assert len(pictures) == count
    (kept,) = (recipe.parent / "stores").glob("captions-*.jsonl")
    whole = kept.read_bytes()
    for _ in range(2):  # the last line is cut short: its video alone is written about again, and once
        kept.write_bytes(whole[:-9])
        suggest_texts(recipe, per_video=4, most=20, captioner="some/model")
        suggest_texts(recipe, per_video=4, most=20, captioner="some/model")
        count += 2
        assert len(pictures) == count
    suggest_texts(recipe, per_video=4, most=20, captioner="another/model")
    assert len(pictures) == count + 2 * 11


def test_a_model_that_writes_nothing_is_named(recipe, monkeypatch):
    silent = lambda work, source: written_texts(work, source, lambda *_: lambda picture: "...")  # noqa: E731
    monkeypatch.setattr(suggest, "written_texts", silent)
    with pytest.raises(CheckpointError, match="some/model: it wrote nothing about 11 videos"):
        suggest_texts(recipe, captioner="some/model")
