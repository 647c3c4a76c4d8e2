"""How far a scorer and a teacher agree on which videos fit a text: the measure where there are no captions.

Agreement is not correctness: a student that agrees in all with a teacher makes all of its mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.evaluation.metrics import rank_metrics
from teachclip.evaluation.retrieval import ranks_from_matrix
from teachclip.evaluation.splits import Blocks
from teachclip.processes import Processes
from teachclip.scorer import Scorer, select_tokens, tokens_to
from teachclip.scoring.inputs import Inputs, encode_split


@dataclass(frozen=True)
class Agreement:
    """What a teacher says of a split: its video-text relevance `scores` (texts, videos), float32."""

    label: str
    scores: np.ndarray
    weight: float = 1.0

    def of(self, scores: Tensor) -> dict[str, Any]:
        """Return how far other `scores` (texts, videos) agree.

        `t2v`: the ranks (see `rank_metrics`) that they give to the video that the teacher ranks first for each text:
        `recall_at_1` is the share of texts, in percent, with the same first video. `rank_correlation`: Spearman's of
        both orders of all videos for a text, mean over texts; 0 if there is none, as of a single video.
        """
        first = self.scores.argmax(axis=1)
        correlation = mean_spearman(scores, torch.from_numpy(self.scores))
        return {
            "t2v": rank_metrics(ranks_from_matrix(scores, first).t2v),
            "rank_correlation": 0.0 if correlation is None else correlation,
        }


def agreement_with(
    scorer: Scorer,
    inputs: Inputs,
    choices: Sequence[Agreement],
    blocks: Blocks,
    device: torch.device | str,
    processes: Processes | None = None,
    *,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the agreement of a scorer with each teacher, by its label. All processes return the same numbers."""
    sides = encode_split(
        scorer,
        inputs,
        batch_size=blocks.batch_size,
        device=device,
        processes=processes,
        progress=progress,
        precision=blocks.precision,
    )
    texts, videos = (tokens_to(side, device) for side in sides)
    with torch.no_grad():
        rows = [
            scorer.score(select_tokens(texts, slice(start, start + blocks.text_block)), videos).float().cpu()
            for start in range(0, inputs.text_count, blocks.text_block)
        ]
    scores = torch.cat(rows)
    return {choice.label: choice.of(scores) for choice in choices}


def mean_agreement(measured: dict[str, dict[str, Any]], choices: Sequence[Agreement]) -> dict[str, Any]:
    """Return the mean over the teachers, by weight: `t2v`, `rank_correlation`; and their labels, `agreement_with`."""
    weights = np.array([choice.weight for choice in choices]) / sum(choice.weight for choice in choices)

    def mean(values: list[float]) -> float:
        return float(np.dot(weights, values))

    parts = [measured[choice.label] for choice in choices]
    return {
        "t2v": {name: mean([part["t2v"][name] for part in parts]) for name in parts[0]["t2v"]},
        "rank_correlation": mean([part["rank_correlation"] for part in parts]),
        "agreement_with": [choice.label for choice in choices],
    }


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
    """Return the mean over rows of `spearman` of two (captions, videos); None if no row has one."""
    correlations = [spearman(a, b) for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    defined = [value for value in correlations if not np.isnan(value)]
    return float(np.mean(defined)) if defined else None
