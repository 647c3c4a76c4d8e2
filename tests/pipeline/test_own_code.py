"""Teachers, losses and readers of someone's own: code that changed, and code that does not keep the contract."""

import importlib
import sys

import pytest

from teachclip.cli import distill, precompute

TEACHER = """
from teachclip.models.clip import load_clip
from teachclip.models.mean_pooling import MeanPooling

class Mean(MeanPooling):
    has_frame_relevance = False

    @classmethod
    def from_source(cls, checkpoint, factor=1.0, **options):
        teacher = cls(load_clip(checkpoint))
        teacher.factor = factor
        return teacher

    def score(self, texts, videos):
        return super().score(texts, videos) * self.factor
"""
LOSS = """
def distance(student, teacher):
    return (student - teacher).square()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module `own_code` and forget what was imported of it before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text):
        (tmp_path / "own_code.py").write_text(text)
        sys.modules.pop("own_code", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_code", None)


@pytest.fixture
def error_of(capsys):
    """Run a command that must fail and return its only error line."""

    def run(main, *arguments):
        assert main([str(argument) for argument in arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
        assert len(lines) == 1, lines
        return lines[0]

    return run


def teacher(project, **options):
    return [{"name": "own_code:Mean", "label": "own", "checkpoint": str(project.root / "clip"), "options": options}]


def test_a_module_of_the_current_folder_is_found_and_its_options_reach_it(project, own):
    own(TEACHER)
    assert "" not in sys.path
    recipe = project(teachers=teacher(project, factor=2.0, anything=1))
    assert distill.main([str(recipe)]) == 0


def test_relevance_of_code_that_has_changed_is_refused(project, own, error_of):
    own(TEACHER)
    recipe = project(teachers=teacher(project))
    assert precompute.main([str(recipe)]) == 0
    assert precompute.main([str(recipe)]) == 0
    own(TEACHER.replace("* self.factor", "* self.factor * 2"))
    assert "model.code" in error_of(precompute.main, recipe)


def test_a_run_of_a_loss_that_has_changed_is_another_run(project, own, error_of):
    own(LOSS)
    recipe = project(losses={"video_text": {"kind": "own_code:distance"}})
    assert distill.main([str(recipe)]) == 0
    own(LOSS.replace("square()", "abs()"))
    assert "content.losses.video_text.kind" in error_of(distill.main, recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("def score", "def scores"), None),  # inherits it
        (("(MeanPooling):", ":"), "has no method encode_texts, encode_videos"),
        (("* self.factor", ".T"), r"Mean.score returned (8, 1) for 1 texts and 8 videos; allowed: (texts, videos)"),
        (("has_frame_relevance = False", ""), "numbers of 0 or more that sum to 1"),
    ],
)
def test_a_teacher_that_does_not_keep_the_contract_is_refused_in_one_line(project, own, error_of, change, message):
    extra = "\n    def frame_relevance(self, texts, videos):\n        return texts['embeds'][:, :4] - 1\n"
    text = TEACHER + extra
    if "(MeanPooling):" in change:
        text = text.replace("teacher = cls(load_clip(checkpoint))", "import torch; teacher = torch.nn.Module()")
        text = text.replace("teacher.factor = factor", "teacher.__class__ = type('Own', (torch.nn.Module,), {})")
    own(text.replace(*change))
    recipe = project(teachers=teacher(project))
    if message is None:
        assert precompute.main([str(recipe)]) == 0
    else:
        assert message in error_of(precompute.main, recipe)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def distance(student, teacher):\n    return student.mean()",
            "returned shape (); allowed: a number",
        ),
        ("def distance(student, teacher):\n    return student[:, 0][:2]", "returned shape (2,)"),
        ("def distance(student, teacher):\n    return 1.0", "returned a float"),
        ("def distance(student, teacher, mask):\n    return student", "is called with (student, teacher): missing"),
    ],
)
def test_a_loss_that_does_not_keep_the_contract_is_refused_in_one_line(project, own, error_of, code, message):
    own(code)
    recipe = project(losses={"video_text": {"kind": "own_code:distance"}})
    assert message in error_of(distill.main, recipe)


def test_a_reader_that_returns_something_else_is_refused_in_one_line(project, own, error_of):
    own("def read(**paths):\n    return {'train': []}")
    recipe = project(data={"format": "own_code:read"})
    assert "the reader returned a dict; allowed: teachclip.data" in error_of(distill.main, recipe)


def test_a_teacher_that_is_not_known_is_named_before_a_run_is_compared(project, error_of):
    assert distill.main([str(project())]) == 0
    assert "did you mean xpool?" in error_of(distill.main, project(), "teachers.0.name=xpol")
