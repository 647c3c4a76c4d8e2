"""Pearson's correlation of rows, as a distance."""

from __future__ import annotations

import torch
from torch import Tensor

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
