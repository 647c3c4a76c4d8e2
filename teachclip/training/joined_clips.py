"""Synthetic videos that are joined from two clips, with captions "A then B": they teach the order of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachclip.models.student import StudentModel
from teachclip.scorer import Tokens
from teachclip.scoring.inputs import SWAPPED, Batch, Inputs, encode_text_batch, model_inputs
from teachclip.training.distributed import gather_tokens, gather_with_gradient
from teachclip.training.frame_sets import check_divisible, part_of

JOINED = "joined."
"""What the names of the joined clips' inputs begin with in a batch."""
CLIPS = "clips"
"""Name, behind `JOINED`, of the video rows of the two clips of each, (videos, 2)."""


@dataclass(frozen=True)
class JoinedClips:
    """The joined clips of every step: a function of the seed and the step alone, whatever the number of processes.

    inputs: the student's, of the training split. texts: of the pairs of clips, "A then B" in rows 0 to n - 1 and
    "B then A" in rows n to 2 n - 1. clips: (n, 2) the video rows of A and B. count: of all processes together.
    """

    inputs: Inputs
    texts: Inputs
    clips: np.ndarray
    count: int
    seed: int

    def batch(self, step: int, index: int = 0, processes: int = 1) -> Batch:
        """Return the inputs of one process's joined clips. Raises LaunchError if they cannot be shared out evenly."""
        check_divisible("joined_clips", {"count": self.count}, processes)
        rng = np.random.default_rng([abs(self.seed), int(self.seed < 0), step, 3])
        rows = rng.permutation(len(self.clips))[: self.count]
        rows = rows[index * len(rows) // processes : (index + 1) * len(rows) // processes]
        one, other = (self.inputs.videos(column) for column in self.clips[rows].T)
        read = {**self.texts.texts(rows), **joined_videos(one, other), CLIPS: torch.from_numpy(self.clips[rows])}
        swapped = self.texts.texts(rows + len(self.clips))
        named = {f"{JOINED}{name}": tensor for name, tensor in read.items()}
        return named | {f"{JOINED}{SWAPPED}{name}": tensor for name, tensor in swapped.items()}


def joined_videos(one: Batch, other: Batch) -> Batch:
    """Return videos that show the first video in their first half and the second in the rest, of as many frames.

    Each half has frames spread over all of its video. Both: inputs of as many videos, as `Inputs.videos` gives them.
    """
    frames = one["frame_mask"].shape[1]
    halves = [
        _spread(video["frame_mask"], size) for video, size in ((one, frames // 2), (other, frames - frames // 2))
    ]
    batch = {}
    for name, tensor in one.items():
        if tensor.ndim < 2:  # the normalisation
            batch[name] = tensor
            continue
        rows = torch.arange(len(tensor))[:, None]
        batch[name] = torch.cat(
            [video[name][rows, half] for video, half in zip((one, other), halves, strict=True)], 1
        )
    return batch


def _spread(mask: Tensor, count: int) -> Tensor:
    """Return the places of `count` frames spread evenly over the valid ones of each video: (videos, count)."""
    order = torch.argsort((~mask).int(), dim=1, stable=True)  # the valid frames, then the padded ones
    valid = mask.sum(1, keepdim=True).clamp_min(1)
    places = (torch.arange(count)[None] + 0.5) / max(1, count) * valid
    return order.gather(1, places.long().clamp(max=mask.shape[1] - 1))


class JoinedLogits(NamedTuple):
    """A student's logits of joined clips, (texts, videos) float32, of the embeddings and each of their prefixes."""

    captions: Sequence[Tensor]
    swapped: Sequence[Tensor]
    """Of the captions with A and B swapped."""
    same_clips: Tensor
    """(texts, videos) bool: whether a video shows the clips of a caption, maybe of another of their captions."""


def joined_logits(student: StudentModel, batch: Batch) -> JoinedLogits | None:
    """Return the student's logits of the joined clips of all processes, or None if the batch holds none."""
    inputs = part_of(batch, JOINED)
    if not inputs:
        return None
    out = student(**model_inputs(inputs))
    swapped: Tokens = encode_text_batch(student, part_of(inputs, SWAPPED))
    embeds = {"texts": out.text_embeds, "videos": out.video_embeds, "swapped": swapped["embeds"]}
    gathered = gather_tokens({name: tensor.float() for name, tensor in embeds.items()})
    with torch.autocast(gathered["texts"].device.type, enabled=False):
        videos = {"embeds": gathered["videos"]}
        captions, others = (
            student.prefix_logits({"embeds": gathered[name]}, videos) for name in ("texts", "swapped")
        )
    clips = gather_with_gradient(inputs[CLIPS])
    return JoinedLogits(captions, others, (clips[:, None] == clips[None]).all(dim=-1))
