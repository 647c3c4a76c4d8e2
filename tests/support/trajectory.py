"""The recorded training runs of the official code, made again by the toolkit's own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import golden_inputs
from golden_models import rule_state
from torch import Tensor

from teachclip.models.student import StudentModel, load_student, student_to_official
from teachclip.scoring.inputs import Batch
from teachclip.training.distributed import build_accelerator
from teachclip.training.loop import Schedule, fit
from teachclip.training.optim import build_optimizer, freeze_clip_inputs, parameter_groups, published_schedule
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher

TEACHERS = ("xclip", "ts2net", "xpool")
BATCHES = 3


def batch_arrays(info: dict[str, Any], number: int, seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
    """One of the three recorded batches; the second is padded."""
    config = info["config"]
    arrays = golden_inputs(
        (seeds or info["input_seeds"])[number],
        batch=config["B"],
        frames=config["F"],
        size=config["R"],
        tokens=config["W"],
        n_valid=info["n_valid_batch1"] if number == 1 else None,
    )
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class RecordedBatches:
    """Feeds the loop with the recorded batches, 0, 1, 2 in every epoch, and with stored relevance."""

    def __init__(
        self,
        info: dict[str, Any],
        relevance: Sequence[Callable[[int], tuple[Tensor, Tensor]]] = (),
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.batches = [batch_arrays(info, number, seeds) for number in range(BATCHES)]
        self.relevance = relevance

    def __getitem__(self, step: int) -> Batch:
        batch = dict(self.batches[step % BATCHES])
        pixels = batch.pop("pixel_values")
        rows = torch.arange(len(pixels))
        # float64, as the recorded pixels are no bytes; scaled so that normalising gives them back
        batch |= {"frames": pixels.double() * 255, "mean": torch.zeros(3), "std": torch.ones(3)}
        batch |= {"rows": rows, "video_rows": rows}
        for number, read in enumerate(self.relevance):
            batch[f"video_text.{number}"], batch[f"frame_text.{number}"] = read(step % BATCHES)
        return batch

    def loader(self, start: int, steps: int, *, workers: int) -> Iterator[Batch]:
        return (self[step] for step in range(start, steps))


@dataclass
class Trajectory:
    """What a run showed, step by step, and the student it left."""

    student: StudentModel
    initial: dict[str, Tensor]
    groups: dict[str, int]
    """The optimizer's group of every tensor, by official name; -1 if it is in none."""
    log: list[dict[str, float]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    frame_weights: list[Tensor] = field(default_factory=list)

    def final(self) -> dict[str, Tensor]:
        return student_to_official(self.student)


class _Log(Run):
    """Keeps what the loop logs, and writes no checkpoint: they are 30 MB each."""

    lines: list[dict[str, float]]

    def log(self, values: Any) -> None:
        if "loss" in values:
            self.lines.append(dict(values))

    def save(self, *arguments: Any) -> None:
        pass


def train(
    info: dict[str, Any],
    run: dict[str, Any],
    folder: Path,
    relevance: Sequence[Callable[[int], tuple[Tensor, Tensor]]] = (),
    *,
    online: Sequence[OnlineTeacher] = (),
    prepare: Callable[[StudentModel], None] = lambda student: None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
) -> Trajectory:
    """Train the student of a recorded run, with the given relevance or with online teachers.

    `steps`: stop after so many, at the rates that they have in the whole run.
    """
    steps = steps or run["steps"]
    initial = rule_state(info["manifest"], info["weight_seeds"]["student"])
    student = load_student(initial, mask_padding=False)
    freeze_clip_inputs(student)
    prepare(student)
    lr = run["lr"]
    groups = parameter_groups(student, lr=lr, clip_lr=lr * run["coef_lr"], attention_lr=10 * lr, weight_decay=0.2)
    optimizer = build_optimizer("bert_adam", groups)
    result = Trajectory(student, initial, group_numbers(student, groups))

    def record(module: StudentModel, inputs: object, output: Any) -> None:
        result.logits.append(output.logits_per_text.detach())
        result.frame_weights.append(output.frame_weights.detach())

    hook = student.register_forward_hook(record)
    optimizer.register_step_pre_hook(
        lambda stepped, *_: result.rates.append([group["lr"] for group in stepped.param_groups])
    )
    log = _Log(folder, {})
    log.lines = result.log
    log.open()
    fit(
        DistillationTask(student, DistillationTerms(), stored_weights=[1.0] * len(relevance), online=online),
        optimizer,
        RecordedBatches(info, relevance, seeds),  # type: ignore[arg-type]
        build_accelerator(),
        log,
        Schedule(
            steps=steps,
            rate=lambda progress: published_schedule(progress * steps / run["steps"]),
            max_grad_norm=1.0,
            evaluate_every=steps,
            checkpoint_every=steps,
            log_every=1,
        ),
        None,
    )
    hook.remove()
    student.eval()
    return result


def group_numbers(student: StudentModel, groups: list[dict[str, Any]]) -> dict[str, int]:
    """Return the group of every tensor by its official name: the weights are written out as group numbers."""
    numbers = {parameter: number for number, group in enumerate(groups) for parameter in group["params"]}
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(numbers.get(parameter, -1))
        marked = student_to_official(student)
        for name, parameter in student.named_parameters():
            parameter.copy_(before[name])
    assert all(tensor.min() == tensor.max() for tensor in marked.values())
    return {key: int(tensor.flatten()[0]) for key, tensor in marked.items()}


def norms(tensors: dict[str, Tensor], keys: Sequence[str]) -> np.ndarray:
    """L2 norms in float64."""
    return np.array([tensors[key].double().norm().item() for key in keys])
