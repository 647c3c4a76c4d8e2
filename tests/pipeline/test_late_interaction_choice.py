"""Frame sets are used only where their scorer is better than mean pooling, if a recipe says so."""

import json

import numpy as np
import pytest
from processes import launch
from runs import assert_same_losses, logged_losses

from teachclip.cli import distill
from teachclip.evaluation.per_query import PerQuery
from teachclip.models.late_interaction import LateInteraction
from teachclip.pipeline import frame_set_choice
from teachclip.pipeline.build import run_settings
from teachclip.pipeline.model_card import model_card
from teachclip.recipe.loading import load_recipe

SETS = {"weight": 1.0, "count": 8, "texts": 8, "only_if_better": True}
STUDENT = {"adapters": ["frame", "pooled", "text"]}
OPTIONS = ["train.encoders=frozen", "train.steps=2"]


def ranked(late, mean, videos=60):
    """What `_ranks` returns of made-up scorers: of every four queries some are found."""

    def ranks(work, kind):
        found = late if kind is LateInteraction else mean
        names = [f"v{row}" for row in range(videos)]
        rank = [1 if row % 4 < found else 50 for row in range(videos)]
        return PerQuery(["t2v"] * videos + ["v2t"] * videos, *([names * 2] * 3), rank * 2, [0.0] * 2 * videos)

    return ranks


@pytest.mark.parametrize(("late", "mean", "used"), [(3, 1, True), (1, 3, False), (2, 2, False)])
def test_the_better_of_late_interaction_and_mean_pooling_decides(project, capsys, monkeypatch, late, mean, used):
    monkeypatch.setattr(frame_set_choice, "_ranks", ranked(late, mean))
    recipe = project(losses={"frame_sets": SETS}, student=STUDENT)
    assert distill.main([str(recipe), *OPTIONS]) == 0
    printed = capsys.readouterr().err
    assert (
        f"frame sets are {'' if used else 'not '}used: R@10 on the selection split is {25 * late}.0 by late "
        in printed
    )
    assert f"scorer, {25 * mean}.0 by mean pooling; difference {25 * (late - mean):+}.0 [" in printed
    results = json.loads((project.folder / "run" / "results.json").read_text())
    assert results["frame_sets"]["used"] is used
    logged = [json.loads(line) for line in (project.folder / "run" / "log.jsonl").read_text().splitlines()]
    assert any("frame_sets" in line for line in logged) == used
    assert ("frame-set distillation" in model_card(results, load_recipe(recipe))) == used


def test_what_is_not_used_changes_nothing_and_several_processes_agree(project):
    recipe = project(losses={"frame_sets": SETS}, student=STUDENT)
    terms = ("loss", "contrastive", "video_text", "frame_text")
    for count in (1, 2):  # three videos tell nothing apart
        done = launch(count, "distill", recipe, *OPTIONS, f"output={project.folder / str(count)}")
        assert done.returncode == 0, done.stderr
        assert "frame sets are not used" in done.stderr
    plain = project("plain.yaml", student=STUDENT)
    assert distill.main([str(plain), *OPTIONS, f"output={project.folder / 'plain'}"]) == 0
    one, two, without = (logged_losses(project.folder / name, terms) for name in ("1", "2", "plain"))
    assert np.array_equal(one, without)
    assert_same_losses(one, two, steps=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "xpool"}, "losses.frame_sets.only_if_better knows the backbone as scorer alone, not xpool"),
    ],
)
def test_what_cannot_be_measured_is_refused(project, capsys, changes, message):
    recipe = project(losses={"frame_sets": {**SETS, **changes}}, student=STUDENT)
    assert distill.main([str(recipe), *OPTIONS]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teachers=[]", "losses.contrastive.weight=0"], "may not use them, and no other term has a weight"),
        (
            ["losses.contrastive.weight=0", "losses.video_text.weight=0", "losses.frame_text.weight=0"],
            "may not use them, and no other term has a weight",
        ),
        (["teachers=[]", "losses.contrastive.end_weight=1"], "losses.contrastive.end_weight would be lost"),
    ],
)
def test_what_would_be_left_without_frame_sets_must_train(project, capsys, overrides, message):
    recipe = project(losses={"frame_sets": SETS}, student=STUDENT)
    assert distill.main([str(recipe), *OPTIONS, *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_goes_on_does_not_choose_again(project, capsys, monkeypatch):
    monkeypatch.setattr(frame_set_choice, "_ranks", ranked(3, 1))
    recipe = str(project(losses={"frame_sets": SETS}, student=STUDENT))
    assert distill.main([recipe, *OPTIONS]) == 0
    monkeypatch.setattr(frame_set_choice, "_ranks", ranked(1, 3))
    (project.folder / "run" / "results.json").unlink()
    capsys.readouterr()
    assert distill.main([recipe, *OPTIONS]) == 0
    assert "frame sets are" not in capsys.readouterr().err
    assert json.loads((project.folder / "run" / "results.json").read_text())["frame_sets"]["used"] is True


def test_runs_without_the_key_go_on_where_they_stopped(project):
    sets = {key: value for key, value in SETS.items() if key != "only_if_better"}
    recipe = load_recipe(project(losses={"frame_sets": sets}, student=STUDENT))
    assert "only_if_better" not in run_settings(recipe)["losses"]["frame_sets"]
    assert "more_texts" not in run_settings(recipe)["losses"]["video_text"]


def test_a_run_goes_on_whose_settings_name_a_batch_of_precompute(project, capsys):
    recipe = str(project())
    assert distill.main([recipe, *OPTIONS]) == 0
    path = project.folder / "run" / "settings.json"
    settings = json.loads(path.read_text())
    assert "batch_size" not in settings["teaching"]
    settings["teaching"]["batch_size"] = 32
    path.write_text(json.dumps(settings))
    assert distill.main([recipe, *OPTIONS]) == 0, capsys.readouterr().err
