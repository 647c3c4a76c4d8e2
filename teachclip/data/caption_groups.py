"""The order of an epoch in which captions of a video stand side by side, so that a step encodes the video once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from teachclip.errors import DataError


class EpochOrder(NamedTuple):
    """The batches of an epoch."""

    batches: np.ndarray
    """(batches, batch_size) int64 caption rows."""
    together: np.ndarray
    """(batches,) int64: how many captions of a video stand side by side in each batch."""


@dataclass(frozen=True, eq=False)
class CaptionGroups:
    """Which captions may stand side by side: up to `size` of one video. Raises DataError if no video has as many."""

    caption_videos: np.ndarray
    """(captions,): the video of each."""
    size: int

    def __post_init__(self) -> None:
        if self.size > (most := int(np.bincount(self.caption_videos).max(initial=0))):
            raise DataError(f"captions_per_video is {self.size}, but no video has more than {most} training captions")

    def epoch(self, number: int, batch_size: int, seed: int) -> EpochOrder:
        """Return the batches of an epoch, a function of these numbers alone."""
        return _epoch(self, number, batch_size, seed)


@functools.lru_cache(maxsize=4)
def _epoch(groups: CaptionGroups, number: int, batch_size: int, seed: int) -> EpochOrder:
    seeds = np.random.SeedSequence([abs(seed), int(seed < 0), number, 3])  # 1 and 2 are of views and frame sets
    return grouped_epoch(
        groups.caption_videos, groups.size, batch_size, np.random.RandomState(np.random.MT19937(seeds))
    )


def grouped_epoch(
    caption_videos: np.ndarray, captions_per_video: int, batch_size: int, state: np.random.RandomState
) -> EpochOrder:
    """Put the captions into batches, each caption into one at most; fewer than `batch_size` captions are dropped.

    The captions of a video are shuffled and cut into groups of `captions_per_video`. Groups, not captions, are then
    shuffled and put into batches. What is left over, because a video has not a multiple of that many captions or a
    batch is not full, is cut in the same way by the next smaller divisor of `captions_per_video`, down to single
    captions. So all batches have the same number of captions, and each has groups of one size. The batches are
    shuffled in the end. `caption_videos`: (captions,), the video of each; `batch_size`: a multiple of
    `captions_per_video`.
    """
    rest = state.permutation(len(caption_videos)).astype(np.int64)
    batches, together = [], []
    for size in (number for number in range(captions_per_video, 0, -1) if captions_per_video % number == 0):
        rest = rest[np.argsort(caption_videos[rest], kind="stable")]  # by video, each video's captions as shuffled
        _, counts = np.unique(caption_videos[rest], return_counts=True)
        of_video = np.repeat(counts, counts)
        place = np.arange(len(rest)) - np.repeat(np.cumsum(counts) - counts, counts)
        whole = place < of_video - of_video % size
        groups = rest[whole].reshape(-1, size)
        groups = groups[state.permutation(len(groups))]
        used = len(groups) // (batch_size // size) * (batch_size // size)
        found = groups[:used].reshape(-1, batch_size)
        batches.append(found)
        together.append(np.full(len(found), size))
        rest = np.concatenate([rest[~whole], groups[used:].ravel()])
    joined, sizes = np.concatenate(batches), np.concatenate(together)
    order = state.permutation(len(joined))
    joined = joined[order]
    joined.setflags(write=False)
    return EpochOrder(joined, sizes[order])
