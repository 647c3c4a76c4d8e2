"""What students learn of frames, from teachers' relevance: sharper or flatter, and shared by a video's captions.

`tempered_relevance` makes a relevance sharper or flatter (the recipe's `frame_temperature` of a teacher). The rest is
frame targets that a video's captions share, from a stored relevance (the recipe's `frame_text.targets: video`).

The published frame target of a pair is the teacher's relevance for that one caption (`targets: pair`). The
student weighs frames without knowing the caption, so it can only learn what the captions of a video have in common.
They average the relevance over a video's captions, each weighted by how sure the teacher is of it. They
read arrays in blocks, so a memory-mapped store does, and run once before training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray | Callable[[slice], np.ndarray]
"""A matrix by rows: an array (memory-mapped or not), or a function that reads a slice of rows."""


def tempered_relevance(relevance: Tensor, temperature: float) -> Tensor:
    """Return `q_i^(1/T) / sum_j q_j^(1/T)`: the softmax over frames of `log q / T`.

    Where q is a softmax of scores, this is the softmax of the scores over T: above 1 flatter, below 1 sharper, and 1
    leaves it as it is. Relevance is stored at temperature 1 and tempered when it is read, so that a store serves any
    temperature. A frame without relevance, as a padded one, keeps none, so the sum is over the valid frames; a row
    without any relevance stays so.

    `relevance`: (pairs, frames), float32, not negative. Returns the same shape. Raises ValueError unless T > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if temperature == 1:
        return relevance
    tiny = torch.finfo(torch.float32).tiny
    powers = (relevance / relevance.amax(-1, keepdim=True).clamp_min(tiny)) ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True).clamp_min(tiny)


SHARPEST = 1e-3
"""The lowest temperature that `sharpening` tries: below it the rounding of float16 would tell frames apart."""


def frame_spread(relevance: Tensor) -> float:
    """Return over what share of the frames relevance spreads: the median over rows of `exp(entropy) / frames`.

    1 is uniform, 1 / frames a single frame. Padded frames count as frames without relevance, as those do whose
    relevance a store rounded to 0. A median, so that no minority of still or short videos decides. `relevance`:
    (pairs, frames), not negative.
    """
    shares = relevance.double()
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return float(entropy.exp().median()) / relevance.shape[-1]


def sharpening(relevance: Tensor, spread: float) -> float:
    """Return the frame temperature at which relevance spreads over at most a share `spread` of the frames.

    It is 1 for relevance that does so as it is, and for relevance that no temperature makes do so, as that of still
    videos; else the highest temperature below 1 that does, to 2 %. `relevance`: as of `frame_spread`. Raises
    ValueError for a spread outside (0, 1].
    """
    if not 0 < spread <= 1:
        raise ValueError(f"spread must be above 0 and at most 1, got {spread}")

    def is_sharp(temperature: float) -> bool:
        return frame_spread(tempered_relevance(relevance, temperature)) <= spread

    low, high = SHARPEST, 1.0
    if is_sharp(high) or not is_sharp(low):
        return 1.0
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_sharp(middle) else (low, middle)
    return low


def teacher_confidence(
    read_rows: Rows, caption_videos: np.ndarray, *, temperature: float = 1.0, block: int = 4096
) -> np.ndarray:
    """Return how much of its belief a teacher gives to each caption's own video.

    That is `softmax(row / temperature)` over all videos, taken at the caption's video; stable, in float32.

    `read_rows`: the stored video-text relevance (captions, videos) on the logit scale, of any float type, or a
    function that reads a slice of its rows; `block` rows are in memory at a time. `caption_videos`: (captions,) int,
    the column of each caption's video. Returns (captions,) float32 in [0, 1]; 0 where it underflows. Raises
    ValueError on unequal sizes, a column that does not exist, logits that are not finite, or a temperature that is
    not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    columns = _video_rows(caption_videos)
    confidence = np.empty(len(columns), dtype=np.float32)
    for rows, values in _blocks(read_rows, len(columns), block, "logits"):
        matching = columns[rows]
        if matching.size and matching.max() >= values.shape[1]:
            raise ValueError(f"caption_videos names video {matching.max()}, but logits have {values.shape[1]} videos")
        logits = values.astype(np.float32)  # a copy, changed in place from here on
        logits /= np.float32(temperature)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise ValueError(f"logits of caption {rows.start + int(np.argmin(finite))} are not finite")
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        confidence[rows] = logits[np.arange(len(matching)), matching] / logits.sum(axis=1)
    return confidence


def video_frame_targets(
    frame_relevance: Rows,
    confidence: np.ndarray,
    caption_videos: np.ndarray,
    *,
    frame_mask: np.ndarray | None = None,
    saturation: float | None = None,
    block: int = 65536,
) -> np.ndarray:
    """Return one distribution over frames per video: the confidence-weighted mean of its captions' relevance.

    `target_v = sum_c p_c q_c / sum_c p_c` over the captions c of video v, then brought to sum 1 over valid frames, as
    the softmax attention of the student needs. Where all p_c of a video are 0 (they underflowed) its captions count
    alike.

    With `saturation`, q_c is relative to the frame that caption c looks at most, and what many captions say of a
    frame is limited: `target_v ~ min(1, sum_c p_c (q_c / max q_c) / sum_c p_c / saturation)`. A frame that a share
    `saturation` of the captions speaks of is then as right as one that all speak of, so that no event of a video
    drowns another.

    `frame_relevance`: (captions, frames), of any float type, or a function that reads a slice of its rows.
    `confidence`: (captions,) p_c >= 0, as from `teacher_confidence`. `caption_videos`: (captions,) int, the video row
    of each caption, in any order. `frame_mask`: (videos, frames) bool, True on real frames; without it all are real
    and there are as many videos as caption_videos names. Returns (videos, frames) float32, 0 on padded frames. Raises
    ValueError on unequal sizes, bad values, a saturation outside (0, 1], a video without captions, or one without
    relevance on its valid frames.
    """
    owners = _video_rows(caption_videos)
    videos = len(frame_mask) if frame_mask is not None else int(owners.max(initial=-1)) + 1
    counts = np.bincount(owners, minlength=videos)
    if len(counts) > videos:
        raise ValueError(f"caption_videos names video {owners.max()}, but frame_mask has {videos} videos")
    if not counts.all():
        raise ValueError(f"video {int(np.argmin(counts))} has no caption; every video needs at least one")
    if saturation is not None and not 0 < saturation <= 1:
        raise ValueError(f"saturation must be above 0 and at most 1, got {saturation}")
    weights = _weights(confidence, owners, videos)
    mean = _weighted_mean(frame_relevance, weights, owners, videos, block, relative=saturation is not None)
    if saturation is not None:
        mean = np.minimum(mean / saturation, 1)
    if frame_mask is not None:
        if frame_mask.dtype != np.bool_ or frame_mask.shape != mean.shape:
            got = f"{frame_mask.dtype} of shape {frame_mask.shape}"
            raise ValueError(f"frame_mask must be bool of shape {mean.shape}, got {got}")
        mean = np.where(frame_mask, mean, 0)
    total = mean.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise ValueError(f"video {int(np.argmin(total > 0))} has no relevance on any valid frame")
    return (mean / total).astype(np.float32)


def _weights(confidence: np.ndarray, owners: np.ndarray, videos: int) -> np.ndarray:
    """Return the weight of each caption within its video, float64, summing to 1 per video."""
    if confidence.shape != owners.shape:
        raise ValueError(f"confidence has shape {confidence.shape}, but caption_videos has {owners.shape}")
    weights = confidence.astype(np.float64)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("confidence must be finite and not negative")
    vanished = np.bincount(owners, weights, minlength=videos) == 0
    weights[vanished[owners]] = 1
    return weights / np.bincount(owners, weights, minlength=videos)[owners]


def _weighted_mean(
    values: Rows, weights: np.ndarray, owners: np.ndarray, videos: int, block: int, *, relative: bool
) -> np.ndarray:
    """Sum weighted rows per video, in float64, each row over its largest if `relative`. Returns (videos, n)."""
    total: np.ndarray | None = None
    for rows, part in _blocks(values, len(owners), block, "frame_relevance"):
        if not (np.isfinite(part) & (part >= 0)).all():
            raise ValueError(
                f"frame_relevance of captions {rows.start} to {rows.stop - 1} has negative or no numbers"
            )
        if total is None:
            total = np.zeros((videos, part.shape[1]))
        if relative:
            part = part / np.maximum(part.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        np.add.at(total, owners[rows], part * weights[rows, None])
    assert total is not None  # every video has a caption, so there is at least one block
    return total


def _video_rows(caption_videos: np.ndarray) -> np.ndarray:
    """Check the video rows of the captions and return them."""
    rows = np.asarray(caption_videos)
    if rows.ndim != 1 or not rows.size or not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0:
        raise ValueError(
            f"caption_videos must be one video row >= 0 per caption, got {rows.dtype} of shape {rows.shape}"
        )
    return rows


def _blocks(values: Rows, count: int, block: int, name: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Read `count` rows in blocks and check the sizes."""
    if not callable(values) and len(values) != count:
        raise ValueError(f"{name} has {len(values)} captions, but caption_videos has {count}")
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        part = np.asarray(values(rows) if callable(values) else values[rows])
        if part.ndim != 2 or len(part) != rows.stop - rows.start:
            raise ValueError(
                f"{name} rows {rows.start} to {rows.stop - 1} must be a matrix of that length, got shape {part.shape}"
            )
        yield rows, part
