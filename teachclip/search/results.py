"""What an index gives: videos, their parts, and what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """A part of a video as one row of the index shows it: a part has a row for each of `student.vectors`.

    id: of the row, stable as long as the content of the file and the way of cutting are. number: of the row, from 0,
    in the order of time. start, end, best: seconds; `best` is when the frame that the student weighs most is shown.
    times, weights: of every frame of the part, seconds, and the weights with which the student pooled them, which sum
    to 1. score: the cosine of the row and a query, None without one.
    """

    id: str
    number: int
    start: float
    end: float
    best: float
    times: list[float]
    weights: list[float]
    score: float | None = None

    def overlaps(self, other: Part) -> bool:
        """Return whether both parts show some of the same seconds."""
        return min(self.end, other.end) - max(self.start, other.start) > 1e-3


@dataclass(frozen=True)
class Video:
    """A video of an index.

    id: the beginning of the sha256 of its file, so it is stable when the file is moved. path: of its file; paths: of
    all files with this content. length: seconds. date: of the last change of the file, ISO, UTC. bytes: its size.
    parts: how many. error: why a part is missing, "" if none is. columns: what a table says about it.
    """

    id: str
    path: str
    paths: list[str]
    length: float
    date: str
    bytes: int
    parts: int
    error: str = ""
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A video that a search found. score: of its best part. parts: best first, none overlaps a better one."""

    video: Video
    score: float
    parts: list[Part]

    @property
    def path(self) -> str:
        """The path of the video's file."""
        return self.video.path

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self.video), "score": self.score, "parts": [asdict(part) for part in self.parts]}


def without_overlaps(parts: Sequence[Part], most: int | None = None) -> list[Part]:
    """Return `parts`, best first, without those that overlap a better one; at most `most`."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda part: (-(part.score or 0.0), part.start)):
        if len(kept) == most:
            break
        if not any(part.overlaps(better) for better in kept):
            kept.append(part)
    return kept


def clock(seconds: float) -> str:
    """Return a time of a video as people write it: 0:42 or 1:02:03."""
    minutes, rest = divmod(int(seconds + 1e-6), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
