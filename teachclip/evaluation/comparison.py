"""Two models on the same queries: the paired difference with its interval and its p value."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from teachclip.errors import DataError
from teachclip.evaluation.certainty import LEVEL, SAMPLES, draws, hits_by_group
from teachclip.evaluation.per_query import PerQuery

NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Standard deviations of a normal distribution on either side of its mean that hold `LEVEL` of it."""


@dataclass(frozen=True)
class Difference:
    """A recall of two models in percent, and second minus first. low, high: the ends of its 95 % interval."""

    direction: str
    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float
    queries: int
    videos: int

    @property
    def difference(self) -> float:
        """Second minus first, in percent."""
        return self.second - self.first

    @property
    def standard_error(self) -> float:
        """Of the difference over the videos, in percent: that of a normal distribution with this interval."""
        return (self.high - self.low) / (2 * NORMAL)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {**vars(self), "difference": self.difference}


def compare(first: PerQuery, second: PerQuery, *, seed: int = 0) -> list[Difference]:
    """Compare two models query by query, for each direction and recall.

    The interval is that of a paired bootstrap and the p value that of a two-sided permutation test that exchanges the
    models (Efron and Tibshirani, 1993, chapters 13 and 15). Captions of one video are not independent, so both draw
    or exchange whole videos. They say how far the difference depends on the queries; another training of either model
    is another question, which `teachclip study` answers. Raises DataError if the queries are not the same.
    """
    found = []
    for direction in ("t2v", "v2t"):
        ours, theirs = first.of(direction), second.of(direction)
        if {key: value[0] for key, value in ours.items()} != {key: value[0] for key, value in theirs.items()}:
            shared = len(ours.keys() & theirs.keys())
            raise DataError(
                f"{direction}: the two files are of other queries ({len(ours)} and {len(theirs)}, {shared} in both); "
                "evaluate both models on the same split"
            )
        found += _differences(direction, ours, theirs, seed)
    return found


def _differences(
    direction: str, ours: dict[str, tuple[str, int]], theirs: dict[str, tuple[str, int]], seed: int
) -> list[Difference]:
    videos = np.array([video for video, _ in ours.values()])
    names, hits, counts = hits_by_group(np.array([rank for _, rank in ours.values()]), videos)
    other = hits_by_group(np.array([theirs[query][1] for query in ours]), videos)[1]
    gain = other - hits  # (videos, recalls)
    drawn = [100 * (weights @ gain) / (weights @ counts)[:, None] for weights in draws(len(counts), seed)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rng = np.random.default_rng(seed)
    extreme = np.zeros(len(names))
    for _ in range(SAMPLES):
        exchanged = rng.integers(0, 2, len(counts)) * 2.0 - 1
        extreme += np.abs(exchanged @ gain) >= np.abs(gain.sum(axis=0)) - 1e-9
    p = (1 + extreme) / (1 + SAMPLES)
    total = counts.sum()
    return [
        Difference(
            direction,
            name,
            first=float(100 * hits[:, k].sum() / total),
            second=float(100 * other[:, k].sum() / total),
            low=float(low[k]),
            high=float(high[k]),
            p=float(p[k]),
            queries=len(ours),
            videos=len(counts),
        )
        for k, name in enumerate(names)
    ]
