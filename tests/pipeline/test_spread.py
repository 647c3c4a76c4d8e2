"""Frame relevance that a teacher spreads over all frames is sharpened, if a recipe says so."""

import numpy as np
import pytest
from runs import logged_losses

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
    assert "sharpened to 40% by frame_temperature 0." in told
    temperature = told.split("by frame_temperature ")[1].split(" ")[0]
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


def test_runs_without_it_go_on_where_they_stopped(project):
    assert "spread" not in run_settings(load_recipe(project()))["losses"]["frame_text"]
