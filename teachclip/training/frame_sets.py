"""Synthetic videos for frame-set distillation: which frames and captions a step takes, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachclip.errors import LaunchError
from teachclip.scoring.inputs import Batch, Inputs

STUDENT, SCORER = "frame_sets.", "scored_frame_sets."
"""What the names of the sets' inputs begin with in a batch: those of the student, and of a teacher that scores."""

BLOCK = 64
"""Videos whose frames are in memory at a time while sets are read."""


class Draw(NamedTuple):
    """Some sets: frame number `places[i, j]` (in [0, 1) of the video's length) of video `videos[i, j]`."""

    videos: np.ndarray
    """(sets, frames) int64."""
    places: np.ndarray
    """(sets, frames) float64."""
    sizes: np.ndarray
    """(sets,) int64: how many of the frames belong to the set."""
    counts: np.ndarray
    """(sets, frames) int64: how many times each frame counts."""
    texts: np.ndarray
    """(texts,) int64."""


@dataclass(frozen=True)
class FrameSetSampler:
    """The sets of every step: a function of the seed and the step alone, whatever the number of processes.

    A set holds `fewest` to `most` frames, all numbers alike, each of a random video, and each counts 1 to `repeats`
    times, as an event counts that is seen in several frames. `count` sets and `texts`
    captions are those of all processes together. `inputs` are the student's, of the whole training split; `scorer`
    those of a teacher that scores the sets, or None.
    """

    inputs: Inputs
    count: int
    texts: int
    fewest: int
    most: int
    seed: int
    repeats: int = 1
    scorer: Inputs | None = None
    scorer_width: int = 1
    """Fewest frames that the teacher takes: smaller sets are padded."""

    def draw(self, step: int, index: int = 0, processes: int = 1) -> Draw:
        """Return the sets of one process. Raises LaunchError if they cannot be shared out evenly."""
        check_shares(self.count, self.texts, processes)
        rng = np.random.default_rng([abs(self.seed), int(self.seed < 0), step, 2])
        size = (self.count, self.most)
        found = Draw(
            rng.integers(self.inputs.video_count, size=size),
            rng.random(size),
            rng.integers(self.fewest, self.most + 1, size=self.count),
            rng.integers(1, self.repeats + 1, size=size),
            rng.integers(self.inputs.text_count, size=self.texts),
        )
        return Draw(*(np.split(part, processes)[index] for part in found))

    def batch(self, step: int, index: int = 0, processes: int = 1) -> Batch:
        """Return the inputs of one process's sets and captions, for the student and for the teacher that scores."""
        draw = self.draw(step, index, processes)
        batch = {STUDENT + name: tensor for name, tensor in read_sets(self.inputs, draw).items()}
        if self.scorer is not None:
            found = read_sets(self.scorer, draw, width=self.scorer_width)
            batch |= {SCORER + name: tensor for name, tensor in found.items()}
        return batch


def check_shares(count: int, texts: int, processes: int) -> None:
    """Raise LaunchError unless sets and captions of a step can be shared out evenly."""
    for name, number in (("count", count), ("texts", texts)):
        if number % processes:
            raise LaunchError(f"losses.frame_sets.{name} is {number}, not a multiple of {processes} processes")


def read_sets(inputs: Inputs, draw: Draw, *, width: int = 1) -> Batch:
    """Read sets as if they were videos: the inputs of `Inputs.videos` and `Inputs.texts`.

    Frames are taken among the valid ones of their video; `frame_mask` (sets, frames) is True on those of the set, and
    `shares` (sets, frames) says what each counts; rows sum to 1. Padded frames, behind those of the set and up to at
    least `width`, are zero.
    """
    if (missing := width - draw.videos.shape[1]) > 0:
        more = ((0, 0), (0, missing))
        videos, places, counts = (np.pad(part, more, "edge") for part in (draw.videos, draw.places, draw.counts))
        draw = draw._replace(videos=videos, places=places, counts=counts)
    mask = np.arange(draw.videos.shape[1]) < draw.sizes[:, None]
    shares = torch.from_numpy(draw.counts * mask).float()
    return {
        **_read_frames(inputs, draw.videos[mask], draw.places[mask], torch.from_numpy(mask)),
        "frame_mask": torch.from_numpy(mask),
        "shares": shares / shares.sum(1, keepdim=True),
        **inputs.texts(draw.texts),
    }


def _read_frames(inputs: Inputs, videos: np.ndarray, places: np.ndarray, mask: Tensor) -> Batch:
    """Read one frame of each of `videos` into the True places of `mask` (sets, frames), in order.

    Videos are read in blocks: their other frames, most of what is read, are in memory for one block only.
    """
    known, where = np.unique(videos, return_inverse=True)
    slots = mask.flatten().nonzero().squeeze(1)
    batch: Batch = {}
    for start in range(0, len(known), BLOCK):
        found = inputs.videos(known[start : start + BLOCK])
        name = "frame_features" if "frame_features" in found else "frames"
        frames, valid = found.pop(name), found.pop("frame_mask")
        order = torch.argsort((~valid).int(), dim=1, stable=True)  # the valid frames of a video, then the padded ones
        now = np.flatnonzero((where >= start) & (where < start + BLOCK))
        rows = torch.from_numpy(where[now] - start)
        number = (torch.from_numpy(places[now]) * valid.sum(1)[rows]).long()
        picked = frames[rows, order[rows, number]]
        if not batch:
            batch = {**found, name: picked.new_zeros(mask.numel(), *picked.shape[1:])}
        batch[name][slots[now]] = picked
    return {**batch, name: batch[name].unflatten(0, mask.shape)}
