"""Main effects and interactions of a factorial study: least squares over all trainings, with two intervals each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from teachclip.evaluation.certainty import LEVEL, draws
from teachclip.evaluation.intervals import t_quantile
from teachclip.studies.certainty import Queries
from teachclip.studies.design import Factor, contrasts, interaction_columns

MIN_TOGETHER = 4
"""An interaction of two levels that fewer trainings have together is not told."""


class Effect(NamedTuple):
    """What a level adds in the mean over all other factors; its 95 % t interval, and one over the test videos."""

    mean: float
    low: float
    high: float
    videos: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trainings:
    """What was trained. `cells`: (trainings, factors) rows of levels; `seeds`: (trainings,).

    queries: of every training, or empty. same_videos: all seeds are tested on the same ones.
    """

    factors: Sequence[Factor]
    cells: np.ndarray
    seeds: np.ndarray
    queries: Sequence[Queries] = ()
    same_videos: bool = True

    @property
    def matrix(self) -> np.ndarray:
        """The model: one column per effect, then one per seed, whose data or start may be easier."""
        seeds = self.seeds[:, None] == np.unique(self.seeds)[None, :]
        return np.hstack([contrasts(self.factors, self.cells), seeds.astype(np.float64)])

    @property
    def freedom(self) -> int:
        """Trainings beyond the number of coefficients."""
        matrix = self.matrix
        return len(matrix) - int(np.linalg.matrix_rank(matrix))

    def main_effects(self, values: np.ndarray, cutoff: int | None = None) -> list[Effect]:
        """Return the effect of every column of `contrasts` on `values` (trainings,).

        The t interval is of the residuals of the additive model: another training, and what the model leaves out,
        interactions among it. `cutoff`: `values` is the recall at it, so that the test videos can be drawn too.
        """
        matrix, count = self.matrix, len(contrasts(self.factors, self.cells[:1])[0])
        solved = np.linalg.pinv(matrix)
        found = [_effect(matrix, solved, values, row, self.freedom) for row in range(count)]
        if cutoff is None or not self.queries:
            return found
        drawn = self._over_videos(solved[:count], cutoff)
        ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
        return [
            effect._replace(videos=(float(low), float(high))) for effect, (low, high) in zip(found, ends, strict=True)
        ]

    def interactions(self, values: np.ndarray) -> dict[str, Effect]:
        """Return, for each pair of levels of two factors, what both together add beyond what each adds by itself.

        Each is added to the additive model by itself. Pairs that too few trainings have are left out.
        """
        found, matrix = {}, self.matrix
        for name, column in interaction_columns(self.factors, self.cells).items():
            model = np.hstack([column[:, None], matrix])
            rank = int(np.linalg.matrix_rank(model))
            if column.sum() >= MIN_TOGETHER and rank > np.linalg.matrix_rank(matrix) and len(model) > rank:
                found[name] = _effect(model, np.linalg.pinv(model), values, 0, len(model) - rank)
        return found

    def _over_videos(self, solved: np.ndarray, cutoff: int) -> np.ndarray:
        """Return the effects when test videos are drawn with replacement: (draws, effects).

        An effect is a weighted sum of the trainings' recalls, and so of the hits of their queries, video by video.
        """
        seeds = [np.flatnonzero(self.seeds == seed) for seed in np.unique(self.seeds)]
        parts = []
        for trainings in seeds:
            videos, rows = np.unique(np.array(self.queries[int(trainings[0])]["video"]), return_inverse=True)
            hits = np.array(
                [np.array(self.queries[row]["rank"]) <= cutoff for row in map(int, trainings)], dtype=np.float64
            )
            by_video = np.array([np.bincount(rows, hit, len(videos)) for hit in hits])  # (trainings, videos)
            parts.append((solved[:, trainings] @ by_video, np.bincount(rows).astype(np.float64)))
        if self.same_videos:
            parts = [(np.sum([gains for gains, _ in parts], axis=0), parts[0][1])]
        drawn = [
            np.concatenate(
                [100 * (weights @ gains.T) / (weights @ counts)[:, None] for weights in draws(len(counts), seed)]
            )
            for seed, (gains, counts) in enumerate(parts)
        ]
        return np.sum(drawn, axis=0)


def _effect(matrix: np.ndarray, solved: np.ndarray, values: np.ndarray, row: int, freedom: int) -> Effect:
    """Return one coefficient of least squares with its t interval."""
    coefficients = solved @ values
    variance = float(np.sum((values - matrix @ coefficients) ** 2)) / freedom
    half = t_quantile((1 + LEVEL) / 2, freedom) * np.sqrt(variance * float(solved[row] @ solved[row]))
    return Effect(float(coefficients[row]), float(coefficients[row] - half), float(coefficients[row] + half))
