"""The student encodes parts of videos: each frame once, then each part from the frames that it shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.data.video.parts import PartFrames
from teachclip.data.video.transform import normalize
from teachclip.models import backbone as encoders
from teachclip.models.modeling import StudentModel, evaluating
from teachclip.scorer import encoding_in

PARTS_PER_BATCH = 256


class EncodedPart(NamedTuple):
    """A part as the student sees it; one for each vector that it has per video. start, end: seconds.

    vector: float32 (dim,), L2-normalised. times: when each frame is shown, seconds, float32 (frames,). weights: with
    which the frames were pooled, float32 (frames,), sum 1. best: when the frame with the largest weight is shown.
    """

    start: float
    end: float
    vector: np.ndarray
    times: np.ndarray
    weights: np.ndarray
    best: float


class PartEncoder:
    """Encodes parts as `StudentModel.encode_video` does, but each frame once.

    batch_size: frames that the vision encoder gets together. precision: that it computes in, see `encoding_in`.
    """

    def __init__(self, student: StudentModel, batch_size: int = 96, precision: str = "float32"):
        self.student, self.batch_size, self.precision = student, batch_size, precision
        self._padding: Tensor | None = None

    @torch.no_grad()
    def encode(self, stretches: Sequence[PartFrames]) -> list[list[EncodedPart]]:
        """Return the parts of each stretch that could be decoded, in order."""
        with evaluating(self.student):
            with encoding_in(self.precision, self.student.device):
                features = self._features(np.concatenate([stretch.frames for stretch in stretches])).float()
            offsets = np.cumsum([0, *(len(stretch.frames) for stretch in stretches)])
            rows = [
                places + offset
                for stretch, offset in zip(stretches, offsets, strict=False)
                for places in stretch.places
                if len(places)
            ]
            vectors, weights = self._parts(features, rows)
        encoded, number = [], 0
        for stretch in stretches:
            parts = []
            for (start, end), places in zip(stretch.parts, stretch.places, strict=True):
                if not len(places):
                    continue
                times = stretch.times[places].astype(np.float32)
                for vector, weight in zip(vectors[number], weights[number], strict=True):
                    unpadded = weight[: len(places)]
                    best = float(times[most_weighed(unpadded)])
                    parts.append(EncodedPart(start, end, vector, times, unpadded, best))
                number += 1
            encoded.append(parts)
        return encoded

    def _features(self, frames: np.ndarray) -> Tensor:
        """Return features (frames + 1, dim) of uint8 (frames, 3, size, size); the last one is of a padded frame."""
        processor, device = self.student.processor, self.student.device
        if self._padding is None:
            # a padded frame is zeros after normalisation; a student that does not mask padding gives it weight
            blank = torch.zeros(1, 1, 3, processor.size, processor.size, device=device)
            self._padding = encoders.frame_features(self.student.backbone, blank)[0]
        features = []
        for start in range(0, len(frames), self.batch_size):
            pixels = torch.from_numpy(frames[start : start + self.batch_size]).to(device)
            pixels = normalize(pixels, processor.mean, processor.std).unsqueeze(0)
            features.append(encoders.frame_features(self.student.backbone, pixels)[0])
        return torch.cat([*features, self._padding])

    def _parts(self, features: Tensor, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors (parts, vectors, dim) and weights (parts, vectors, count) of parts, rows of `features`."""
        config, count = self.student.config, self.student.processor.sampling.count
        vectors = [np.empty((0, config.vectors, config.width), np.float32)]
        weights = [np.empty((0, config.vectors, count), np.float32)]
        for start in range(0, len(rows), PARTS_PER_BATCH):
            batch = rows[start : start + PARTS_PER_BATCH]
            places = torch.full((len(batch), count), len(features) - 1)
            mask = torch.zeros(len(batch), count, dtype=torch.bool)
            for number, row in enumerate(batch):
                places[number, : len(row)], mask[number, : len(row)] = torch.from_numpy(row), True
            _, output = self.student.aggregate(features[places.to(features.device)], mask.to(features.device))
            pooled = F.normalize(output.pooled.float(), dim=-1).cpu().numpy()
            vectors.append(pooled.reshape(len(batch), config.vectors, -1))
            weights.append(output.pooling_weights.float().cpu().numpy().reshape(len(batch), config.vectors, -1))
        return np.concatenate(vectors), np.concatenate(weights)


def most_weighed(weights: np.ndarray) -> int:
    """Return the place of the largest of `weights` (frames,); of equal ones, as in mean pooling, the middle one."""
    largest = np.flatnonzero(weights >= weights.max() * (1 - 1e-6))
    return int(largest[len(largest) // 2])
