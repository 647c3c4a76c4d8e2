"""Frame-set distillation: which frames and captions a step takes, how they are read, and how they are scored.

A set of frames is a synthetic video. The student's scores of the sets should be those of a `FrameSetScorer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.errors import LaunchError
from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.models.modeling import evaluating
from teachclip.models.student import StudentModel
from teachclip.scorer import Teacher, Tokens
from teachclip.scoring.inputs import Batch, Inputs, encode_text_batch, encode_video_batch
from teachclip.training.distributed import gather_tokens, gather_with_gradient

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
    those of a teacher that scores the sets, stored features of a backbone that does, or None: what scores them reads
    what the student reads.
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
        check_divisible("frame_sets", {"count": self.count, "texts": self.texts}, processes)
        rng = np.random.default_rng([abs(self.seed), int(self.seed < 0), step, 2])
        size = (self.count, self.most)
        drawn = Draw(
            rng.integers(self.inputs.video_count, size=size),
            rng.random(size),
            rng.integers(self.fewest, self.most + 1, size=self.count),
            rng.integers(1, self.repeats + 1, size=size),
            rng.integers(self.inputs.text_count, size=self.texts),
        )
        return Draw(*(np.split(part, processes)[index] for part in drawn))

    def batch(self, step: int, index: int = 0, processes: int = 1) -> Batch:
        """Return the inputs of one process's sets and captions, for the student and for what scores them."""
        draw = self.draw(step, index, processes)
        batch = {STUDENT + name: tensor for name, tensor in read_sets(self.inputs, draw).items()}
        if self.scorer is not None:
            scored = read_sets(self.scorer, draw, width=self.scorer_width)
            batch |= {SCORER + name: tensor for name, tensor in scored.items()}
        return batch


def check_divisible(term: str, numbers: Mapping[str, int], processes: int) -> None:
    """Raise LaunchError unless what a term of the loss takes in a step, by key, can be shared out evenly."""
    for key, number in numbers.items():
        if number % processes:
            raise LaunchError(f"losses.{term}.{key} is {number}, not a multiple of {processes} processes")


def read_sets(inputs: Inputs, draw: Draw, *, width: int = 1) -> Batch:
    """Read sets as if they were videos: the inputs of `Inputs.videos` and `Inputs.texts`.

    Frames are taken among the valid ones of their video; `frame_mask` (sets, frames) is True on those of the set, and
    `frame_weights` (sets, frames) says what each counts; rows sum to 1. Padded frames, behind those of the set and
    up to at least `width`, are zero.
    """
    if (missing := width - draw.videos.shape[1]) > 0:
        more = ((0, 0), (0, missing))
        videos, places, counts = (np.pad(part, more, "edge") for part in (draw.videos, draw.places, draw.counts))
        draw = draw._replace(videos=videos, places=places, counts=counts)
    mask = np.arange(draw.videos.shape[1]) < draw.sizes[:, None]
    weights = torch.from_numpy(draw.counts * mask).float()
    return {
        **_read_frames(inputs, draw.videos[mask], draw.places[mask], torch.from_numpy(mask)),
        "frame_mask": torch.from_numpy(mask),
        "frame_weights": weights / weights.sum(1, keepdim=True),
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
        block = inputs.videos(known[start : start + BLOCK])
        name = "frame_features" if "frame_features" in block else "frames"
        frames, valid = block.pop(name), block.pop("frame_mask")
        order = torch.argsort((~valid).int(), dim=1, stable=True)  # the valid frames of a video, then the padded ones
        now = np.flatnonzero((where >= start) & (where < start + BLOCK))
        rows = torch.from_numpy(where[now] - start)
        number = (torch.from_numpy(places[now]) * valid.sum(1)[rows]).long()
        picked = frames[rows, order[rows, number]]
        if not batch:
            batch = {**block, name: picked.new_zeros(mask.numel(), *picked.shape[1:])}
        batch[name][slots[now]] = picked
    return {**batch, name: batch[name].unflatten(0, mask.shape)}


@dataclass(frozen=True)
class FrameSetScorer:
    """Scores sets of frames against texts, by late interaction of the backbone's features or by a teacher.

    The features are those that the batch has for the scorer, as of a backbone that stays as it was, or else those of
    the student's backbone as it is. `scale`: the factor on the late interaction's cosines. `teacher`: scores in its
    place, on the logit scale.
    """

    scale: float = 40.0
    teacher: Teacher | None = None

    def logits(self, student: StudentModel, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the student's logits and the target's, all (texts, sets) of all processes, float32.

        The student's are those of its embeddings and of the prefixes that its `matryoshka` names.

        What the sets teach is the temporal transformer, the residual adapters and the logit scale: no gradient
        reaches the encoders, and the attention takes no part, for every frame of a set counts alike.
        """
        inputs = part_of(batch, STUDENT)
        features = _features(student, inputs)
        texts = student.texts_from_features(features["text"])["embeds"]
        sets = student.frame_sets_from_features(features["frames"], inputs["frame_weights"])["embeds"]
        sides = [{"embeds": gather_with_gradient(side)} for side in (texts, sets)]
        logits = student.prefix_logits(*sides)
        return logits, self._targets(features, part_of(batch, SCORER))

    @torch.no_grad()
    def _targets(self, features: Tokens, inputs: Batch) -> Tensor:
        with torch.autocast(features["text"].device.type, enabled=False):
            if self.teacher is None:
                features = _stored_features(inputs) if inputs else features
                gathered = gather_tokens(features)
                return self.scale * late_interaction(gathered["text"], gathered["frames"], gathered["mask"])
            texts = gather_tokens(encode_text_batch(self.teacher, inputs))
            videos = gather_tokens(encode_video_batch(self.teacher, inputs))
            return self.teacher.score(texts, videos).float()


def _stored_features(inputs: Batch) -> Tokens:
    return {"text": inputs["text_features"], "frames": inputs["frame_features"], "mask": inputs["frame_mask"]}


def late_interaction(text_features: Tensor, frame_features: Tensor, frame_mask: Tensor) -> Tensor:
    """Return max_f cos(text, frame f of the set) over valid frames (texts, sets), float32.

    `text_features` (texts, dim), `frame_features` (sets, frames, dim), normalised or not; `frame_mask` (sets,
    frames). One vector per frame is kept, as in ColBERT (Khattab and Zaharia 2020) one per word.
    """
    text, frames = F.normalize(text_features.float(), dim=-1), F.normalize(frame_features.float(), dim=-1)
    cosines = torch.einsum("td,sfd->tsf", text, frames)
    return cosines.masked_fill(~frame_mask, float("-inf")).amax(dim=-1)


def part_of(batch: Batch, prefix: str) -> Batch:
    """Return the tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}


@torch.no_grad()
def _features(student: StudentModel, inputs: Batch) -> Tokens:
    """Return raw features of the backbone: `text` (texts, dim), `frames` (sets, frames, dim), and `mask`."""
    encoders = EncoderFeatures(student.backbone)
    text, frames = inputs.get("text_features"), inputs.get("frame_features")
    with evaluating(student):  # some families have dropout, which would blur the targets
        if text is None:
            text = encode_text_batch(encoders, inputs)["features"]
        if frames is None:
            frames = encode_video_batch(encoders, inputs)["frame_features"]
    return {"text": text.float(), "frames": frames.float(), "mask": inputs["frame_mask"]}
