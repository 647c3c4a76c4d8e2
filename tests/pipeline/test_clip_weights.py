"""Commands on a recipe that trains CLIP's weights in float16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_backbones import tiny_backbone

from teachclip import load_student
from teachclip.cli import distill, evaluate, export, train_teacher
from teachclip.errors import RecipeError
from teachclip.models.student import StudentModel
from teachclip.pipeline.encoders import set_clip_weights
from teachclip.training.checkpoint import newest_checkpoint
from teachers import load_teacher

OPTIMIZER = {"name": "bert_adam", "lr": 1e-3, "clip_lr": 1e-6, "attention_lr": 1e-2}
TRAIN = {"encoders": "finetuned", "clip_weights": "float16"}


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def best_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(folder / "checkpoints", "best") / "model.safetensors")


def test_the_exported_student_has_the_float16_weights_and_the_measured_results(project):
    recipe = project(train=TRAIN, optimizer=OPTIMIZER)
    assert run(distill.main, recipe) == 0
    output = project.folder / "run"
    best = best_weights(output)
    halves = {key for key, tensor in best.items() if tensor.dtype == torch.float16}
    assert any(key.endswith("self_attn.q_proj.bias") for key in halves)
    student = load_student(output / "student")
    for key, tensor in student.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, best[f"student.{key}"].float()), key
    assert run(evaluate.main, recipe, "--model", "student", "--out", project.folder / "again.json") == 0
    results = json.loads((output / "results.json").read_text())
    assert json.loads((project.folder / "again.json").read_text())["test"]["t2v"] == results["test"]["t2v"]
    assert run(export.main, recipe, "--out", project.folder / "half", "--dtype", "float16") == 0
    stored = load_file(project.folder / "half" / "model.safetensors")
    assert all(torch.equal(stored[key.removeprefix("student.")], best[key]) for key in halves)


def test_a_teacher_can_be_trained_in_float16(project):
    checkpoint = project.folder / "trained.pth"
    training = {"train": {"steps": 2, "batch_size": 4, **TRAIN}, "optimizer": OPTIMIZER}
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(checkpoint), "training": training}])
    assert run(train_teacher.main, recipe) == 0
    best = best_weights(project.folder / "trained-run")
    teacher = load_teacher("xpool", checkpoint)
    key = "clip.visual_projection.weight"
    assert best[f"teacher.{key}"].dtype == torch.float16
    assert torch.equal(teacher.state_dict()[key], best[f"teacher.{key}"].float())


def test_a_dry_run_takes_its_step_in_float16(project, capsys):
    assert run(distill.main, project(train=TRAIN, optimizer=OPTIMIZER), "--dry-run") == 0
    assert "dry run passed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.encoders=frozen", "needs train.encoders=finetuned, got frozen"),
        ("train.mixed_precision=bf16", "needs train.mixed_precision=no, got bf16"),
        ("optimizer.name=adamw", "needs optimizer.name=bert_adam, got adamw (second moment and eps"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(project, capsys, override, message):
    recipe = project(train=TRAIN, optimizer=OPTIMIZER)
    assert run(distill.main, recipe, override) == 2
    printed = capsys.readouterr().err
    assert f"train.clip_weights=float16 {message}" in printed and printed.count("\n") == 1


def test_a_teacher_s_training_is_checked_as_well(project, capsys):
    training = {"train": {"steps": 2, "clip_weights": "float16"}, "optimizer": {"name": "adamw"}}
    recipe = project(teachers=[{"name": "xpool", "checkpoint": "t.pth", "training": training}])
    assert run(train_teacher.main, recipe) == 2
    assert "teachers.0.training: train.clip_weights=float16 needs optimizer.name=bert_adam" in capsys.readouterr().err


def test_towers_that_are_no_clip_are_refused_in_float16():
    student = StudentModel.from_backbone(tiny_backbone("siglip"), temporal_layers=0)
    with pytest.raises(RecipeError, match="float16 is for CLIP's encoders, these are of a SiglipModel"):
        set_clip_weights(student, "float16")
    set_clip_weights(student, "float32")
