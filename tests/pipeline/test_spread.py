"""Frame relevance that a teacher spreads over all frames is sharpened, if a recipe says so."""

import numpy as np
import pytest
from processes import launch
from runs import assert_same_losses, logged_losses

from teachclip.cli import distill
from teachclip.pipeline.build import run_settings
from teachclip.recipe.loading import load_recipe

OPTIONS = ["train.encoders=frozen", "train.steps=2"]


def losses_of(project, capsys, name, *options):
    folder = project.folder / name
    assert distill.main([str(project()), *OPTIONS, *options, f"output={folder}"]) == 0
    return logged_losses(folder, ("loss", "frame_text")), capsys.readouterr().err


@pytest.mark.parametrize("targets", ["pair", "video"])
def test_only_relevance_that_is_flatter_is_sharpened(project, capsys, targets):
    option = f"losses.frame_text.targets={targets}"
    usual, _ = losses_of(project, capsys, "usual", option)
    allowed, told = losses_of(project, capsys, "allowed", option, "losses.frame_text.spread=1")
    assert np.array_equal(usual, allowed)
    assert "sharpened" not in told
    sharp, told = losses_of(project, capsys, "sharp", option, "losses.frame_text.spread=0.4")
    assert not np.array_equal(usual, sharp)
    assert "xpool: its frame relevance spreads over" in told
    assert "% of the frames; sharpened to " in told
    temperature = told.split("by frame_temperature ")[1].split()[0]
    by_hand, _ = losses_of(project, capsys, "by_hand", option, f"teachers.0.frame_temperature={temperature}")
    np.testing.assert_allclose(sharp, by_hand, rtol=0.02)


def test_it_is_measured_on_stored_relevance_alone(project, capsys):
    options = ["losses.frame_text.spread=0.4", "teaching.source=online"]
    assert distill.main([str(project()), *OPTIONS, *options]) == 2
    assert "losses.frame_text.spread is measured on stored relevance; write teaching.source=stored" in (
        capsys.readouterr().err
    )
    assert distill.main([str(project()), *OPTIONS, options[0], "teaching.max_gb=0"]) == 2
    assert "losses.frame_text.spread is measured on it" in capsys.readouterr().err


@pytest.mark.parametrize("spread", ["0", "1.5", "-1"])
def test_a_spread_is_a_share(project, capsys, spread):
    assert distill.main([str(project()), f"losses.frame_text.spread={spread}"]) == 2
    assert "losses.frame_text.spread" in capsys.readouterr().err


def test_a_share_of_less_than_a_frame_is_refused(project, capsys):
    assert distill.main([str(project()), "losses.frame_text.spread=0.1", "frames.count=4"]) == 2
    assert "losses.frame_text.spread is 0.1, less than one of 4 frames; at least 0.25" in capsys.readouterr().err


FLAT = "warning: xpool: its frame relevance spreads over"


def test_relevance_that_says_nothing_of_frames_is_told_where_each_is_judged_by_itself(project, capsys):
    sigmoid = ["student.attention=sigmoid", "losses.frame_text.kind=binary_cross_entropy"]
    _, told = losses_of(project, capsys, "flat", *sigmoid, "teachers.0.frame_temperature=1000")
    assert FLAT in told
    assert "attention would learn to take them all; write losses.frame_text.spread=0.25" in told
    _, told = losses_of(project, capsys, "softmax", "teachers.0.frame_temperature=1000")
    assert FLAT not in told
    _, told = losses_of(project, capsys, "sharp", *sigmoid, "teachers.0.frame_temperature=0.1")
    assert FLAT not in told


def test_views_and_several_processes_sharpen_alike(project, capsys):
    options = ["losses.frame_text.spread=0.4", "losses.frame_text.targets=video", "frames.temporal_augmentation=2"]
    one, told = losses_of(project, capsys, "one", *options)
    assert "sharpened to" in told
    done = launch(2, "distill", str(project()), *OPTIONS, *options, f"output={project.folder / 'two'}")
    assert done.returncode == 0, done.stderr
    assert_same_losses(one, logged_losses(project.folder / "two", ("loss", "frame_text")), steps=2)


def test_runs_without_it_go_on_where_they_stopped(project):
    assert "spread" not in run_settings(load_recipe(project()))["losses"]["frame_text"]
