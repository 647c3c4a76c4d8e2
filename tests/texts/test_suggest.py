"""Which texts of a bank occur in the videos, and how a person sees what is taught."""

import numpy as np
import pytest
from html_pages import checked_page

from teachclip import distill
from teachclip.cli import texts as texts_command
from teachclip.data.annotations.uncaptioned import read_texts
from teachclip.texts import suggest
from teachclip.texts.bank import bank
from teachclip.texts.suggest import suggest_texts, top_texts

WORDS = ["a red circle", "a red square", "a blue circle", "a circle", "a blue square"]


def test_a_text_that_scores_high_everywhere_is_close_to_no_video():
    scores = np.array([[9.0, 9, 9], [5, 0, 0], [0, 4, 0], [0, 0, 3]])
    texts = ["people", "a dog", "a ship", "snow"]
    assert top_texts(scores, texts, most=3, per_video=1) == [1, 2, 3]


def test_the_texts_of_a_video_differ_and_videos_take_turns():
    scores = np.array([[9.0, 0], [8.0, 0], [7.0, 0], [0, 2.0], [0, 1.0]])
    texts = ["a man on a horse", "a man on the horse", "a bird", "the sea", "a ship"]
    assert top_texts(scores, texts, most=10, per_video=2) == [0, 3, 2, 4]
    assert top_texts(scores, texts, most=3, per_video=2) == [0, 3, 2]


@pytest.fixture
def recipe(project, monkeypatch):
    """A recipe without captions on the made project; the bank holds words that its tiny tokenizer knows."""
    monkeypatch.setattr(suggest, "bank", lambda: WORDS)
    texts = project.folder / "texts.txt"
    texts.write_text("red\na red circle\n", encoding="utf-8")
    path = project(
        data={"annotations": None, "format": None, "texts": str(texts), "validation": {"videos": 3}},
        teachers=[{"name": "dual_encoder", "checkpoint": str(project.root / "clip")}],
        losses={"frame_text": {"targets": "video", "surest": 2}},
    )
    return path


def test_what_is_suggested_teaches_and_a_page_shows_it(recipe, project, capsys):
    path = suggest_texts(recipe, per_video=2, most=4)
    assert path == project.folder / "suggested_texts.txt"
    found = read_texts(path)
    assert 2 <= len(found) <= 4 and set(found) <= {"red", *WORDS}
    distill(recipe, [f"data.texts={path}"])
    tree = checked_page((project.folder / "run" / "taught.html").read_text(encoding="utf-8"), images=11)
    captions = ["".join(element.itertext()) for element in tree.iter("figcaption")]
    assert len(captions) == 11 and all(caption.count("%)") == 2 for caption in captions)
    assert all(any(text in caption for text in found) for caption in captions)


def test_commands_say_what_they_did_and_what_they_take(recipe, capsys, tmp_path):
    out = tmp_path / "new" / "chosen.txt"
    assert texts_command.main(["suggest", str(recipe), "--out", str(out), "--most", "3"]) == 0
    told = capsys.readouterr().err
    assert "texts:  3 of 6 are in" in told and f"next:   teachclip distill {recipe} data.texts=" in told
    assert len(read_texts(out)) == 3
    assert texts_command.main(["bank"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(bank())
    assert texts_command.main(["sugest", str(recipe)]) == 2
    assert "did you mean suggest" in capsys.readouterr().err
    assert texts_command.main(["suggest", str(recipe), "teachers=[]"]) == 2
    assert "needs a teacher" in capsys.readouterr().err
