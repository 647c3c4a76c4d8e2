"""Which text and which video stand at each place of an epoch: captioned pairs, and texts and videos dealt out."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from teachclip.data.annotations.records import Split
from teachclip.store.scratch import blocks


@dataclass(frozen=True)
class Places:
    """The places of an epoch over a split: first its pairs of a caption and its video, then the others.

    Texts without a video and videos without captions are shuffled anew in every epoch, each by itself, and dealt out
    side by side; the shorter list begins again. So any text meets any video in a batch. Where a split has texts of
    one kind alone, all its captions take the part of the texts, as all its videos take that of the videos.
    """

    split: Split
    seed: int

    @property
    def pairs(self) -> int:
        """How many places hold a caption with its own video; they come first."""
        return self.split.pairs

    @functools.cached_property
    def count(self) -> int:
        """Number of places."""
        texts = len(self.split.captions) - self.pairs
        return self.pairs + max(texts, len(self._lonely_videos))

    @functools.cached_property
    def _lonely_videos(self) -> np.ndarray:
        is_lonely, own = np.ones(len(self.split.videos), np.bool_), self.split.caption_videos[: self.pairs]
        for rows in blocks(len(own)):
            is_lonely[own[rows]] = False
        return np.flatnonzero(is_lonely)

    def texts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the caption rows at some places of an epoch: (places,) int64."""
        if self.count == self.pairs:
            return places
        lonely = np.arange(self.pairs, len(self.split.captions))
        every = np.arange(len(self.split.captions))
        return self._deal(epoch, places, places, lonely if len(lonely) else every, 3)

    def videos(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the video rows at some places of an epoch: (places,) int64."""
        own = self.split.caption_videos[np.minimum(places, max(0, self.pairs - 1))]
        if self.count == self.pairs:
            return own
        every, lonely = np.arange(len(self.split.videos)), self._lonely_videos
        return self._deal(epoch, places, own, lonely if len(lonely) else every, 4)

    def _deal(self, epoch: int, places: np.ndarray, paired: np.ndarray, dealt: np.ndarray, stream: int) -> np.ndarray:
        """Return `paired` at the places of pairs, and at the others what the shuffled list `dealt` gives them."""
        order = np.random.default_rng([abs(self.seed), int(self.seed < 0), epoch, stream]).permutation(dealt)
        return np.where(places < self.pairs, paired, order[(places - self.pairs) % len(order)])
