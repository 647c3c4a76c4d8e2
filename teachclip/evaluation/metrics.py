"""Retrieval metrics of ranks that count from 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from teachclip.errors import DataError

CUTOFFS = (1, 5, 10)


def rank_metrics(ranks: np.ndarray, *, lower_median: bool = False) -> dict[str, float]:
    """Return recall_at_1, recall_at_5, recall_at_10 in percent, median_rank and mean_rank.

    `ranks`: (queries,), the rank of each query's own item, 1 is best. With an even number of queries the median is
    the mean of the two middle ranks, as in numpy; `lower_median` takes the lower of the two, as in torch and in the
    text-to-video results of the official TeachCLIP code. Raises DataError if there is no rank or one is below 1.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size:
        raise DataError(f"metrics need at least one rank, got ranks of shape {ranks.shape}")
    if not (ranks >= 1).all():  # also true for NaN
        raise DataError(f"ranks count from 1, got {ranks.min()}")
    metrics = {f"recall_at_{cutoff}": 100.0 * float((ranks <= cutoff).mean()) for cutoff in CUTOFFS}
    median = np.sort(ranks)[(ranks.size - 1) // 2] if lower_median else np.median(ranks)
    return metrics | {"median_rank": float(median), "mean_rank": float(ranks.mean(dtype=np.float64))}


def sum_of_recalls(*directions: Mapping[str, float]) -> float:
    """Return the sum of all recalls, in percent, of the metrics of both directions (SumR of the papers)."""
    return sum(metrics[f"recall_at_{cutoff}"] for metrics in directions for cutoff in CUTOFFS)
