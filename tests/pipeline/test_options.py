"""Options beyond the paper, in whole runs of the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import launch
from runs import assert_same_losses, logged_losses
from tiny_models import tiny_clip
from video_files import write_video

from teachclip import load_student
from teachclip.cli import distill, evaluate
from teachclip.errors import RecipeError
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.mean_pooling import MeanPooling
from teachclip.pipeline.build import build_optimizer_for, build_student
from teachclip.pipeline.task import build_frame_sets
from teachclip.pipeline.unpaired import build_unpaired
from teachclip.pipeline.workspace import build_workspace
from teachclip.processes import Processes
from teachclip.recipe.loading import load_recipe
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachers.xpool import XPool

ROOT = Path(__file__).parents[2]
SETS = {"weight": 1.0, "end_weight": 0.5, "count": 8, "texts": 4}
STUDENT = {
    "attention": "sigmoid",
    "attention_input": "before",
    "attention_rescale": True,
    "pooling_temperature": 0.5,
    "adapters": ["frame", "pooled", "text"],
    "adapter_width": 16,
    "matryoshka": [16, 4],
    "temperature_scaling": [0.5, 4.0],
}
LOSSES = {
    "contrastive": {"weight": 0.1, "end_weight": 0.2},
    "frame_text": {"weight": 1.0, "kind": "binary_cross_entropy", "targets": "video", "saturation": 0.5},
    "frame_sets": SETS,
}
OPTIMIZER = {"adapter_lr": 3e-3}


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def losses(folder, names=("loss", "contrastive", "video_text", "frame_text", "frame_sets")):
    return logged_losses(folder, names)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def teachers(project):
    other = project.folder / "other.pth"
    torch.manual_seed(1)
    torch.save(XPool.from_clip(tiny_clip(text_layers=4, heads=1, seed=2)).checkpoint(), other)
    return [
        {"name": "xpool", "checkpoint": str(project.root / "teacher.pth")},
        {"name": "xpool", "label": "other", "checkpoint": str(other), "weight": 0.5, "frame_temperature": 2.0},
    ]


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("scorer", ["backbone", "frozen_backbone", "xpool"])
def test_all_options_together_train_export_and_load(project, encoders, layers, scorer, capsys):
    recipe = project(
        student={**STUDENT, "temporal_layers": layers},
        losses={**LOSSES, "frame_sets": {**SETS, "scorer": scorer}},
        optimizer=OPTIMIZER,
        teaching={"weighting": "confidence"},
        train={"encoders": encoders},
    )
    assert run(distill.main, recipe) == 0, capsys.readouterr().err
    logged = losses(project.folder / "run")
    assert len(logged) == 4 and np.isfinite(logged).all()
    step = np.arange(4) / 3
    weights = np.stack([0.1 + 0.1 * step, np.ones(4), np.ones(4), 1 - 0.5 * step], axis=1)
    np.testing.assert_allclose(logged[:, 0], (logged[:, 1:] * weights).sum(1), rtol=1e-5)
    found = results(project.folder / "run")
    tried, factor = found["temperature_scaling"]["tried"], found["temperature_scaling"]["factor"]
    assert list(tried) == ["1", "0.5", "4"] and tried[f"{factor:g}"] == max(tried.values())
    student = load_student(project.folder / "run" / "student")
    assert student.config.pooling_temperature == pytest.approx(0.5 / factor)
    for key in ("attention", "attention_input", "attention_rescale", "adapters", "adapter_width", "matryoshka"):
        assert getattr(student.config, key) == STUDENT[key], key
    assert found["validation"]["t2v"]["recall_at_1"] == max(tried.values())
    assert student.encode_text(["a red circle"], progress=False).shape == (1, 32)


@pytest.mark.parametrize(
    ("encoders", "scorer"), [("frozen", "xpool"), ("finetuned", "backbone"), ("finetuned", "frozen_backbone")]
)
def test_two_processes_train_with_all_options_as_one_does(project, teachers, encoders, scorer):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = project(
            f"{count}.yaml",
            student=STUDENT,
            losses={**LOSSES, "frame_sets": {**SETS, "scorer": scorer}},
            optimizer=OPTIMIZER,
            teachers=teachers,
            teaching={"weighting": "confidence"},
            train={"encoders": encoders},
            output=str(folder / "run"),
            stores=str(folder / "stores"),
        )
        done = launch(count, "distill", recipe)
        assert done.returncode == 0, done.stderr
    one, two = (losses(project.folder / n / "run") for n in "12")
    assert_same_losses(one, two, steps=4)
    assert (one[:, 4] > 0).all()
    one, two = (losses(project.folder / n / "run", ["grad_norm"]) for n in "12")
    np.testing.assert_allclose(two, one, rtol=1e-3)
    one, two = (results(project.folder / n / "run")["temperature_scaling"] for n in "12")
    assert one == two and list(one["tried"]) == ["1", "0.5", "4"]


def test_two_teachers_by_confidence_and_a_clip_of_frame_targets_teach_something_else(project, teachers):
    terms = {name: LOSSES[name] for name in ("contrastive", "frame_text")}
    given = {"student": {"attention": "sigmoid"}, "losses": terms, "teachers": teachers, "train": {"steps": 1}}
    changes = {"both": [], "fixed": ["teaching.weighting=fixed"], "whole": ["losses.frame_text.saturation=1"]}
    for name, overrides in changes.items():
        output = str(project.folder / name)
        recipe = project(f"{name}.yaml", teaching={"weighting": "confidence"}, output=output, **given)
        assert run(distill.main, recipe, *overrides) == 0
    names = ("video_text", "frame_text")
    both, fixed, whole = (losses(project.folder / name, names)[0] for name in changes)
    assert abs(fixed[0] - both[0]) > 1e-3
    assert whole[0] == both[0] and abs(whole[1] - both[1]) > 1e-4


@pytest.mark.parametrize(("encoders", "scorer"), [("frozen", "other"), ("finetuned", "backbone")])
def test_two_teachers_that_run_in_every_step_teach_sets_and_by_confidence_as_stored_ones_do(
    project, teachers, encoders, scorer
):
    for source in ("stored", "online"):
        recipe = project(
            f"{source}.yaml",
            student={**STUDENT, "temperature_scaling": []},
            losses={
                **LOSSES,
                "frame_text": {"kind": "binary_cross_entropy"},
                "frame_sets": {**SETS, "scorer": scorer},
            },
            teachers=teachers,
            teaching={"source": source, "weighting": "confidence", "precision": "float32"},
            train={"encoders": encoders, "steps": 3},
            output=str(project.folder / source),
        )
        assert run(distill.main, recipe) == 0
    stored, online = (losses(project.folder / source) for source in ("stored", "online"))
    assert_same_losses(stored, online, steps=3)
    assert (stored[:, 4] > 0).all()


def test_a_run_with_sets_goes_on_where_it_stopped_exactly(project):
    options = {"student": STUDENT, "losses": LOSSES, "optimizer": OPTIMIZER}
    train = {"checkpoint_every": 2}
    assert run(distill.main, project("whole.yaml", output=str(project.folder / "whole"), train=train, **options)) == 0
    recipe = project("part.yaml", output=str(project.folder / "part"), train=train, **options)
    assert run(distill.main, recipe) == 0
    removed = list((project.folder / "part" / "checkpoints").glob("*-00000004"))
    assert removed
    for path in removed:
        shutil.rmtree(path)
    assert run(distill.main, recipe) == 0
    assert np.array_equal(losses(project.folder / "whole"), losses(project.folder / "part"))


def test_sets_need_neither_teacher_nor_captions_of_the_pair(project):
    recipe = project(teachers=[], student=STUDENT, losses={"contrastive": {"weight": 0.0}, "frame_sets": SETS})
    assert run(distill.main, recipe) == 0
    logged = losses(project.folder / "run", ("loss", "frame_sets"))
    np.testing.assert_allclose(logged[:, 0], logged[:, 1] * (1 - 0.5 * np.arange(4) / 3), rtol=1e-5)


@pytest.mark.parametrize(("split", "factor"), [("validation", 2.0), ("test", 0.5)])
def test_the_sharpening_of_an_undistilled_student_is_chosen_on_the_selection_split_alone(
    project, monkeypatch, split, factor
):
    def evaluate_as_if(student, inputs, split, *given, **options):
        found = evaluate_split(student, inputs, split, *given, **options)
        if isinstance(student, MeanPooling):  # the backbone alone, which is measured beside the student
            return found
        sharpness = 0.1 / student.config.pooling_temperature
        found["t2v"]["recall_at_1"] = 10 * sharpness if split.name == "validation" else 10 / sharpness
        return found

    monkeypatch.setattr("teachclip.pipeline.uncaptioned.evaluate_split", evaluate_as_if)
    recipe = project(teachers=[], student={"temperature_scaling": [2.0, 0.5]})
    assert run(distill.main, recipe, f"data.select_on={split}") == 0
    found = results(project.folder / "run")
    tried = found["temperature_scaling"]["tried"]
    assert found["temperature_scaling"]["factor"] == factor and tried[f"{factor:g}"] == max(tried.values())
    assert tried.keys() == {"1", "2", "0.5"} and found[split]["t2v"]["recall_at_1"] == max(tried.values())
    student = load_student(project.folder / "run" / "student")
    assert student.config.pooling_temperature == pytest.approx(0.1 / factor)


def test_a_dry_run_takes_the_options_along(project, capsys):
    recipe = project(student=STUDENT, losses={**LOSSES, "frame_text": {"kind": "binary_cross_entropy"}})
    assert run(distill.main, recipe, "--dry-run") == 0
    message = capsys.readouterr().err
    assert "sets " in message and "dry run passed" in message


def test_a_teacher_that_only_reads_scores_cannot_score_sets(project, capsys):
    scores = project.folder / "scores.npy"
    np.save(scores, np.zeros((16, 8), np.float32))
    recipe = project(
        teachers=[{"name": "scores", "checkpoint": str(scores)}], losses={"frame_sets": {**SETS, "scorer": "scores"}}
    )
    assert run(distill.main, recipe) == 2
    assert "losses.frame_sets.scorer: 'scores' reads its scores from a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.attention=sigmoid"],
            "losses.frame_text.kind=cross_entropy does not fit student.attention=sigmoid",
        ),
        (["losses.frame_text.kind=binary_cross_entropy"], "does not fit student.attention=softmax"),
        (["losses.frame_text.saturation=0.5"], "saturation needs targets=video"),
        (
            ["losses.frame_sets.weight=1", "losses.frame_sets.scorer=xpol"],
            "scorer is 'xpol'; allowed: backbone, frozen_backbone, or the label of a teacher: xpool; did you mean",
        ),
        (["losses.frame_sets.frames=[3,2]"], "the fewest come first"),
        (
            ["losses.frame_sets.weight=1", "frames.store=none", "train.encoders=finetuned"],
            "which frames.store=none cannot",
        ),
        (["teachers=[]", "losses.contrastive.weight=0"], "nothing to train on"),
        (["losses.frame_sets.weight=1", "student.temporal_layers=0"], "this student has neither"),
        (["losses.frame_sets.weight=1", "losses.frame_sets.frames=[1,9]"], "but videos have 4 frames"),
        (
            ["losses.frame_sets.weight=1", "frames.store=none", "losses.frame_sets.videos=x"],
            "frame_sets.videos needs frames.store=disk",
        ),
        (
            ["losses.frame_text.weight=0", "losses.frame_text.end_weight=1", "student.attention=sigmoid"],
            "does not fit",
        ),
        (["student.adapters=[video]"], "student.adapters.0: must be 'frame', 'pooled' or 'text', got 'video'"),
        (["student.temperature_scaling=[0]"], "student.temperature_scaling.0"),
    ],
)
def test_options_that_do_not_fit_together_are_named(project, overrides, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(project(), overrides)
    assert message in str(error.value)


def test_a_teacher_called_as_a_backbone_cannot_score_sets(project, teachers):
    named = [{**teachers[0], "label": "backbone"}, {**teachers[1], "label": "frozen_backbone"}]
    recipe = project(teachers=named, losses={"frame_sets": SETS})
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe)
    for label in ("backbone", "frozen_backbone"):
        assert f"losses.frame_sets.scorer calls a backbone {label!r}" in str(error.value)
    load_recipe(recipe, ["losses.frame_sets.weight=0", "losses.frame_sets.end_weight=null"])


def test_sets_scored_by_the_backbone_as_it_was_have_its_targets_while_encoders_train(project):
    found = {}
    for encoders in ("frozen", "finetuned"):
        for scorer in ("backbone", "frozen_backbone"):
            recipe = project(
                f"{encoders}-{scorer}.yaml",
                student={**STUDENT, "temperature_scaling": []},
                losses={**LOSSES, "frame_sets": {**SETS, "scorer": scorer}},
                optimizer={**OPTIMIZER, "clip_lr": 1e-2},
                train={"encoders": encoders},
                output=str(project.folder / f"{encoders}-{scorer}"),
            )
            assert run(distill.main, recipe) == 0
            found[encoders, scorer] = losses(project.folder / f"{encoders}-{scorer}", ["frame_sets"])
    recipe = project.folder / "finetuned-frozen_backbone.yaml"
    later = project.folder / "later"
    assert run(distill.main, recipe, f"output={later}", "train.frozen_steps=2", "train.batch_size=8") == 0
    found["head first"] = losses(later, ["frame_sets"])
    assert np.array_equal(found["frozen", "backbone"], found["frozen", "frozen_backbone"])
    moving, still = found["finetuned", "backbone"], found["finetuned", "frozen_backbone"]
    np.testing.assert_allclose(still[0], moving[0], rtol=1e-4)  # before the first step they are the same
    assert abs(still[-1] - moving[-1]).item() > 1e-2
    # steps in which encoders do not move read stored features of the student alone, which are the scorer's too
    np.testing.assert_allclose(found["head first"][:2], found["frozen", "backbone"][:2], rtol=1e-4)
    assert np.isfinite(found["head first"]).all()


# Unpaired videos and captions.


@pytest.fixture
def more(project):
    folder = project.folder / "more"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        write_video(folder / "deep" / f"clip{number}.mp4", frames=12, seed=100 + number)
    (folder / "broken.mp4").write_text("<html>")
    (project.folder / "more.txt").write_text("a blue circle over sea\n\na red square over sea\n", encoding="utf-8")
    return {"videos": str(folder), "captions": str(project.folder / "more.txt")}


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
@pytest.mark.parametrize("scorer", ["backbone", "frozen_backbone", "xpool"])
def test_unpaired_videos_and_captions_join_the_pool_of_sets(project, more, encoders, scorer, capsys):
    seen = {}
    for name, given in {"none": {}, "both": more, "videos": {"videos": more["videos"]}}.items():
        recipe = project(
            f"{name}.yaml",
            output=str(project.folder / name),
            losses={"frame_sets": {**SETS, "scorer": scorer, **given}},
            train={"encoders": encoders},
        )
        assert run(distill.main, recipe) == 0, capsys.readouterr().err
        seen[name] = losses(project.folder / name)
        message = capsys.readouterr().err
        assert ("unpaired: 3 videos, 2 captions" in message) == (name == "both")
        assert ("excluded unpaired/broken.mp4: " in message) == bool(given)
    assert not np.allclose(seen["none"], seen["both"], atol=1e-4)
    assert not np.allclose(seen["videos"], seen["both"], atol=1e-4)


def test_unpaired_videos_that_are_held_out_are_left_out_by_their_content(project, capsys):
    recipe = project(losses={"frame_sets": {**SETS, "videos": str(project.root / "videos")}})
    assert run(distill.main, recipe) == 0
    message = capsys.readouterr().err
    assert "excluded 6 of 14 unpaired videos: they are in validation or test" in message
    assert "unpaired: 8 videos" in message


def test_unpaired_videos_have_one_view_and_are_drawn_as_often_as_the_others(project, more, capsys):
    path = project(losses={"frame_sets": {**SETS, "scorer": "xpool", **more}}, frames={"temporal_augmentation": 2})
    assert run(distill.main, path) == 0, capsys.readouterr().err
    assert np.isfinite(losses(project.folder / "run")).all()
    work = build_workspace(load_recipe(path), Processes(), torch.device("cpu"))
    split = work.catalog.train
    inputs = work.inputs(split, work.backbone, encoders="frozen", views=2)
    plan, _ = build_frame_sets(work, split, inputs, build_unpaired(work))
    views, training, unpaired = 2, 8, 3
    for joined in (plan.inputs, plan.scorer):
        assert joined.video_count == views * (training + unpaired) and joined.text_count > inputs.text_count
        found = joined.videos(np.arange(joined.video_count))["frame_features"]
        seen, alone = found[: views * training].unflatten(0, (views, training)), found[views * training :]
        first, second = alone.unflatten(0, (views, unpaired))
        assert torch.equal(first, second) and not torch.equal(*seen)
        assert len(first.flatten(1).unique(dim=0)) == unpaired


def test_every_option_of_sets_and_heads_reaches_the_part_that_it_is_for(project):
    sets = {"weight": 1.0, "count": 6, "texts": 5, "frames": [2, 3], "repeats": 4, "scale": 7.0}
    path = project(losses={**LOSSES, "frame_sets": sets}, student=STUDENT, optimizer=OPTIMIZER, seed=9)
    work = build_workspace(load_recipe(path), Processes(), torch.device("cpu"))
    inputs = work.pixel_inputs(work.catalog.train)
    plan, scorer = build_frame_sets(work, work.catalog.train, inputs)
    assert plan == FrameSetSampler(inputs, count=6, texts=5, fewest=2, most=3, seed=9, repeats=4)
    assert scorer == FrameSetScorer(scale=7.0, teacher=None)
    student = build_student(work.recipe.student, work.backbone, seed=9, frames=4)
    rates = {group["name"]: group["lr"] for group in build_optimizer_for(student, work.recipe.optimizer).param_groups}
    assert rates["adapters"] == rates["adapters_no_decay"] == 3e-3 and rates["attention"] == 1e-2


def test_a_run_without_options_has_the_settings_of_before_they_existed(project):
    assert run(distill.main, project()) == 0
    settings = json.loads((project.folder / "run" / "settings.json").read_text())
    assert set(settings["student"]) == {"backbone", "temporal_layers", "pooling_temperature", "mask_padding"}
    assert set(settings["losses"]) == {"contrastive", "video_text", "frame_text"}
    assert settings["losses"]["contrastive"] == {"weight": 0.2}
    assert "adapter_lr" not in settings["optimizer"] and "weighting" not in settings["teaching"]


def test_the_scorer_of_sets_must_be_among_the_teachers_that_teach(project):
    xpool = str(project.root / "teacher.pth")
    teachers = [{"name": "xpool", "checkpoint": xpool}, {"name": "xpool", "label": "other", "checkpoint": xpool}]
    path = project(teachers=teachers, losses={"frame_sets": {**SETS, "scorer": "xpool"}})
    with pytest.raises(RecipeError, match=r"teaching\.only: losses\.frame_sets\.scorer is 'xpool'"):
        load_recipe(path, ["teaching.only=[other]"])


def test_changed_unpaired_captions_are_another_run(project, more, capsys):
    recipe = project(losses={"frame_sets": {**SETS, "captions": more["captions"]}})
    assert run(distill.main, recipe) == 0
    Path(more["captions"]).write_text("a blue square\n", encoding="utf-8")
    assert run(distill.main, recipe) == 2
    assert "unpaired" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("videos", "nowhere", "video folder nowhere does not exist"), ("captions", "nowhere.txt", "nowhere.txt")],
)
def test_unpaired_data_that_is_not_there_is_named(project, key, value, message, capsys):
    assert run(distill.main, project(losses={"frame_sets": {**SETS, key: value}})) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and message in lines[0]


def test_a_teacher_of_whom_all_is_kept_teaches_as_one_who_keeps_nothing_back(project):
    losses = {}
    for keep in (None, 1000, 2):
        teachers = [{"name": "xpool", "checkpoint": str(project.root / "teacher.pth"), "keep": keep}]
        output = project.folder / f"keep-{keep}"
        arguments = [project(teachers=teachers), f"output={output}", "train.steps=2"]
        assert distill.main([str(argument) for argument in arguments]) == 0
        losses[keep] = logged_losses(output)
    assert np.array_equal(losses[None], losses[1000]) and not np.array_equal(losses[None], losses[2])


@pytest.mark.parametrize("targets", ["pair", "video"])
def test_a_student_of_several_vectors_is_taught_evaluated_and_exported(project, targets, capsys):
    recipe = project(
        student={"vectors": 2, "temperature_scaling": [2.0]}, losses={"frame_text": {"targets": targets}}
    )
    assert run(distill.main, recipe) == 0, capsys.readouterr().err
    logged = losses(project.folder / "run", ("loss", "video_text", "frame_text"))
    assert np.isfinite(logged).all() and (logged[:, 2] > 0).all()
    found = results(project.folder / "run")
    assert found["test"]["cost"]["bytes_per_video"] == 2 * 32 * 4
    student = load_student(project.folder / "run" / "student")
    assert student.config.vectors == 2 and student.aggregation.score.weight.shape == (2, 32)
    card = (project.folder / "run" / "student" / "README.md").read_text()
    assert "A video is 2 vectors" in card and "SentenceTransformer(" not in card
    assert run(evaluate.main, recipe, "--out", project.folder / "again.json") == 0
    again = json.loads((project.folder / "again.json").read_text())
    assert again["test"]["t2v"] == found["test"]["t2v"]


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_swapped_clauses_teach_in_whole_runs(project, encoders, capsys):
    """The made project's captions have no connective; "red" stands for one: "a" and "circle" change places."""
    joints = "losses.contrastive.swapped_clauses=[' red ']"
    options = [f"train.encoders={encoders}", "train.steps=2"]
    found = {}
    for name, more in {
        "plain": [],
        "swapped": [joints],
        "none": ["losses.contrastive.swapped_clauses=[' then ']"],
    }.items():
        assert run(distill.main, project(), *options, *more, f"output={project.folder / name}") == 0
        found[name] = losses(project.folder / name, ("contrastive",))
        printed = capsys.readouterr().err
        assert ("clauses swapped: 10 of 16 captions" in printed) == (name == "swapped")
        assert ("clauses swapped: 0 of 16 captions" in printed) == (name == "none")
    assert found["swapped"][0] > found["plain"][0] + 1e-4
    assert np.array_equal(found["none"], found["plain"])


def test_captions_that_spare_the_adapters_teach_all_else_in_whole_runs(project, capsys):
    """With the encoders, in one pass and in chunks. In the first step the losses are those of before."""
    options = ["train.encoders=finetuned", "train.steps=3", "student.adapters=[frame,pooled,text]"]
    options += ["losses.contrastive.weight=3", "optimizer.adapter_lr=0.1"]
    spared, found = "losses.contrastive.teaches_adapters=false", {}
    for name, more in {"usual": [], "spared": [spared], "chunks": [spared, "train.chunk_size=2"]}.items():
        assert run(distill.main, project(), *options, *more, f"output={project.folder / name}") == 0
        found[name] = losses(project.folder / name, ("loss", "contrastive"))
    np.testing.assert_allclose(found["spared"][0], found["usual"][0], rtol=1e-6)
    assert abs(found["spared"][-1] - found["usual"][-1]).min() > 1e-3
    np.testing.assert_allclose(found["chunks"], found["spared"], rtol=1e-3)
    assert "not taught by captions" in (project.folder / "spared" / "student" / "README.md").read_text()


def test_swapped_captions_that_would_be_cut_are_left_out(project, capsys):
    options = ["losses.contrastive.swapped_clauses=[' red ']", "train.steps=1"]
    for most, told in ((6, "clauses swapped: 10 of 16 captions\n"), (5, "0 of 16 captions; 10 more do not fit into")):
        changes = {"output": str(project.folder / str(most)), "stores": str(project.folder / f"stores{most}")}
        assert run(distill.main, project(text={"max_tokens": most}, **changes), *options) == 0
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_joined_clips_teach_in_whole_runs(project, encoders, capsys):
    term = {"weight": 0.5, "count": 4, "connective": " over "}
    overrides = [f"train.encoders={encoders}", "train.steps=2"]
    recipe = project(losses={"joined_clips": term}, text={"max_tokens": 12}, teachers=[])
    assert run(distill.main, recipe, *overrides) == 0, capsys.readouterr().err
    assert "joined clips: " in capsys.readouterr().err
    logged = losses(project.folder / "run", ("loss", "contrastive", "joined_clips"))
    np.testing.assert_allclose(logged[:, 0], 0.2 * logged[:, 1] + 0.5 * logged[:, 2], rtol=1e-5)
    short = {"stores": str(project.folder / "other"), "output": str(project.folder / "short")}
    short = project("short.yaml", losses={"joined_clips": term}, text={"max_tokens": 5}, **short)
    assert run(distill.main, short, *overrides) == 2
    assert "losses.joined_clips: 0 pairs of captions fit into text.max_tokens=5" in capsys.readouterr().err


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_texts_beyond_the_batch_teach_in_whole_runs_of_one_and_two_processes(project, encoders):
    options = [f"train.encoders={encoders}", "train.steps=2"]
    more = project(losses={"video_text": {"kind": "kl", "more_texts": 6}})
    runs = {"1": [], "chunked": ["train.chunk_size=2"], "plain": ["losses.video_text.more_texts=0"]}
    for name, overrides in runs.items():
        assert run(distill.main, more, *options, *overrides, f"output={project.folder / name}") == 0
    done = launch(2, "distill", more, *options, f"output={project.folder / '2'}")
    assert done.returncode == 0, done.stderr
    terms = ("loss", "contrastive", "video_text", "frame_text")
    logged = {name: losses(project.folder / name, terms) for name in ("1", "2", "chunked", "plain")}
    assert_same_losses(logged["1"], logged["2"], steps=2)
    assert_same_losses(logged["1"], logged["chunked"], steps=2)
    assert abs(logged["plain"][0, 2] - logged["1"][0, 2]) > 1e-4 and logged["plain"][0, 1] == logged["1"][0, 1]
