"""How far a student and its teacher agree: on rankings, on frames, and on which queries they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.diagnosis.features import Features, FrameTeacher, Scores
from teachclip.evaluation.agreement import mean_spearman

TOP = 10
"""Number of top-ranked videos that are compared."""


def measure_agreement(
    features: Features, frame_teacher: FrameTeacher | None, student: Scores, teacher: Scores
) -> list[dict[str, Any]]:
    """Return the measures of agreement: name, label, value (None if undefined) and description of each."""
    scores = student.scores, teacher.scores
    measures: list[tuple[str, str, float | None, str]] = [
        (
            "spearman",
            "rank correlation of videos",
            mean_spearman(*scores),
            "Spearman's rank correlation of both models' scores of all videos for a caption; mean over captions.",
        ),
        (
            "top_overlap",
            f"overlap of the top {TOP} videos",
            top_overlap(*scores),
            f"Share of the student's top {TOP} videos for a caption that are also the teacher's; mean over captions.",
        ),
    ]
    if frame_teacher is not None:
        weights, relevance = features.weights[features.caption_videos].cpu(), frame_teacher.relevance.cpu()
        uniform = features.mask.float() / features.mask.float().sum(dim=1, keepdim=True).clamp_min(1)
        measures += [
            (
                "frame_overlap",
                "overlap of frame weights",
                weight_overlap(weights, relevance),
                "Sum over a video's frames of the lesser of the student's weight and the teacher's relevance for the "
                "video's caption; mean over captions.",
            ),
            (
                "uniform_overlap",
                "the same for uniform weights",
                weight_overlap(uniform[features.caption_videos].cpu(), relevance),
                "For comparison: the overlap of a student with mean pooling.",
            ),
        ]
    return [dict(zip(("name", "label", "value", "description"), entry, strict=True)) for entry in measures]


def top_overlap(left: Tensor, right: Tensor, *, top: int = TOP) -> float:
    """Return the mean over rows of the share of the `top` highest columns of `left` that are those of `right` too.

    Both (captions, videos). With fewer videos than `top`, all count.
    """
    count = min(top, left.shape[1])
    masks = []
    for scores in (left, right):
        mask = torch.zeros_like(scores, dtype=torch.bool)
        masks.append(mask.scatter_(1, scores.topk(count, dim=1).indices, True))
    return float((masks[0] & masks[1]).sum(dim=1).float().mean() / count)


def weight_overlap(left: Tensor, right: Tensor) -> float:
    """Return the mean over rows of sum_f min(left, right): 1 for equal weights, 0 for weights on other frames.

    Both (pairs, frames), rows sum to 1.
    """
    return float(torch.minimum(left, right).sum(dim=1).mean())


def worst_captions(
    student_ranks: np.ndarray, teacher_ranks: np.ndarray, caption_videos: np.ndarray, count: int
) -> np.ndarray:
    """Return the captions whose video the student ranks the most places below the teacher's rank of it.

    All (captions,), ranks from 1. At most `count` rows, the worst first, one per video, and only captions for which
    the student is behind.
    """
    behind = student_ranks - teacher_ranks
    order = np.argsort(-behind, kind="stable")
    _, firsts = np.unique(caption_videos[order], return_index=True)
    worst = order[np.sort(firsts)][:count]
    return worst[behind[worst] > 0]
