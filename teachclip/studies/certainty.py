"""How far a difference of two variants depends on which videos they were tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    runs: Sequence[Queries], others: Sequence[Queries], hits: Callable[[Queries], np.ndarray], *, same_videos: bool
) -> tuple[float, float] | None:
    """Return the ends of a 95 % interval of the difference in recall, in percent.

    `runs`, `others`: of two variants, seed by seed, on the same queries. `hits`: for each query of a run whether it
    finds its video, or how likely it is to, 0 to 1. A paired bootstrap draws whole videos, as their captions are not
    independent (Efron and Tibshirani, 1993, chapter 13). `same_videos`: all seeds are tested on the same videos,
    whose gain is then their mean over the seeds; otherwise each seed's videos are drawn by themselves. None if what
    is compared was not tested on the same queries.
    """
    pairs = [(run["video"], other["video"]) for run, other in zip(runs, others, strict=True)]
    if any(list(one) != list(other) for one, other in pairs):
        return None
    if same_videos and any(set(one) != set(pairs[0][0]) for one, _ in pairs):
        return None
    gains = [_gains(run, other, hits) for run, other in zip(runs, others, strict=True)]
    if same_videos:
        gains = [_added(gains)]
    drawn = [
        np.concatenate([100 * (weights @ gain) / (weights @ count) for weights in draws(len(gain), seed)])
        for seed, (gain, count) in enumerate(gains)
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def gallery_hits(ranks: Sequence[int], videos: int, gallery: int) -> np.ndarray:
    """Return for each query how likely its own video is the first of a gallery of so many videos: (queries,).

    `ranks`: (queries,), from 1, among all `videos`. The gallery holds the query's own video; the others are drawn at
    random without replacement. None of the r - 1 better ones is among them with C(videos - r, gallery - 1) /
    C(videos - 1, gallery - 1): the hypergeometric distribution.
    """
    # each further better video multiplies the chance by (videos - gallery + 1 - better) / (videos - better)
    better = np.arange(1, videos)
    left = (videos - gallery + 1 - better).clip(0) / (videos - better)
    return np.concatenate([[1.0], np.cumprod(left)])[np.asarray(ranks) - 1]


def _gains(run: Queries, other: Queries, hits: Callable[[Queries], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return by how many hits a run is ahead on each video, and the queries of each: both (videos,)."""
    rows = np.unique(np.array(run["video"]), return_inverse=True)[1]
    ahead = hits(run).astype(np.float64) - hits(other)
    return np.bincount(rows, ahead), np.bincount(rows).astype(np.float64)


def _added(gains: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return sum(gain for gain, _ in gains), sum(count for _, count in gains)  # type: ignore[return-value]
