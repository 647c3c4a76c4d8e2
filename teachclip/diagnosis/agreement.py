"""How far a student and its teacher agree: on rankings, on frames, and on which queries they do not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TOP = 10
"""How many of the first videos are compared."""


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values (n,) from 1, ascending; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Return Spearman's rank correlation of two (n,): Pearson's of their average ranks. NaN if one is constant."""
    a, b = (ranks - ranks.mean() for ranks in (average_ranks(left), average_ranks(right)))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def mean_spearman(left: Tensor, right: Tensor) -> float | None:
    """Return the mean over rows of `spearman` of two (captions, videos); None if it is nowhere defined."""
    found = [spearman(a, b) for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    defined = [value for value in found if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None


def top_overlap(left: Tensor, right: Tensor, *, top: int = TOP) -> float:
    """Return the mean share of the `top` highest columns of a row of `left` that are so in `right` too.

    Both (captions, videos); of fewer videos than `top`, all are taken.
    """
    count = min(top, left.shape[1])
    marks = []
    for scores in (left, right):
        mark = torch.zeros_like(scores, dtype=torch.bool)
        marks.append(mark.scatter_(1, scores.topk(count, dim=1).indices, True))
    return float((marks[0] & marks[1]).sum(dim=1).float().mean() / count)


def share_overlap(left: Tensor, right: Tensor) -> float:
    """Return the mean over rows of sum_f min(left, right): 1 for equal shares, 0 for shares on other frames.

    Both (pairs, frames), rows that add up to 1.
    """
    return float(torch.minimum(left, right).sum(dim=1).mean())


def worst_captions(
    student_ranks: np.ndarray, teacher_ranks: np.ndarray, caption_videos: np.ndarray, count: int
) -> np.ndarray:
    """Return the captions whose right video the student ranks the most places behind the teacher's rank of it.

    All (captions,), ranks from 1. At most `count` rows, the worst first, one per video, and none where the student
    is not behind.
    """
    behind = student_ranks - teacher_ranks
    order = np.argsort(-behind, kind="stable")
    _, firsts = np.unique(caption_videos[order], return_index=True)
    worst = order[np.sort(firsts)][:count]
    return worst[behind[worst] > 0]
