"""Choosing one of a few settings of a trained student by what the selection split says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from teachclip.processes import Processes


def best_setting(
    values: Sequence[float],
    apply: Callable[[float], object],
    evaluate: Callable[[], Mapping[str, Any]],
    processes: Processes,
) -> tuple[float, dict[str, float]]:
    """Try 1, as trained, and each of `values`, and leave the student with the best one.

    `apply(value)` sets one; `evaluate()` gives the results whose text-to-video recall at 1 decides. 1 is kept unless
    another is better. Returns the best value and the recall at 1 by value, as text.
    """
    tried = {}
    for value in dict.fromkeys([1.0, *values]):
        apply(value)
        tried[value] = float(evaluate()["t2v"]["recall_at_1"])
    best = processes.gather(max(tried, key=lambda value: tried[value]))[0]  # one decision, whatever rounding does
    apply(best)
    return best, {f"{value:g}": recall for value, recall in tried.items()}
