"""Successive halving: many candidates train for a few steps, the better half for twice as many, and so on.

Jamieson and Talwalkar (AISTATS 2016, section 3), with trainings of whole schedules: a candidate begins anew in each
round, as the last steps of a cosine make up most of what a short run reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from teachclip.errors import RecipeError

HALVINGS = (2, 3, 4, 5)
"""How often the length may double, in the order of preference: short runs are worse witnesses of whole ones."""
MOST_SEEDS = 5

Price = Callable[[int, int], float]
"""What so many trainings of so many steps cost together: (trainings, steps)."""


@dataclass(frozen=True)
class Round:
    """A round: how many candidates train in it, at most, and for how many steps."""

    count: int
    steps: int


def rounds(candidates: int, steps: int, halvings: int) -> list[Round]:
    """Return the rounds from `candidates` at `steps / 2^halvings` to the last ones at `steps`.

    Two at least go on, as one of the baseline always does.
    """
    planned, count = [], candidates
    for number in range(halvings + 1):
        planned.append(Round(count, max(1, round(steps / 2 ** (halvings - number)))))
        count = min(count, max(2, math.ceil(count / 2)))
    return planned


@dataclass(frozen=True)
class Budget:
    """What may be spent, in the unit of `price`, and for what a price is asked."""

    total: float
    unit: str
    price: Price


@dataclass(frozen=True)
class Halving:
    """Rounds, and the number of seeds that each candidate trains with in each of them."""

    rounds: list[Round]
    seeds: int
    cost: float
    """With the trainings for test, in the unit of the budget."""


def fit_halving(candidates: int, steps: int, tests: int, budget: Budget) -> Halving:
    """Return the rounds that a budget allows: as long runs as possible, then as many seeds as possible.

    `tests`: whole trainings that are measured on test. Raises RecipeError, with the least budget, if none fits.
    """
    plans = [rounds(candidates, steps, halvings) for halvings in HALVINGS]

    def cost(plan: list[Round], seeds: int) -> float:
        trained = sum(budget.price(each.count * seeds, each.steps) for each in plan)
        return budget.price(tests, steps) + trained

    for plan in plans:
        affordable = [seeds for seeds in range(1, MOST_SEEDS + 1) if cost(plan, seeds) <= budget.total]
        if affordable:
            seeds = affordable[-1] if plan is plans[0] else 1
            return Halving(plan, seeds, cost(plan, seeds))
    least = min(cost(plan, 1) for plan in plans)
    raise RecipeError(
        f"the budget of {budget.total:g} {budget.unit} is too small for {candidates} candidates; the least is "
        f"{math.ceil(least)}: give more, or fewer --rates or --test-seeds"
    )
