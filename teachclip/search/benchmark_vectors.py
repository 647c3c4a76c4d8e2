"""Vectors to measure engines on: as many as asked for, of a student and real videos, or between real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.parts import open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import normalize
from teachclip.data.video.workers import Failure
from teachclip.errors import DataError
from teachclip.models import backbone as encoders
from teachclip.models.modeling import StudentModel, evaluating
from teachclip.search.limits import Limits
from teachclip.search.scan import list_files

FRAMES_PER_VIDEO, FRAMES_PER_ROW = 18, 6
ROWS_AT_ONCE = 50_000


@torch.no_grad()
def vectors_of_frames(
    student: StudentModel, folder: Path, count: int, *, seed: int = 0, limits: Limits | None = None
) -> np.ndarray:
    """Return `count` vectors (count, dim) of the student, float32, L2-normalised, from the videos below `folder`.

    Of each video 18 frames, spread over it, are decoded and encoded once. A row is what the student gives for 6 of
    them at random, of a random video, in the order of time: the vector that a file of these frames would have. Raises
    DataError if no video can be read.
    """
    student.require_one_vector("bench-search --videos")
    features = _frame_features(student, folder, limits or Limits())
    state = np.random.RandomState(seed)
    mask = torch.ones(1024, FRAMES_PER_ROW, dtype=torch.bool, device=student.device)
    made = np.empty((count, int(student.config.width)), np.float32)
    with evaluating(student):
        for start in range(0, count, len(mask)):
            size = min(len(mask), count - start)
            videos = state.randint(0, len(features), (size, 1))
            frames = np.sort(state.random((size, FRAMES_PER_VIDEO)).argsort(axis=1)[:, :FRAMES_PER_ROW], axis=1)
            _, output = student.aggregate(features[videos, frames], mask[:size])
            made[start : start + size] = F.normalize(output.pooled.float(), dim=-1).cpu().numpy()
    return made


def _frame_features(student: StudentModel, folder: Path, limits: Limits) -> torch.Tensor:
    """Return features (videos, frames, dim) of the videos below a folder that have `FRAMES_PER_VIDEO` frames."""
    processor: Any = student.processor
    how = FrameSampling("intervals", FRAMES_PER_VIDEO), processor.transform, Cutting(window=1e6, stride=1e6)
    paths = list(list_files([str(folder)]).files)
    features = []
    for opened in limits.map(open_parts, iter([(path, *how) for path in paths]), len(paths)):
        if isinstance(opened, Failure) or len(opened.first.frames) != FRAMES_PER_VIDEO:
            continue
        pixels = torch.from_numpy(opened.first.frames).to(student.device)
        with evaluating(student):
            pixels = normalize(pixels, processor.mean, processor.std).unsqueeze(0)
            features.append(encoders.frame_features(student.backbone, pixels)[0])
    if not features:
        raise DataError(f"{folder}: none of its {len(paths)} videos has {FRAMES_PER_VIDEO} frames that can be read")
    return torch.stack(features)


def multiplied(vectors: np.ndarray, count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return `count` vectors (count, dim) made from fewer real ones (rows, width), L2-normalised, float32.

    Each is between two real vectors, one of them among the 8 nearest of the other, with noise of a tenth of their
    distance. A random rotation, the same for one `seed`, writes vectors of `width` into `dim`; it keeps every cosine.
    """
    state = np.random.RandomState(seed)
    rotated = vectors @ rotation(vectors.shape[1], dim)
    made = np.empty((count, dim), np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, count - start)
        first = state.randint(0, len(vectors), size)
        pool = state.randint(0, len(vectors), (size, 64))
        near = np.empty(size, int)
        for part in range(0, size, 5000):
            some = slice(part, part + 5000)
            cosines = np.einsum("nd,nkd->nk", vectors[first[some]], vectors[pool[some]])
            order = np.argsort(-cosines, axis=1)[:, :8]
            chosen = order[np.arange(len(order)), state.randint(0, 8, len(order))]
            near[some] = pool[some][np.arange(len(order)), chosen]
        share = state.random((size, 1)).astype(np.float32)
        between = rotated[first] * share + rotated[near] * (1 - share)
        distance = np.linalg.norm(rotated[first] - rotated[near], axis=1, keepdims=True)
        noise = state.standard_normal((size, dim)).astype(np.float32) * distance / (10 * np.sqrt(dim))
        made[start : start + size] = between + noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def rotation(width: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return a matrix (width, dim), float32, that keeps the cosines of what it is multiplied with."""
    if width == dim:
        return np.eye(width, dtype=np.float32)
    square = np.random.RandomState(seed).standard_normal((dim, width))
    return np.linalg.qr(square)[0].T.astype(np.float32)
