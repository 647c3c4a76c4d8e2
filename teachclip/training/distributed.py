"""Several processes: starting them, telling a bad launch, and gathering features with their gradient."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch import Tensor

from teachclip.errors import LaunchError, RecipeError
from teachclip.processes import Processes
from teachclip.registry import closest

WAIT = timedelta(days=2)
"""How long processes wait for each other: one decodes a whole data set while the others wait."""


def build_accelerator(
    *,
    mixed_precision: str = "no",
    trackers: list[str] | None = None,
    output: str | None = None,
    dry_run: bool = False,
    tf32: bool = False,
    same_graph: bool = True,
) -> Accelerator:
    """Start Accelerate and check that the processes found each other.

    On a machine without a GPU, several processes train together over gloo. Raises LaunchError if processes were
    started that do not know of each other, RecipeError for a tracker whose package is not installed. A `dry_run`
    starts no tracker. `tf32`: whether products of float32 matrices may round their factors to TensorFloat-32.
    `same_graph`: every step uses the same parameters as often, and no buffers change, which saves
    DistributedDataParallel work; a teacher of somebody else's may do otherwise.
    """
    available = sorted(str(tracker.value) for tracker in get_available_trackers())
    for tracker in trackers or []:
        if tracker not in available:
            known = ", ".join(available) or "none is installed"
            raise RecipeError(
                f"train.trackers: {tracker!r} is not installed; available: {known}{closest(tracker, available)}"
            )
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise LaunchError("train.mixed_precision=fp16 needs a GPU; use bf16 or no on this machine")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    ddp = DistributedDataParallelKwargs(
        static_graph=same_graph, broadcast_buffers=not same_graph, gradient_as_bucket_view=True
    )
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # it refuses a second precision, which the next run in a process may have
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=mixed_precision,
            log_with=None if dry_run else trackers or None,
            project_dir=output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT), ddp],
        )
    except ValueError as error:  # what Accelerate and torch raise when the launcher's variables are incomplete
        raise LaunchError(f"{started} processes cannot be started together: {error}") from error
    if started != accelerator.num_processes:
        raise LaunchError(
            f"{started} processes were started, but each trains on its own (Accelerate sees "
            f"{accelerator.num_processes}); start them with `accelerate launch --multi_gpu --num_processes {started}`"
        )
    return accelerator


def processes_of(accelerator: Accelerator) -> Processes:
    """Describe the processes of an Accelerator to the parts that do not know Accelerate."""
    if accelerator.num_processes == 1:
        return Processes()

    def gather(item: Any) -> list[Any]:
        return list(gather_object([item]))

    return Processes(
        index=accelerator.process_index,
        count=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
        gather=gather,
    )


class _Gather(torch.autograd.Function):
    """Gather equal-sized tensors of all processes; the gradient of a part is the sum over all processes.

    With the loss of the whole batch computed on every process and gradients averaged by DDP, the result is exactly
    the gradient of one process with the whole batch. (Torch's own functions for this are deprecated or private.)
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        ctx.rows = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        start = ctx.rows * torch.distributed.get_rank()
        return total[start : start + ctx.rows]


def gather_tokens(tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows of all processes of every tensor of a text or video, as `gather_with_gradient` does."""
    return {name: gather_with_gradient(tensor) for name, tensor in tokens.items()}


def gather_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows of all processes of tensors (rows, columns), in one exchange for each type of number."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return dict(tensors)
    joined: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
        alike = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        rows = gather_with_gradient(torch.cat(list(alike.values()), dim=1))
        parts = rows.split([tensor.shape[1] for tensor in alike.values()], dim=1)
        joined |= {name: part.contiguous() for name, part in zip(alike, parts, strict=True)}  # sums follow memory
    return joined


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Join the rows of all processes, in process order. (rows, ...) becomes (processes * rows, ...)."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return _Gather.apply(tensor.to(torch.uint8)).bool()
    return _Gather.apply(tensor)
