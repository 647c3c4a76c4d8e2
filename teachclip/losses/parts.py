"""What several losses share: correlation by rows, and checks of what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from teachclip.registry import closest, resolve

CONSTANT = 1e-6
"""A row whose spread is below this share of its length is constant up to float32 rounding: it has no correlation."""


def correlation_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `1 - corr(student_row, teacher_row)` of every row, corr being Pearson's (the cosine of centred rows).

    `student`, `teacher`: (rows, n) of one floating type; `mask`: (rows, n) bool, True on elements that take part.
    Returns (rows,) in [0, 2]. Where either row is constant (see `CONSTANT`) the result is 1 with no gradient: the
    limit does not exist, and dividing by a small constant instead would blow rounding noise up into a gradient.
    """
    mask = torch.ones_like(student, dtype=torch.bool) if mask is None else mask
    left, left_varies = _centred_unit(student, mask)
    right, right_varies = _centred_unit(teacher, mask)
    return 1 - (left * right).sum(-1) * (left_varies & right_varies)


def _centred_unit(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows minus their mean, scaled to length 1, and which rows vary at all (the others are zero)."""
    rows = rows.masked_fill(~mask, 0)
    mean = rows.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    centred = (rows - mean).masked_fill(~mask, 0)
    square = centred.square().sum(-1, keepdim=True)
    # Not written as `>`: a row with NaN must count as varying, so that NaN reaches the loss and is noticed.
    varies = ~(square <= CONSTANT**2 * rows.detach().square().sum(-1, keepdim=True))
    # The inner fill keeps the square root away from zero, where its gradient is infinite.
    unit = centred.masked_fill(~varies, 0) / square.masked_fill(~varies, 1).sqrt()
    return unit, varies.squeeze(-1)


def pick(what: str, kind: str, table: Mapping[str, str]) -> Callable[..., Any]:
    """Return the function of a kind of loss: a name of `table`, or `module:name`.

    Raises ValueError for an unknown name, RecipeError for a `module:name` that cannot be imported.
    """
    if kind not in table and ":" not in kind:
        known = ", ".join(table)
        raise ValueError(
            f"unknown kind of {what} loss {kind!r}; known: {known}, or module:name{closest(kind, table)}"
        )
    function: Callable[..., Any] = resolve(f"{what} loss", kind, table)
    return function


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless a tensor is a matrix with something in it."""
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name} must be a matrix with at least one element, got shape {tuple(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless two tensors have the same shape."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {other_name} has {tuple(other.shape)}; they must be equal"
        )


def check_mask(name: str, mask: Tensor, of: Tensor) -> None:
    """Raise ValueError unless a mask is bool and has the shape of what it masks."""
    if mask.dtype != torch.bool or mask.shape != of.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"{name} must be bool of shape {tuple(of.shape)}, got {got}")
