"""Training with CLIP's linear weights in float16: how far CLIP moves, and that runs survive all that runs must."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import start
from safetensors.torch import load_file
from tiny import tiny_batches, tiny_schedule, tiny_student
from torch import Tensor

from teachclip.models.student import StudentModel
from teachclip.pipeline.encoders import set_clip_weights
from teachclip.training.checkpoint import newest_checkpoint
from teachclip.training.distributed import build_accelerator
from teachclip.training.loop import fit
from teachclip.training.optim import build_optimizer, freeze_clip_inputs, parameter_groups
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask, DistillationTerms

SCRIPT = Path(__file__).parents[1] / "support" / "train_tiny.py"


def nothing_found() -> dict[str, Any]:
    return {"t2v": {"recall_at_1": 0.0}}


def train(
    folder: Path, clip_weights: str, *, steps: int = 12, validate: Callable[[], dict[str, Any]] = nothing_found
) -> tuple[StudentModel, Run]:
    """Train the tiny student at the published rates."""
    student = tiny_student()
    freeze_clip_inputs(student)
    set_clip_weights(student, clip_weights)
    groups = parameter_groups(student, lr=1e-4, clip_lr=1e-7, attention_lr=1e-3, weight_decay=0.2)
    run = Run(folder, {"clip_weights": clip_weights})
    run.open()
    fit(
        DistillationTask(student, DistillationTerms(), stored_weights=(1.0,)),
        build_optimizer("bert_adam", groups),
        tiny_batches(),
        build_accelerator(),
        run,
        tiny_schedule(steps),
        validate,
    )
    return student, run


def ways(student: StudentModel) -> list[float]:
    """Relative way of every trained matrix of CLIP's linear maps."""
    start = dict(tiny_student().named_parameters())
    return [
        ((parameter - start[name]).norm() / start[name].norm()).item()
        for name, parameter in student.float().named_parameters()
        if name.startswith("backbone.") and ("_proj" in name or ".fc" in name) and name.endswith("weight")
    ]


def test_in_float16_clip_moves_far_and_in_float32_hardly(tmp_path: Path) -> None:
    half, single = (ways(train(tmp_path / kind, kind)[0]) for kind in ("float16", "float32"))
    assert len(half) == 26
    assert np.median(half) > 10 * np.median(single)
    assert np.median(half) > 5e-5
    # In float32 each of 12 steps makes a way of the rate: 1e-7 of weights of about 0.1.
    assert max(single) < 1e-5


def test_checkpoints_hold_float16_and_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", "float16", steps=9)

    def interrupt() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return nothing_found()

    with pytest.raises(KeyboardInterrupt, match="stopped and saved after step 4 of 9"):
        train(tmp_path / "cut", "float16", steps=9, validate=interrupt)
    newest = newest_checkpoint(tmp_path / "cut" / "checkpoints", "step")
    assert newest is not None
    optimizer = load_file(newest / "optimizer.safetensors")
    name = "student.backbone.visual_projection.weight"
    kinds = [load_file(newest / "model.safetensors")[name], optimizer[f"exp_avg.{name}"]]
    assert [tensor.dtype for tensor in kinds] == [torch.float16] * 2
    assert kinds[1].abs().max() > 0
    resumed, _ = train(tmp_path / "cut", "float16", steps=9)
    after = resumed.state_dict()
    for key, tensor in whole.state_dict().items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key


def test_the_best_weights_are_loaded_and_exported_exactly(tmp_path: Path) -> None:
    student, run = train(tmp_path / "run", "float16", steps=3)
    best = run.best_weights()
    task = DistillationTask(student, DistillationTerms())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    task.load_state_dict(best)
    assert student.backbone.text_projection.weight.dtype == torch.float16
    student.float().save_pretrained(tmp_path / "single")
    again = StudentModel.from_pretrained(tmp_path / "single")
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, best[f"student.{key}"].float()), key
    again.half().save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    key = "backbone.text_projection.weight"
    assert torch.equal(stored[key], best[f"student.{key}"])


def weights(folder: Path) -> dict[str, Tensor]:
    newest = newest_checkpoint(folder / "checkpoints", "step")
    assert newest is not None
    return load_file(newest / "model.safetensors")


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    for count in (1, 2):
        done = start(SCRIPT, tmp_path / str(count), 5, "", 0, "float16", processes=count).finish()
        assert done.returncode == 0, done.stderr
    logs = [[json.loads(line) for line in (tmp_path / str(n) / "log.jsonl").open()] for n in (1, 2)]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 5
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert {key: tensor.dtype for key, tensor in one.items()} == {key: tensor.dtype for key, tensor in two.items()}
    key = "student.backbone.visual_projection.weight"
    initial = tiny_student().backbone.visual_projection.weight
    moved = [weights[key].float() - initial for weights in (one, two)]
    assert one[key].dtype == torch.float16 and moved[0].norm() > 0
    assert (moved[0] - moved[1]).norm() < 0.2 * moved[0].norm()
