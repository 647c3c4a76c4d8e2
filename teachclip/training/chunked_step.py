"""Exact gradients of a whole batch in the memory of a part of it (gradient caching; Gao et al. 2021, RepL4NLP).

Contrast and distillation compare all pairs of a batch, so that it cannot be cut into steps that are added up. But the
losses need no more of a pair than its embeddings: these are computed chunk by chunk without a graph, then the losses
and the gradients of the embeddings, and then each chunk again with its graph, through which its embeddings' gradients
go back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from teachclip.scorer import concat_tokens
from teachclip.scoring.chunks import chunks_of
from teachclip.scoring.inputs import Batch
from teachclip.training.task import Task

BUCKET = 2**23
"""Numbers that processes add up at a time."""


def chunked_backward(
    task: Task,
    batch: Batch,
    size: int,
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """Compute the losses of a batch and add their gradient to that of every parameter, `size` pairs at a time.

    The result is that of `task(batch)` and `backward(loss)`, up to rounding. What is random in the encoders, such as
    dropout, is drawn for each chunk once and repeated when the chunk is computed again. `autocast` returns the
    context of a forward pass; `backward` takes a loss back, scaled if it is to be scaled. The gradients are those of
    this process: see `average_gradients`.
    """
    chunks = list(chunks_of(batch, size))
    states, parts = [], []
    # An autocast context of its own for each pass: weights that one casts without a graph are kept until it ends.
    with torch.no_grad(), autocast():
        for chunk in chunks:
            states.append(_random_state(batch["frame_mask"].device))
            parts.append(task.encode(chunk))
    after = _random_state(batch["frame_mask"].device)
    encoded = {
        name: tensor.requires_grad_() if tensor.is_floating_point() else tensor
        for name, tensor in concat_tokens(parts).items()
    }
    with autocast():
        losses = task.losses(batch, encoded)
    backward(losses["loss"])
    gradients = {name: tensor.grad for name, tensor in encoded.items() if tensor.grad is not None}
    starts = dict.fromkeys(gradients, 0)
    for chunk, state in zip(chunks, states, strict=True):
        _set_random_state(state, batch["frame_mask"].device)
        with autocast():
            again = task.encode(chunk)
        outputs, given = [], []
        for name, gradient in gradients.items():
            rows = slice(starts[name], starts[name] + len(again[name]))
            starts[name] = rows.stop
            if again[name].requires_grad:  # not where all that it comes from is frozen
                outputs.append(again[name])
                given.append(gradient[rows])
        if outputs:
            torch.autograd.backward(outputs, given)
    _set_random_state(after, batch["frame_mask"].device)
    return {name: value.detach() for name, value in losses.items()}


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean of the gradients of all, as DistributedDataParallel does. One alone: nothing."""
    if not torch.distributed.is_initialized() or (count := torch.distributed.get_world_size()) == 1:
        return
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket]).div_(count)
        torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def same_everywhere(module: nn.Module) -> None:
    """Give every process the parameters of the first, as DistributedDataParallel does. One alone: nothing."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        for parameter in module.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put gradients of one type together, up to about `BUCKET` numbers."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype == dtype:
                bucket.append(gradient)
                if sum(each.numel() for each in bucket) >= BUCKET:
                    yield bucket
                    bucket = []
        if bucket:
            yield bucket


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's generators of the host and, if it is another, of a device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
