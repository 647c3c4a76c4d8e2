"""Losses and gradients of a step: in one pass, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from teachclip.scoring.inputs import Batch
from teachclip.training.chunked_step import average_gradients, chunked_backward, same_everywhere
from teachclip.training.step_times import BACKWARD, BOTH, FORWARD
from teachclip.training.task import Task

Step = Callable[[Batch], dict[str, Tensor]]
"""Takes a batch, adds the gradient of its loss to that of every parameter, and returns `loss` and its terms."""


def prepare_step(
    task: Task,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    chunk_size: int | None = None,
    *,
    mark: Callable[[str], None] = lambda part: None,
) -> tuple[Step, Any]:
    """Return the step of a task on the accelerator's device, and its optimizer in Accelerate's wrapper.

    `chunk_size`: pairs that a process encodes with a graph at a time; None: all of its own. Either way the gradients
    are those of the global batch, equal on all processes. `mark` gets the part of the step that has ended.
    """
    task.to(accelerator.device)
    if chunk_size is None:
        wrapped, optimizer = accelerator.prepare(task, optimizer)

        def whole(batch: Batch) -> dict[str, Tensor]:
            wrapped.train()
            losses: dict[str, Tensor] = wrapped(batch)
            mark(FORWARD)
            accelerator.backward(losses["loss"])
            mark(BACKWARD)
            return losses

        return whole, optimizer
    # Not in DistributedDataParallel, which adds up gradients of the first backward pass that reaches a parameter.
    same_everywhere(task)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]

    def chunked(batch: Batch) -> dict[str, Tensor]:
        task.train()
        losses = chunked_backward(
            task, batch, chunk_size, autocast=accelerator.autocast, backward=accelerator.backward
        )
        average_gradients(parameters)
        mark(BOTH)
        return losses

    return chunked, accelerator.prepare(optimizer)
