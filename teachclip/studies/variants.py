"""The variants of a study: what defines each, what it may choose from, and what would make the choice unequal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from teachclip.recipe.conditions import overlap

TUNE_SECTIONS = ("train.", "optimizer.", "student.wise_ft")
"""What the trials for tuning may have of their own: how they train."""

Settings = tuple[str, ...]
"""Overrides of a recipe, each `section.key=value`."""


@dataclass(frozen=True)
class Variant:
    """One way to train a student. `fixed` defines it; `grid` holds the settings to choose from."""

    name: str
    label: str
    fixed: Settings
    grid: tuple[Settings, ...]


def grid(values: Mapping[str, Sequence[str]]) -> tuple[Settings, ...]:
    """Return all combinations of overrides, from the values of every recipe key."""
    return tuple(
        tuple(f"{key}={value}" for key, value in zip(values, combination, strict=True))
        for combination in product(*values.values())
    )


def budget_problems(variants: Sequence[Variant]) -> Iterator[str]:
    """Yield where budgets are unequal: who tries more settings wins more often by luck, so all must try as many."""
    if len({len(variant.grid) for variant in variants}) > 1:
        counts = ", ".join(f"{variant.name} {len(variant.grid)}" for variant in variants)
        yield (
            "variants: the tuning budget must be equal: every variant needs as many settings to choose from as the "
            f"others, got {counts}"
        )
    for variant in variants:
        if (twice := repeated([" ".join(setting) for setting in variant.grid])) is not None:
            yield f"variants.{variant.name}: the setting {twice!r} is duplicated"


def tune_set_problems(
    tune_set: Sequence[str], variants: Sequence[Variant], pooling_factors: Sequence[float]
) -> Iterator[str]:
    """Yield what would make the trials for tuning say nothing: they must differ in what is compared and chosen."""
    if tune_set and len(variants[0].grid) < 2:
        yield "tune_set: no settings to choose from; give a grid, or remove it"
    if tune_set and pooling_factors:
        yield "tune_set: not beside pooling_factors, which are chosen in the same trials"
    chosen = keys_of(text for variant in variants for setting in variant.grid for text in setting)
    defining = keys_of(text for variant in variants for text in variant.fixed)
    for key in keys_of(tune_set):
        if not key.startswith(TUNE_SECTIONS):
            yield f"tune_set: {key}; allowed: keys of train and optimizer, and student.wise_ft"
        for name, keys in (("what variants choose", chosen), ("which is part of what defines a variant", defining)):
            if other := next((other for other in keys if overlap(key, other)), None):
                yield f"tune_set: {key} would undo {other}, {name}; remove it"


def keys_of(overrides: Iterable[str]) -> list[str]:
    """Return the keys of overrides, each once."""
    return list(dict.fromkeys(text.partition("=")[0] for text in overrides))


def repeated(values: Sequence[Any]) -> Any:
    """Return the first value that is there more than once, or None."""
    return next((value for value, count in Counter(values).items() if count > 1), None)
