"""Relevance that would be too large is not stored: teachers score their stored tokens in every step."""

import json

import pytest
from processes import launch
from runs import assert_same_losses, logged_losses

from teachclip.cli import distill, precompute
from teachclip.pipeline.build import run_settings
from teachclip.recipe.loading import load_recipe


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def recipe_of(project, name, encoders, **teaching):
    """Two teachers, one of which asks for other frame targets, and two views of each video."""
    xpool = str(project.root / "teacher.pth")
    return project(
        f"{name}.yaml",
        teachers=[
            {"name": "xpool", "checkpoint": xpool, "weight": 0.5, "frame_temperature": 0.5},
            {"name": "xpool", "label": "second", "checkpoint": xpool, "options": {"mask_padding": False}},
        ],
        teaching={"precision": "float32", **teaching},
        frames={"temporal_augmentation": 2},
        train={"encoders": encoders},
        output=str(project.folder / name),
    )


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_a_run_on_stored_tokens_is_a_run_on_stored_relevance(project, capsys, encoders):
    assert run(distill.main, recipe_of(project, "stored", encoders)) == 0
    tokens = recipe_of(project, "tokens", encoders, max_gb=0)
    if encoders == "finetuned":  # each process reads the tokens of its own pairs
        done = launch(2, "distill", tokens)
        assert done.returncode == 0, done.stderr
        log = done.stderr
    else:
        assert run(distill.main, tokens) == 0
        log = capsys.readouterr().err
    assert "second: its relevance would exceed teaching.max_gb" in log
    stored, scored = (logged_losses(project.folder / name) for name in ("stored", "tokens"))
    assert_same_losses(stored, scored, steps=4)


def test_precompute_stores_and_verifies_tokens_alone(project, capsys):
    recipe = recipe_of(project, "tokens", "frozen", max_gb=0)
    assert run(precompute.main, recipe, "--verify") == 0
    shown = capsys.readouterr().err
    assert "second: " in shown and "(tokens of 16 captions and 16 videos)" in shown and "verified" in shown
    stores = project.folder / "stores"
    assert not [path for path in stores.iterdir() if path.name.startswith("relevance")]
    (damaged,) = (stores / "tokens-second-views2" / "videos").glob("frames-00000.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert run(precompute.main, recipe, "--verify") == 2
    assert "its checksum differs" in capsys.readouterr().err


def test_a_run_goes_on_with_another_limit_unless_a_teacher_then_scores_tokens(project, capsys):
    assert run(distill.main, project()) == 0
    assert run(distill.main, project(teaching={"max_gb": 5})) == 0
    assert "max_gb" not in json.dumps(run_settings(load_recipe(project())))
    capsys.readouterr()
    assert run(distill.main, project(teaching={"max_gb": 0})) == 2
    assert "content.teacher xpool scores" in capsys.readouterr().err


def test_a_recipe_that_keeps_the_best_alone_needs_stored_relevance_of_one_view(project, capsys):
    teachers = [{"name": "xpool", "checkpoint": str(project.root / "teacher.pth"), "keep": 2}]
    for values, message in (
        ({"teaching": {"source": "online"}}, "teachers.keep needs teaching.source=stored"),
        ({"frames": {"temporal_augmentation": 2}}, "teachers.keep needs frames.temporal_augmentation=1"),
        ({"teaching": {"max_gb": 0}}, "keep needs it, to find the best videos of a caption"),
    ):
        assert run(distill.main, project(teachers=teachers, **values)) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("main", [distill.main, precompute.main])
def test_what_needs_the_relevance_of_all_pairs_says_so_before_it_decodes(project, capsys, main):
    losses, project.fill = {"frame_text": {"targets": "video"}}, False
    assert run(main, project(losses=losses, teaching={"max_gb": 0})) == 2
    assert not (project.folder / "stores" / "frames" / "manifest.json").exists()
    message = capsys.readouterr().err.splitlines()[-1]
    assert "the relevance of xpool takes 0.0 GB (teaching.max_gb: 0)" in message
    assert "losses.frame_text.targets=video needs it" in message
