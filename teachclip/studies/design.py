"""A factorial design: what is varied, and which cells of it each test seed trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from teachclip.errors import RecipeError

DRAWS = 500
"""Designs that are drawn for a seed; the most informative one is taken."""

Cell = tuple[int, ...]
"""One combination: the row of the level of every factor."""


@dataclass(frozen=True)
class Factor:
    """One thing that is varied. `levels`: name -> overrides of the recipe; effects are against the first."""

    name: str
    levels: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Design:
    """What a factorial study varies, and how many `cells` of all combinations every test seed trains."""

    factors: tuple[Factor, ...]
    cells: int

    def name(self, cell: Cell) -> str:
        """Return what files and tables call a cell: the names of its levels."""
        return "-".join(factor.levels[row][0] for factor, row in zip(self.factors, cell, strict=True))

    def overrides(self, cell: Cell) -> tuple[str, ...]:
        """Return the overrides of a cell, factor by factor."""
        return tuple(text for factor, row in zip(self.factors, cell, strict=True) for text in factor.levels[row][1])

    def draw(self, seed: int) -> list[Cell]:
        """Return the cells of a seed: a function of the design and the seed alone.

        Every level of a factor stands in as many cells as the others, or one more (a Latin hypercube; McKay, Beckman
        and Conover, 1979). Of `DRAWS` such designs without equal cells the one is taken from which main effects are
        told best: the largest determinant of X'X (D-optimality; Atkinson and Donev, 1992).

        Raises RecipeError if there are too few combinations for cells that all differ.
        """
        rng = np.random.default_rng([seed, self.cells])
        best, highest = None, -np.inf
        for _ in range(DRAWS):
            columns = [
                rng.permutation(np.arange(self.cells) + rng.integers(len(factor.levels))) % len(factor.levels)
                for factor in self.factors
            ]
            cells = np.stack(columns, axis=1)
            if len(np.unique(cells, axis=0)) < self.cells:
                continue
            matrix = contrasts(self.factors, cells)
            matrix = np.hstack([np.ones((len(matrix), 1)), matrix])
            sign, size = np.linalg.slogdet(matrix.T @ matrix)
            if best is None or (sign > 0 and size > highest):
                best, highest = cells, size if sign > 0 else -np.inf
        if best is None:
            combinations = int(np.prod([len(factor.levels) for factor in self.factors]))
            raise RecipeError(
                f"design.cells is {self.cells}, too many to be balanced and all different among {combinations} "
                "combinations of levels; take fewer"
            )
        return [tuple(map(int, cell)) for cell in best]


def contrasts(factors: Sequence[Factor], cells: np.ndarray) -> np.ndarray:
    """Return the columns of the main effects: whether a cell has a level, for each but the first of its factor.

    `cells`: (cells, factors) rows of levels. Returns (cells, effects).
    """
    columns = [cells[:, place] == row for place, row in _levels(factors)]
    return np.stack(columns, axis=1).astype(np.float64)


def effect_names(factors: Sequence[Factor]) -> list[tuple[str, str, str]]:
    """Return (factor, level, first level) of every column of `contrasts`."""
    return [
        (factors[place].name, factors[place].levels[row][0], factors[place].levels[0][0])
        for place, row in _levels(factors)
    ]


def interaction_columns(factors: Sequence[Factor], cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return, for each pair of levels of two factors, by name, whether a cell has both: (cells,)."""
    pairs = {}
    for place, row in _levels(factors):
        for other, other_row in _levels(factors):
            if other > place:
                names = [
                    f"{factors[where].name} {factors[where].levels[what][0]}"
                    for where, what in ((place, row), (other, other_row))
                ]
                pairs[" and ".join(names)] = ((cells[:, place] == row) & (cells[:, other] == other_row)).astype(float)
    return pairs


def _levels(factors: Sequence[Factor]) -> Iterator[tuple[int, int]]:
    """Yield the place of each factor with the row of each of its levels but the first."""
    for place, factor in enumerate(factors):
        for row in range(1, len(factor.levels)):
            yield place, row
