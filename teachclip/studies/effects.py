"""Main effects and interactions of a factorial study: least squares over all trainings, with two intervals each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from teachclip.evaluation.certainty import LEVEL, draws
from teachclip.evaluation.intervals import t_quantile
from teachclip.studies.certainty import Queries
from teachclip.studies.design import Factor, contrasts, interaction_columns, model_matrix

MIN_TOGETHER = 4
"""Two factors have no interactions in the report if fewer trainings have two of their levels together."""


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
        """The columns of the additive model."""
        return model_matrix(self.factors, self.cells, self.seeds)

    @property
    def freedom(self) -> int:
        """Trainings beyond the number of coefficients."""
        trainings, coefficients = self.matrix.shape
        return int(trainings - coefficients)

    def main_effects(self, values: np.ndarray, cutoff: int | None = None) -> list[Effect]:
        """Return the effect of every column of `contrasts` on `values` (trainings,): see `check_told_apart`.

        The t interval is of the residuals of the additive model: another training, and what the model lacks,
        interactions among it. `cutoff`: `values` is the recall at it, so that the test videos can be drawn too.
        """
        matrix, count = self.matrix, len(contrasts(self.factors, self.cells[:1])[0])
        solved = np.linalg.pinv(matrix)
        effects = [_effect(matrix, solved, values, row, self.freedom) for row in range(count)]
        if cutoff is None or not self.queries:
            return effects
        drawn = self._over_videos(solved[:count], cutoff)
        ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
        return [
            effect._replace(videos=(float(low), float(high)))
            for effect, (low, high) in zip(effects, ends, strict=True)
        ]

    def interactions(self, values: np.ndarray) -> dict[str, Effect]:
        """Return, for each pair of levels of two factors, what both together add beyond what each adds by itself.

        Those of two factors are added to the additive model at once, those of other factors are not in it; so
        a real interaction also adds to the noise of all others. Factors with two levels that too few trainings have
        together are excluded.
        """
        effects, matrix = {}, self.matrix
        for columns in interaction_columns(self.factors, self.cells):
            model = np.hstack([*(column[:, None] for column in columns.values()), matrix])
            freedom = len(model) - model.shape[1]
            rare = min(column.sum() for column in columns.values()) < MIN_TOGETHER
            if rare or freedom < 1 or np.linalg.matrix_rank(model) < model.shape[1]:
                continue
            solved = np.linalg.pinv(model)
            for row, name in enumerate(columns):
                effects[name] = _effect(model, solved, values, row, freedom)
        return effects

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
