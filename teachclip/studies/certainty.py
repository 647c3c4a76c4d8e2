"""How far a difference of two variants depends on which videos they were tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachclip.evaluation.certainty import LEVEL, draws
from teachclip.evaluation.per_query import PerQuery

Queries = Mapping[str, Sequence[Any]]
"""`video` and `rank` of every text query of a run."""


def queries_of(results: PerQuery) -> dict[str, list[Any]]:
    """Return what is kept of each text query: the video that it is about, and its rank."""
    rows = [row for row, direction in enumerate(results.direction) if direction == "t2v"]
    return {"video": [results.video[row] for row in rows], "rank": [results.rank[row] for row in rows]}


def video_interval(
    runs: Sequence[Queries], others: Sequence[Queries], cutoff: int, *, same_videos: bool
) -> tuple[float, float] | None:
    """Return the ends of a 95 % interval of the difference in recall at `cutoff`, in percent.

    `runs`, `others`: of two variants, seed by seed, on the same queries. A paired bootstrap draws whole videos, as
    their captions are not independent (Efron and Tibshirani, 1993, chapter 13). `same_videos`: all seeds are tested
    on the same videos, whose gain is then their mean over the seeds; otherwise each seed's videos are drawn by
    themselves. None if what is compared was not tested on the same queries.
    """
    pairs = [(run["video"], other["video"]) for run, other in zip(runs, others, strict=True)]
    if any(list(one) != list(other) for one, other in pairs):
        return None
    if same_videos and any(set(one) != set(pairs[0][0]) for one, _ in pairs):
        return None
    gains = [_gains(run, other, cutoff) for run, other in zip(runs, others, strict=True)]
    if same_videos:
        gains = [_added(gains)]
    drawn = [
        np.concatenate([100 * (weights @ gain) / (weights @ count) for weights in draws(len(gain), seed)])
        for seed, (gain, count) in enumerate(gains)
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _gains(run: Queries, other: Queries, cutoff: int) -> tuple[np.ndarray, np.ndarray]:
    """Return by how many hits a run is ahead on each video, and the queries of each: both (videos,)."""
    rows = np.unique(np.array(run["video"]), return_inverse=True)[1]
    hits = (np.array(run["rank"]) <= cutoff).astype(np.float64) - (np.array(other["rank"]) <= cutoff)
    return np.bincount(rows, hits), np.bincount(rows).astype(np.float64)


def _added(gains: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return sum(gain for gain, _ in gains), sum(count for _, count in gains)  # type: ignore[return-value]
