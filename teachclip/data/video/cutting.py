"""How a video is cut into parts: windows that overlap, or shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from teachclip.errors import DataError

Interval = tuple[float, float]
"""Seconds at which a part starts and ends."""

KINDS = ("windows", "shots")


@dataclass(frozen=True)
class Cutting:
    """How a video is cut into parts.

    `windows`: parts of `window` seconds, one every `stride` seconds. `shots`: what lies between two cuts; a shot that
    is longer than a window is cut into windows. Raises DataError for values that are not allowed.
    """

    kind: Literal["windows", "shots"] = "windows"
    window: float = 10.0
    stride: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"parts is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not 0 < self.stride <= self.window < float("inf"):
            values = f"window is {self.window:g} and stride {self.stride:g}"
            raise DataError(f"{values}; expected seconds above 0, the stride at most the window")

    def cut(self, duration: float, shots: Sequence[Interval] = ()) -> list[Interval]:
        """Return the parts of a video of `duration` seconds, in order; a video shorter than a window is one part.

        `shots`: of which the video consists, none for one.
        """
        return [part for shot in shots or [(0.0, duration)] for part in windows(*shot, self.window, self.stride)]


def windows(start: float, end: float, window: float, stride: float) -> list[Interval]:
    """Return windows from `start` to `end`, all in seconds; the last one ends at `end`.

    A rest of at least half a stride is a shorter window, a smaller one lengthens the window before it.
    """
    more = int(max(end - start - window, 0) / stride + 0.5)
    starts = [start + number * stride for number in range(more + 1)]
    return [(begin, begin + window) for begin in starts[:-1]] + [(starts[-1], end)]
