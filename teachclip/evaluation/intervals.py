"""Statistics of a few repeated runs: standard deviation, and the t interval of a paired difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """The mean of paired differences with its confidence interval; both ends are None for a single pair."""

    mean: float
    low: float | None
    high: float | None

    @property
    def touches_zero(self) -> bool:
        """Whether the data are compatible with no difference; a single pair always is."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (divisor n - 1), or None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of `values - baseline`, run by run, with its two-sided t interval.

    Student (1908): mean +- t(n - 1) * sd / sqrt(n). Raises ValueError for lists of different lengths or none at all.
    """
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    if not differences:
        raise ValueError("no pairs to compare")
    mean = statistics.fmean(differences)
    sd = spread(differences)
    if sd is None:
        return Interval(mean, None, None)
    half = t_quantile((1 + level) / 2, len(differences) - 1) * sd / math.sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution, for a probability of at least one half."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"need 0.5 <= probability < 1 and freedom >= 1, got {probability}, {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):  # halves the angle atan(t / sqrt(freedom)) until floats run out
        middle = (low + high) / 2
        low, high = (middle, high) if _central_share(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _central_share(angle: float, freedom: int) -> float:
    """Return P(|T| < t) for t = sqrt(freedom) * tan(angle): a finite sum (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = sine * (cosine if odd else 1), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (angle + total) * 2 / math.pi if odd else total
