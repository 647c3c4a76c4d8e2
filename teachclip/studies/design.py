"""A factorial design: what is varied, and which cells of it each test seed trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Annotated

import numpy as np
from pydantic import Field

from teachclip.errors import RecipeError
from teachclip.recipe.data_section import Count, Section

DRAWS = 500
"""Designs that are drawn for a seed; the most informative one is taken."""

Cell = tuple[int, ...]
"""One combination: the row of the level of every factor."""


Levels = Annotated[dict[str, list[str]], Field(min_length=2)]


class DesignSection(Section):
    """A factorial study: each test seed trains some of all combinations, so that effects are told apart."""

    cells: Count = Field(
        16, description="trainings per test seed, of different combinations; balanced over the levels"
    )
    factors: dict[str, Levels] = Field(
        min_length=2, description="factor -> level -> overrides of the recipe; effects are against the first level"
    )


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
        and Conover, 1979). Of `DRAWS` such designs without equal cells the one is taken that says most of the
        main effects: the largest determinant of X'X (D-optimality; Atkinson and Donev, 1992).

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


def build_design(section: DesignSection) -> Design:
    """Return the design that a study file describes."""
    factors = tuple(
        Factor(name, tuple((level, tuple(overrides)) for level, overrides in levels.items()))
        for name, levels in section.factors.items()
    )
    return Design(factors, section.cells)


def check_told_apart(design: Design, seeds: Sequence[int]) -> None:
    """Raise RecipeError unless the trainings of all test seeds say each effect, and how sure it is."""
    cells = np.concatenate([design.draw(seed) for seed in seeds])
    matrix = model_matrix(design.factors, cells, np.repeat(np.array(seeds), design.cells))
    trainings, coefficients = matrix.shape
    if np.linalg.matrix_rank(matrix) < coefficients or trainings <= coefficients:
        raise RecipeError(
            f"design: {trainings} trainings ({design.cells} cells x {len(seeds)} test seeds) do not separate "
            f"{coefficients - len(seeds)} effects and {len(seeds)} seeds; take more cells or test seeds"
        )


def model_matrix(factors: Sequence[Factor], cells: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the columns of the additive model: one per effect, then one per seed, whose data or start may be easier.

    `cells`: (trainings, factors) rows of levels; `seeds`: (trainings,). Returns (trainings, effects + seeds).
    """
    of_seeds = seeds[:, None] == np.unique(seeds)[None, :]
    return np.hstack([contrasts(factors, cells), of_seeds.astype(np.float64)])


def contrasts(factors: Sequence[Factor], cells: np.ndarray) -> np.ndarray:
    """Return the columns of the main effects: whether a cell has a level, for each but the first of its factor.

    `cells`: (cells, factors) rows of levels. Returns (cells, effects).
    """
    return np.stack([_has(cells, level) for level in _levels(factors)], axis=1)


def effect_names(factors: Sequence[Factor]) -> list[tuple[str, str, str]]:
    """Return (factor, level, first level) of every column of `contrasts`."""
    return [
        (factors[place].name, factors[place].levels[row][0], factors[place].levels[0][0])
        for place, row in _levels(factors)
    ]


def interaction_columns(factors: Sequence[Factor], cells: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return, for each two factors, by the names of two of their levels, whether a cell has both: (cells,).

    The first level of each factor has no column, as in `contrasts`.
    """
    levels = [[item for item in _levels(factors) if item[0] == place] for place in range(len(factors))]
    names = {
        (place, row): f"{factors[place].name} {factors[place].levels[row][0]}" for place, row in _levels(factors)
    }
    return [
        {
            f"{names[one]} and {names[other]}": _has(cells, one) * _has(cells, other)
            for one, other in product(levels[first], levels[second])
        }
        for first, second in combinations(range(len(factors)), 2)
    ]


def _has(cells: np.ndarray, level: tuple[int, int]) -> np.ndarray:
    """Return whether each cell has a level, given by the place of its factor and its row: (cells,) of 0 and 1."""
    return (cells[:, level[0]] == level[1]).astype(np.float64)


def _levels(factors: Sequence[Factor]) -> Iterator[tuple[int, int]]:
    """Yield the place of each factor with the row of each of its levels but the first."""
    for place, factor in enumerate(factors):
        for row in range(1, len(factor.levels)):
            yield place, row
