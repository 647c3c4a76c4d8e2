"""When the frames of a video are shown, and which of them lie in a span of time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from teachclip.errors import VideoError

TOLERANCE = 5e-4
"""Seconds. Matroska rounds times to milliseconds, so a frame may seem to start this much late."""


class Timeline(NamedTuple):
    """When the frames of a video are shown, counted from its first one.

    times: seconds, float64 (frames,), ascending from 0. duration: seconds, the end of the last frame.
    fps: frames per second according to the container. varies: some frame is shown more than one frame's duration away
    from where a constant rate would show it.
    """

    times: np.ndarray
    duration: float
    fps: float
    varies: bool

    @classmethod
    def constant(cls, frames: int, fps: float) -> Timeline:
        """Return the timeline of `frames` frames at a constant rate."""
        rate = fps if math.isfinite(fps) and fps > 0 else 1.0
        return cls(np.arange(frames) / rate, frames / rate, fps, False)

    def shown_at(self, moments: np.ndarray) -> list[int]:
        """Return the number of the frame that is shown at each moment (seconds)."""
        return np.maximum(np.searchsorted(self.times, moments + TOLERANCE, side="right") - 1, 0).tolist()

    def without_gaps(self, kept: np.ndarray) -> Timeline:
        """Return the timeline of the frames `kept` (ascending numbers) only, each shown as long as before."""
        steps = np.diff(self.times, append=self.duration)[kept]
        return self._replace(times=np.cumsum(steps) - steps, duration=float(steps.sum()))


class Span(NamedTuple):
    """A span of a video: seconds from `begin` to `finish`, frames `first` to `stop` - 1.

    `finish` may lie after the end of the video; it is infinite if no end was given.
    """

    begin: float
    finish: float
    first: int
    stop: int


def find_span(timeline: Timeline, start: float | None, end: float | None) -> Span:
    """Return the span from `start` to `end` (seconds; None: the beginning, the end of the video).

    As in the published code a reversed span is swapped, an empty one becomes one second long, and one that extends
    beyond the end of the video stops there. Raises VideoError if it begins after the end.
    """
    if not len(timeline.times):
        raise VideoError("it has no frames")
    begin = 0.0 if start is None else float(start)
    finish = math.inf if end is None else float(end)
    if not math.isfinite(begin) or math.isnan(finish) or min(begin, finish) < 0:
        raise VideoError(f"the span from {start} to {end} seconds is invalid; expected 0 or more")
    if begin >= finish:
        begin, finish = finish, begin + (begin == finish)
    if begin >= timeline.duration:
        raise VideoError(f"the span begins at {begin:g} seconds, the video ends at {timeline.duration:g}")
    first = timeline.shown_at(np.array([begin]))[0]
    stop = int(np.searchsorted(timeline.times, finish - TOLERANCE, side="left"))
    return Span(begin, finish, first, max(stop, first + 1))
