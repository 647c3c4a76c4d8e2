"""Videos that show the same: copies, and copies that were encoded anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from teachclip.search.index import VideoIndex
from teachclip.search.results import Video

THRESHOLD = 0.98
"""Least cosine of two videos that count as the same; README.md of this room says on what it was measured."""

BLOCK = 2048
"""Videos compared at once with all others."""


class Duplicates(NamedTuple):
    """Videos that show the same, longest first, and the least cosine by which one of them joined: 1 for copies."""

    videos: list[Video]
    score: float


def find_duplicates(index: VideoIndex, *, threshold: float = THRESHOLD, length: float = 0.1) -> list[Duplicates]:
    """Return groups of videos that show the same, largest first.

    Two videos are the same if the cosine of their mean vectors is at least `threshold` and their lengths differ by at
    most the share `length`. A video with several files of the same content is a group of its own, with the score 1.
    Compares every two videos: 10,000 take seconds.
    """
    videos = {video.id: video for video in index.videos()}
    means = mean_vectors(index, list(videos))
    ids = list(means)
    lengths = np.array([videos[video].length for video in ids])
    matrix = np.stack([means[video] for video in ids]) if ids else np.empty((0, 1), np.float32)
    groups = _Groups(len(ids))
    for start in range(0, len(ids), BLOCK):
        cosines = matrix[start : start + BLOCK] @ matrix[start:].T
        for row, column in zip(*np.nonzero(cosines >= threshold), strict=True):
            one, other = start + int(row), start + int(column)
            if one < other and abs(lengths[one] - lengths[other]) <= length * max(lengths[one], lengths[other]):
                groups.join(one, other, float(cosines[row, column]))
    found = []
    for members, score in groups.found():
        group = sorted((videos[ids[member]] for member in members), key=lambda video: (-video.length, video.path))
        if len(group) > 1 or len(group[0].paths) > 1:
            found.append(Duplicates(group, score))
    return sorted(found, key=lambda group: (-sum(len(video.paths) for video in group.videos), group.videos[0].path))


def mean_vectors(index: VideoIndex, videos: list[str]) -> dict[str, np.ndarray]:
    """Return the normalised mean of the vectors of each video's parts, float32 (dim,), by id."""
    sums: dict[str, np.ndarray] = {}
    for row, vector in index.vectors(videos).items():
        video = row.partition("-")[0]
        sums[video] = sums[video] + vector if video in sums else vector
    return {video: total / max(float(np.linalg.norm(total)), 1e-12) for video, total in sums.items()}


class _Groups:
    """Disjoint groups of numbers, and the least score by which each was joined."""

    def __init__(self, count: int):
        self.parents, self.scores = list(range(count)), [1.0] * count

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def join(self, one: int, other: int, score: float) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self.scores[first] = min(self.scores[first], self.scores[second], score)
        self.parents[second] = first

    def found(self) -> list[tuple[list[int], float]]:
        groups: dict[int, list[int]] = {}
        for number in range(len(self.parents)):
            groups.setdefault(self.root(number), []).append(number)
        return [(members, self.scores[root]) for root, members in groups.items()]
