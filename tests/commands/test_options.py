"""Options beyond the paper, in whole runs of the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from launching import launch
from video_files import write_video

from teachclip import load_student
from teachclip.commands import distill
from teachclip.errors import RecipeError
from teachclip.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]
SETS = {"weight": 1.0, "end_weight": 0.5, "count": 8, "texts": 4}
STUDENT = {
    "gate": "sigmoid",
    "gate_input": "before",
    "gate_rescale": True,
    "pooling_temperature": 0.5,
    "heads": ["frame", "pooled", "text"],
    "head_width": 16,
    "sharpening": [0.5, 4.0],
}
LOSSES = {
    "contrastive": {"weight": 0.1, "end_weight": 0.2},
    "frame_text": {"weight": 1.0, "kind": "binary_cross_entropy", "targets": "video", "clip": 0.5},
    "sets": SETS,
}
OPTIMIZER = {"heads_lr": 3e-3}


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def losses(folder, names=("loss", "contrastive", "video_text", "frame_text", "sets")):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in names] for line in lines if "loss" in line])


@pytest.mark.parametrize("towers", ["frozen", "tuned"])
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("scorer", ["backbone", "xpool"])
def test_all_options_together_train_export_and_load(project, towers, layers, scorer, capsys):
    recipe = project(
        student={**STUDENT, "temporal_layers": layers},
        losses={**LOSSES, "sets": {**SETS, "scorer": scorer}},
        optimizer=OPTIMIZER,
        teaching={"weighting": "confidence"},
        train={"towers": towers},
    )
    assert run(distill.main, recipe) == 0, capsys.readouterr().err
    logged = losses(project.folder / "run")
    assert len(logged) == 4 and np.isfinite(logged).all()
    step = np.arange(4) / 3
    weights = np.stack([0.1 + 0.1 * step, np.ones(4), np.ones(4), 1 - 0.5 * step], axis=1)
    np.testing.assert_allclose(logged[:, 0], (logged[:, 1:] * weights).sum(1), rtol=1e-5)
    results = json.loads((project.folder / "run" / "results.json").read_text())
    tried = results["sharpening"]["tried"]
    assert list(tried) == ["1", "0.5", "4"] and tried[f"{results['sharpening']['factor']:g}"] == max(tried.values())
    student = load_student(project.folder / "run" / "student")
    assert student.config.pooling_temperature == pytest.approx(0.5 / results["sharpening"]["factor"])
    assert student.config.heads == STUDENT["heads"] and student.config.gate == "sigmoid"
    assert results["validation"]["t2v"]["recall_at_1"] == max(tried.values())
    assert student.encode_text(["a red circle"], progress=False).shape == (1, 32)


@pytest.mark.parametrize(("towers", "scorer"), [("frozen", "xpool"), ("tuned", "backbone")])
def test_two_launched_processes_train_with_all_options_as_one_does(project, towers, scorer):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = project(
            f"{count}.yaml",
            student={**STUDENT, "sharpening": []},
            losses={**LOSSES, "sets": {**SETS, "scorer": scorer}},
            optimizer=OPTIMIZER,
            teaching={"weighting": "confidence"},
            train={"towers": towers},
            output=str(folder / "run"),
            stores=str(folder / "stores"),
        )
        done = launch(count, "distill", recipe)
        assert done.returncode == 0, done.stderr
    one, two = (losses(project.folder / n / "run") for n in "12")
    np.testing.assert_allclose(two, one, atol=2e-5)
    assert len(one) == 4 and (one[:, 4] > 0).all()


def test_a_run_with_sets_goes_on_where_it_stopped_exactly(project):
    options = {"student": STUDENT, "losses": LOSSES, "optimizer": OPTIMIZER}
    train = {"checkpoint_every": 2}
    assert run(distill.main, project("whole.yaml", output=str(project.folder / "whole"), train=train, **options)) == 0
    recipe = project("part.yaml", output=str(project.folder / "part"), train=train, **options)
    assert run(distill.main, recipe) == 0
    for path in (project.folder / "part" / "checkpoints").glob("*-00000004"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert run(distill.main, recipe) == 0
    assert np.array_equal(losses(project.folder / "whole"), losses(project.folder / "part"))


def test_sets_need_neither_teacher_nor_captions_of_the_pair(project):
    recipe = project(teachers=[], student=STUDENT, losses={"contrastive": {"weight": 0.0}, "sets": SETS})
    assert run(distill.main, recipe) == 0
    logged = losses(project.folder / "run", ("loss", "sets"))
    np.testing.assert_allclose(logged[:, 0], logged[:, 1] * (1 - 0.5 * np.arange(4) / 3), rtol=1e-5)


def test_the_sharpening_of_an_undistilled_student_is_chosen_on_validation_alone(project):
    recipe = project(teachers=[], student={"sharpening": [2.0]})
    assert run(distill.main, recipe, "data.test=null") == 0
    results = json.loads((project.folder / "run" / "results.json").read_text())
    assert set(results["sharpening"]["tried"]) == {"1", "2"}


def test_a_dry_run_takes_the_options_along(project, capsys):
    recipe = project(student=STUDENT, losses={**LOSSES, "frame_text": {"kind": "binary_cross_entropy"}})
    assert run(distill.main, recipe, "--dry-run") == 0
    message = capsys.readouterr().err
    assert "sets " in message and "dry run passed" in message


def test_a_teacher_that_only_reads_scores_cannot_score_sets(project, capsys):
    scores = project.folder / "scores.npy"
    np.save(scores, np.zeros((16, 8), np.float32))
    recipe = project(
        teachers=[{"name": "scores", "checkpoint": str(scores)}], losses={"sets": {**SETS, "scorer": "scores"}}
    )
    assert run(distill.main, recipe) == 2
    assert "losses.sets.scorer: 'scores' reads its scores from a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.gate=sigmoid"], "losses.frame_text.kind=cross_entropy does not fit student.gate=sigmoid"),
        (["losses.frame_text.kind=binary_cross_entropy"], "does not fit student.gate=softmax"),
        (["losses.frame_text.clip=0.5"], "clip needs targets=video"),
        (
            ["losses.sets.weight=1", "losses.sets.scorer=xpol"],
            "allowed: backbone or the label of a teacher: backbone, xpool",
        ),
        (["losses.sets.frames=[3,2]"], "the fewest come first"),
        (["losses.sets.weight=1", "frames.store=none", "train.towers=tuned"], "which frames.store=none cannot"),
        (["teachers=[]", "losses.contrastive.weight=0"], "nothing to train on"),
        (["losses.sets.weight=1", "student.temporal_layers=0"], "this student has neither"),
        (["losses.sets.weight=1", "losses.sets.frames=[1,9]"], "but videos have 4 frames"),
        (
            ["losses.sets.weight=1", "frames.store=none", "losses.sets.videos=x"],
            "sets.videos needs frames.store=disk",
        ),
        (["losses.frame_text.weight=0", "losses.frame_text.end_weight=1", "student.gate=sigmoid"], "does not fit"),
        (["student.heads=[video]"], "student.heads.0: must be 'frame', 'pooled' or 'text', got 'video'"),
        (["student.sharpening=[0]"], "student.sharpening.0"),
    ],
)
def test_options_that_do_not_fit_together_are_named(project, overrides, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(project(), overrides)
    assert message in str(error.value)


# Unpaired videos and captions.


@pytest.fixture
def more(project):
    folder = project.folder / "more"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        write_video(folder / "deep" / f"clip{number}.mp4", frames=12, seed=100 + number)
    (folder / "broken.mp4").write_text("<html>")
    (project.folder / "more.txt").write_text("a blue circle over sea\n\na red square\n", encoding="utf-8")
    return {"videos": str(folder), "captions": str(project.folder / "more.txt")}


@pytest.mark.parametrize("towers", ["frozen", "tuned"])
@pytest.mark.parametrize("scorer", ["backbone", "xpool"])
def test_unpaired_videos_and_captions_join_the_pool_of_sets(project, more, towers, scorer, capsys):
    seen = {}
    for name, given in {"none": {}, "both": more, "videos": {"videos": more["videos"]}}.items():
        recipe = project(
            f"{name}.yaml",
            output=str(project.folder / name),
            losses={"sets": {**SETS, "scorer": scorer, **given}},
            train={"towers": towers},
        )
        assert run(distill.main, recipe) == 0, capsys.readouterr().err
        seen[name] = losses(project.folder / name)
        message = capsys.readouterr().err
        assert ("unpaired: 3 videos, 2 captions" in message) == (name == "both")
        assert ("left out unpaired/broken.mp4: " in message) == bool(given)
    assert not np.allclose(seen["none"], seen["both"], atol=1e-4)
    assert not np.allclose(seen["videos"], seen["both"], atol=1e-4)


def test_unpaired_videos_that_are_held_out_are_left_out_by_their_content(project, capsys):
    recipe = project(losses={"sets": {**SETS, "videos": str(project.root / "videos")}})
    assert run(distill.main, recipe) == 0
    message = capsys.readouterr().err
    assert "left out 6 of 14 unpaired videos: to validate or test on" in message and "unpaired: 8 videos" in message


def test_unpaired_videos_have_one_view_and_are_drawn_as_often_as_the_others(project, more, capsys):
    recipe = project(losses={"sets": {**SETS, **more}}, frames={"views": 2})
    assert run(distill.main, recipe) == 0, capsys.readouterr().err
    assert np.isfinite(losses(project.folder / "run")).all()


def test_a_run_without_options_has_the_settings_of_before_they_existed(project):
    assert run(distill.main, project()) == 0
    settings = json.loads((project.folder / "run" / "settings.json").read_text())
    assert set(settings["student"]) == {"backbone", "temporal_layers", "pooling_temperature", "mask_padding"}
    assert set(settings["losses"]) == {"contrastive", "video_text", "frame_text"}
    assert settings["losses"]["contrastive"] == {"weight": 0.2}
    assert "heads_lr" not in settings["optimizer"] and "weighting" not in settings["teaching"]


def test_the_scorer_of_sets_must_be_among_the_teachers_that_teach(project):
    xpool = str(project.root / "teacher.pth")
    teachers = [{"name": "xpool", "checkpoint": xpool}, {"name": "xpool", "label": "other", "checkpoint": xpool}]
    path = project(teachers=teachers, losses={"sets": {**SETS, "scorer": "xpool"}})
    with pytest.raises(RecipeError, match=r"teaching\.only: losses\.sets\.scorer is 'xpool'"):
        load_recipe(path, ["teaching.only=[other]"])


def test_changed_unpaired_captions_are_another_run(project, more, capsys):
    recipe = project(losses={"sets": {**SETS, "captions": more["captions"]}})
    assert run(distill.main, recipe) == 0
    Path(more["captions"]).write_text("a blue square\n", encoding="utf-8")
    assert run(distill.main, recipe) == 2
    assert "unpaired" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("videos", "nowhere", "video folder nowhere does not exist"), ("captions", "nowhere.txt", "nowhere.txt")],
)
def test_unpaired_data_that_is_not_there_is_named(project, key, value, message, capsys):
    assert run(distill.main, project(losses={"sets": {**SETS, key: value}})) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and message in lines[0]
