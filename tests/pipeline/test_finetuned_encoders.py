"""Whole runs whose encoders train: head first, averaged, mixed with their start, by LoRA."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from processes import launch
from runs import assert_same_losses, logged_losses
from text_models import save_text_model
from tiny_backbones import tiny_backbone
from transformers import DistilBertModel

from teachclip import load_student
from teachclip.cli import distill, train_teacher
from teachclip.cli import soup as soup_command
from teachclip.errors import RecipeError
from teachclip.models.backbone import load_backbone
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.models.text_tower import load_text_model, with_text_model
from teachclip.pipeline import distill as distill_module
from teachclip.pipeline import soup as soup_module
from teachclip.pipeline.build import build_processor, run_settings
from teachclip.pipeline.lora import insert_lora, merge_lora
from teachclip.pipeline.wise_ft import interpolate_encoders
from teachclip.processes import Processes
from teachclip.recipe.loading import load_recipe
from teachclip.scoring.inputs import FeatureInputs
from teachclip.training.batches import TrainingBatches
from teachclip.training.checkpoint import load_part, newest_checkpoint

OPTIONS = [
    "train.encoders=finetuned",
    "train.frozen_steps=2",
    "train.ema=0.9",
    "optimizer.layer_decay=0.7",
    "optimizer.l2_start=0.1",
    "optimizer.clip_lr=1e-2",
    "student.wise_ft=[0,0.5]",
]


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def best(folder):
    return load_part(newest_checkpoint(folder / "checkpoints", "best"), "model")


def test_all_of_it_together_trains_and_the_chosen_share_is_what_is_exported(project, capsys):
    assert run(distill.main, project(), *OPTIONS, "student.temperature_scaling=[2]") == 0, capsys.readouterr().err
    found = results(project.folder / "run")
    share, tried = found["wise_ft"]["share"], found["wise_ft"]["tried"]
    assert list(tried) == ["1", "0", "0.5"] and tried[f"{share:g}"] == max(tried.values())
    student, kept = load_student(project.folder / "run" / "student"), best(project.folder / "run")
    start = load_backbone(project.root / "clip").state_dict()
    for name, tensor in student.backbone.state_dict().items():
        if tensor.is_floating_point():
            trained = kept[f"student.backbone.{name}"]
            torch.testing.assert_close(tensor, torch.lerp(start[name], trained, share), rtol=1e-5, atol=1e-6)
    assert "mean of the weights, decay 0.9" in (project.folder / "run" / "student" / "README.md").read_text()


def test_two_processes_train_as_one_does(project):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = project(f"{count}.yaml", output=str(folder / "run"), stores=str(folder / "stores"))
        done = launch(count, "distill", recipe, *OPTIONS)
        assert done.returncode == 0, done.stderr
    one, two = (logged_losses(project.folder / n / "run") for n in "12")
    assert_same_losses(one, two, steps=4)
    one, two = (results(project.folder / n / "run")["wise_ft"] for n in "12")
    assert one == two


@pytest.mark.parametrize("more", [[], ["losses.frame_sets.weight=1", "student.adapters=[frame,pooled,text]"]])
def test_stored_features_are_read_while_encoders_do_not_move_and_change_nothing(project, monkeypatch, more):
    sizes = ["losses.frame_sets.count=8", "losses.frame_sets.texts=8", "losses.video_text.more_texts=2"]
    options = ["train.encoders=finetuned", "train.steps=6", "train.frozen_steps=4", "optimizer.clip_lr=1e-2", *more]
    taken = []
    begin = TrainingBatches.begin_with
    monkeypatch.setattr(TrainingBatches, "begin_with", lambda *args: taken.append(args[1].inputs) or begin(*args))
    assert run(distill.main, project(), *options, *sizes, f"output={project.folder / 'features'}") == 0
    assert [type(inputs) for inputs in taken] == [FeatureInputs]
    monkeypatch.setattr(distill_module, "_stored_features", lambda *args: None)
    assert run(distill.main, project(), *options, *sizes, f"output={project.folder / 'pixels'}") == 0
    assert len(taken) == 1
    features, pixels = (logged_losses(project.folder / name) for name in ("features", "pixels"))
    assert_same_losses(pixels, features, steps=6)


@pytest.mark.parametrize(
    "option",
    ["train.frozen_steps=1", "train.chunk_size=2", "teaching.source=online", "losses.joined_clips.weight=1"],
)
def test_pixels_are_read_where_features_would_not_do(project, monkeypatch, option):
    whole, read, project.fill = distill_module._stored_features, [], False
    monkeypatch.setattr(distill_module, "_stored_features", lambda *args: read.append(whole(*args)))
    options = ["train.encoders=finetuned", "train.steps=5", "train.frozen_steps=4", "losses.joined_clips.count=2"]
    assert run(distill.main, project(), *options, "text.max_tokens=16", option) == 0
    assert read == [None]


def test_other_batches_from_the_same_start(project):
    for name, overrides in {"same": [], "other": ["batch_seed=7"]}.items():
        output = f"output={project.folder / name}"
        assert run(distill.main, project(), "train.steps=1", *overrides, output) == 0
    one, other = (logged_losses(project.folder / name) for name in ("same", "other"))
    assert abs(one[0] - other[0]).max() > 1e-4
    recipe = load_recipe(project(), ["batch_seed=7"])
    assert recipe.order_seed == 7 and run_settings(recipe)["batch_seed"] == 7


def test_settings_name_these_options_only_where_they_are_used(project):
    plain, used = (run_settings(load_recipe(project(), overrides)) for overrides in ([], OPTIONS))
    for section, keys in {
        "train": ("lora_rank", "frozen_steps", "ema"),
        "optimizer": ("layer_decay", "l2_start"),
        "student": ("wise_ft",),
    }.items():
        assert not plain[section].keys() & {*keys}
        assert used[section].keys() >= {*keys} - {"lora_rank"}
    assert "batch_seed" not in plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.frozen_steps=1"], "frozen_steps is for encoders that move after them"),
        (["train.encoders=finetuned", "train.frozen_steps=4"], "allowed: fewer than the 4 steps"),
        (["student.wise_ft=[0.5]"], "student.wise_ft is for encoders that train"),
        (["optimizer.layer_decay=0.5"], "optimizer.layer_decay is for encoders that train"),
        (["optimizer.l2_start=0.5"], "optimizer.l2_start needs train.encoders=finetuned, got frozen"),
        (["train.encoders=lora", "optimizer.l2_start=1"], "optimizer.l2_start needs train.encoders=finetuned"),
        (["train.encoders=lora", "optimizer.clip_lr=1e-6"], "clip_lr is 1e-06, at which LoRA's matrices"),
        (
            ["train.encoders=finetuned", "optimizer.clip_lr=1e-3", "optimizer.l2_start=1001"],
            "optimizer.l2_start x optimizer.clip_lr is 1.001",
        ),
        (["train.ema=1"], "train.ema"),
        (["train.encoders=lora", "train.clip_weights=float16"], "needs train.encoders=finetuned, got lora"),
        (
            [
                *("train.encoders=finetuned", "train.clip_weights=float16", "optimizer.name=bert_adam"),
                "optimizer.l2_start=1",
            ],
            "needs train.clip_weights=float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(project, overrides, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(project(), overrides)
    assert message in str(error.value)


def test_too_few_epochs_for_the_steps_at_rest_are_named_before_training(project):
    overrides = ["train.encoders=finetuned", "train.steps=null", "train.epochs=1", "train.frozen_steps=50"]
    with pytest.raises(RecipeError, match=r"train\.frozen_steps is 50; allowed: fewer than the \d+ steps"):
        distill.main.__wrapped__([str(project()), *overrides])


def test_a_teacher_trains_with_them_too(project, capsys):
    train = {"encoders": "finetuned", "steps": 4, "batch_size": 4, "frozen_steps": 1, "ema": 0.5}
    optimizer = {"name": "adamw", "lr": 1e-3, "clip_lr": 1e-3, "layer_decay": 0.5, "l2_start": 0.1}
    teacher = {"name": "xpool", "checkpoint": str(project.folder / "t.pth")}
    recipe = project(teachers=[{**teacher, "training": {"train": train, "optimizer": optimizer}}])
    assert run(train_teacher.main, recipe) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (project.folder / "t-run" / "log.jsonl").read_text().splitlines()]
    rates = [line for line in lines if "lr.clip_1" in line]
    assert rates[0]["lr.clip_1"] == rates[1]["lr.clip_1"] == 0 and 0 < rates[3]["lr.clip_1"] < rates[3]["lr.clip"]
    bad = project("lora.yaml", teachers=[{**teacher, "training": {"train": {**train, "encoders": "lora"}}}])
    assert run(train_teacher.main, bad) == 2
    assert "train.encoders=lora is for students" in capsys.readouterr().err


# WiSE-FT by itself.


def test_the_share_that_validation_prefers_is_left_in_the_student_and_ties_keep_it_as_trained():
    backbone = tiny_backbone("clip")
    start = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    student = StudentModel.from_backbone(backbone, temporal_layers=0)
    name = "visual_projection.weight"
    with torch.no_grad():
        student.backbone.visual_projection.weight.add_(1.0)

    def recall(of):
        return lambda: {"t2v": {"recall_at_1": of(float((student.backbone.state_dict()[name] - start[name]).mean()))}}

    found = interpolate_encoders(student, start, [0.0, 0.4, 1.0], recall(lambda moved: 7.0), Processes())
    assert found == {"share": 1.0, "tried": {"1": 7.0, "0": 7.0, "0.4": 7.0}}
    found = interpolate_encoders(student, start, [0.0, 0.4], recall(lambda moved: -abs(moved - 0.4)), Processes())
    assert found["share"] == 0.4 and found["tried"]["1"] == pytest.approx(-0.6, abs=1e-5)
    moved = student.backbone.get_parameter(name) - start[name]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.4), atol=1e-5, rtol=1e-5)


# Soups.


def test_a_soup_is_the_mean_of_those_that_help_and_is_measured(project, capsys):
    outputs = [project.folder / str(number) for number in range(3)]
    for number, output in enumerate(outputs):
        options = [f"batch_seed={number}", f"output={output}"]
        assert run(distill.main, project(), *options) == 0, capsys.readouterr().err
    students = [output / "student" for output in outputs]
    out = project.folder / "soup"
    assert run(soup_command.main, project(), "--students", *students, "--out", out) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    inside = [path for path in students if f"{path}: " in printed.err and "not in" not in said(printed.err, path)]
    assert inside and f"the mean of {len(inside)} of 3" in printed.err
    states, mean = [load_student(path).state_dict() for path in inside], load_student(out).state_dict()
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            expected = torch.stack([state[name] for state in states]).mean(dim=0)
            torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    assert f"mean of {len(inside)} students" in (out / "README.md").read_text()


def said(printed, path):
    return next(line for line in printed.splitlines() if f"{path}: " in line)


def test_a_soup_takes_in_who_helps_and_leaves_out_who_does_not(project, monkeypatch):
    """Recalls by the sum of a weight: 1 and 2 are better together than alone, 4 spoils any mean."""
    folders = []
    for value in (1.0, 2.0, 4.0):
        student = StudentModel.from_backbone(load_backbone(project.root / "clip"), temporal_layers=0)
        student.processor = build_workspace_processor(project)
        with torch.no_grad():
            student.aggregation.score.bias.fill_(value)
        folders.append(project.folder / str(value))
        student.save_pretrained(folders[-1])
    recalls = {1.0: 10.0, 2.0: 20.0, 4.0: 15.0, 1.5: 20.0, 3.0: 19.0, 7 / 3: 5.0}

    def evaluate(work, student, split, **options):
        metrics = tiny_metrics(0.0)
        if isinstance(student, StudentModel):
            metrics = tiny_metrics(
                min((abs(k - float(student.aggregation.score.bias.detach())), v) for k, v in recalls.items())[1]
            )
        return metrics

    monkeypatch.setattr(soup_module, "_evaluate", evaluate)
    found = soup_module.soup(project(), folders, project.folder / "out")
    tried = [(10.0, True), (20.0, True), (15.0, False)]
    assert found["soup"] == {
        "students": [
            {"folder": str(folder), "recall_at_1": recall, "in_mean": is_member}
            for folder, (recall, is_member) in zip(folders, tried, strict=True)
        ],
        "recall_at_1": 20.0,
    }
    assert float(load_student(project.folder / "out").aggregation.score.bias.detach()) == 1.5


def build_workspace_processor(project):
    recipe = load_recipe(project())
    return build_processor(recipe, load_backbone(project.root / "clip").config)


def tiny_metrics(value):
    direction = dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank"), value)
    return {"t2v": direction, "v2t": direction, "videos": 3, "captions": 6}


def test_students_that_cannot_be_averaged_are_named(project, capsys):
    clip = load_backbone(project.root / "clip")
    one, two = (project.folder / name for name in ("one", "two"))
    for folder, layers in ((one, 0), (two, 1)):
        StudentModel.from_backbone(clip, temporal_layers=layers).save_pretrained(folder)
    out = project.folder / "out"
    assert run(soup_command.main, project(), "--students", one, two, "--out", out) == 2
    assert f"{two}: temporal_layers is 1, that of {one} is 0" in capsys.readouterr().err
    assert run(soup_command.main, project(), "--students", one, "--out", out) == 2
    assert "a soup is of several students, got 1" in capsys.readouterr().err


def saved_student(project, name, **reading):
    student = StudentModel.from_backbone(load_backbone(project.root / "clip"), temporal_layers=0)
    how = build_workspace_processor(project)
    kept = {**how.preprocessing.describe(), "frame_sampling": {**how.frame_sampling, "count": 3}, **reading}
    student.processor = StudentProcessor(how.tokenizer, **kept)
    student.save_pretrained(project.folder / name)
    return project.folder / name


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_tokens", 6), ("mean", [0.0, 0.0, 0.0]), ("frame_sampling", {"kind": "intervals", "count": 2})],
)
def test_students_that_read_differently_are_not_averaged(project, capsys, key, value):
    one, two = saved_student(project, "one"), saved_student(project, "two", **{key: value})
    assert run(soup_command.main, project(), "--students", one, two, "--out", project.folder / "out") == 2
    assert f"{two}: {key} is " in capsys.readouterr().err


def test_a_student_without_a_processor_is_refused_before_anything_is_measured(project, capsys):
    one, two = saved_student(project, "one"), saved_student(project, "two")
    (two / "processor_config.json").unlink()
    assert run(soup_command.main, project(), "--students", one, two, "--out", project.folder / "out") == 2
    told = capsys.readouterr().err
    assert f"{two}: has no processor" in told and "R@1" not in told


def test_a_soup_is_measured_with_the_processor_that_it_is_written_with(project, monkeypatch):
    folders = [saved_student(project, name, max_tokens=4, mean=[0.0, 0.0, 0.0]) for name in ("one", "two")]
    read = []

    def evaluate(work, model, inputs, split, choices, **options):
        if isinstance(model, StudentModel):
            read.append((inputs.mean.tolist(), int(inputs.tokenized.lengths.max())))
        return tiny_metrics(1.0)

    monkeypatch.setattr(soup_module, "evaluate_any", evaluate)
    soup_module.soup(project(), folders, project.folder / "out")
    assert read and set(map(str, read)) == {str(([0.0, 0.0, 0.0], 4))}
    assert load_student(project.folder / "out").processor.max_tokens == 4


# LoRA.


def test_lora_trains_little_and_leaves_nothing_of_itself(project, capsys):
    pytest.importorskip("peft")
    options = ["train.encoders=lora", "train.lora_rank=2", "optimizer.clip_lr=1e-2", "student.wise_ft=[0.5]"]
    assert run(distill.main, project(), *options) == 0, capsys.readouterr().err
    student = load_student(project.folder / "run" / "student")
    kept, start = best(project.folder / "run"), load_backbone(project.root / "clip").state_dict()
    trained = {name for name in kept if "lora_" in name}
    assert trained and all(name.split(".")[-4] in ("q_proj", "v_proj") for name in trained)
    state, share = student.backbone.state_dict(), results(project.folder / "run")["wise_ft"]["share"]
    assert state.keys() == start.keys()
    for name, tensor in start.items():
        base = f"student.backbone.{name.removesuffix('.weight')}"
        if f"{base}.lora_A.default.weight" in kept:
            correction = kept[f"{base}.lora_B.default.weight"] @ kept[f"{base}.lora_A.default.weight"]
            assert correction.abs().max() > 0 and torch.linalg.matrix_rank(correction) <= 2
            torch.testing.assert_close(state[name], tensor + share * correction, rtol=1e-5, atol=1e-6)
        elif name != "logit_scale":
            assert torch.equal(state[name], tensor), name
    assert "LoRA of rank 2, merged" in (project.folder / "run" / "student" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["clip", "siglip", "chinese_clip", "align"])
def test_lora_starts_from_the_same_student_and_merges_to_the_same_outputs(kind):
    pytest.importorskip("peft")
    student = StudentModel.from_backbone(tiny_backbone(kind), temporal_layers=0).eval()
    names, count = list(student.state_dict()), sum(p.numel() for p in student.parameters())
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    insert_lora(student, rank=2, seed=3)
    few = [name for name, parameter in student.backbone.named_parameters() if parameter.requires_grad]
    assert any("lora_B" in name for name in few)
    assert sum(student.backbone.get_parameter(name).numel() for name in few) < 0.2 * count
    assert any(name in few for name in ("logit_scale", "temperature"))
    merge_lora(student)
    assert list(student.state_dict()) == names
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_lora_moves_both_encoders_and_says_which_it_leaves_frozen(tmp_path, caplog):
    pytest.importorskip("peft")
    text = load_text_model(str(save_text_model(tmp_path, DistilBertModel)), pooling="mean")
    student = StudentModel.from_backbone(with_text_model(tiny_backbone("clip"), text), temporal_layers=0)
    insert_lora(student, rank=2, seed=3)
    moved = {name.split(".")[0] for name, p in student.backbone.named_parameters() if p.requires_grad}
    assert moved == {"text_model", "vision_model", "logit_scale"} and not caplog.records
    insert_lora(StudentModel.from_backbone(tiny_backbone("align"), temporal_layers=0), rank=2, seed=3)
    assert "no attention matrices in the vision_model of align: it stays frozen" in caplog.text


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    student = StudentModel.from_backbone(tiny_backbone("clip"), temporal_layers=0)
    with pytest.raises(RecipeError, match=r"needs peft: pip install 'teachclip\[lora\]'"):
        insert_lora(student, rank=2, seed=0)
