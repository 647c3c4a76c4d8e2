"""Other ways to score captions against a student's frames: other weights, fitted vectors, several vectors per video.

What is made for a video from its captions is measured on its other captions if there are any: the captions are split
into folds, and each fold is ranked by what the other folds gave (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.diagnosis.features import Features

FOLDS = 5
"""Folds into which the captions of a video are split; of fewer captions each is a fold of its own."""
FIT_STEPS, FIT_BATCH = 200, 512
"""Steps for which vectors are fitted, and captions per step."""


def caption_folds(caption_videos: Tensor, folds: int = FOLDS) -> Tensor:
    """Return the fold of each caption (captions,): the captions of one video go to folds 0, 1, ... in turn."""
    counts: dict[int, int] = {}
    assigned = []
    for video in caption_videos.tolist():
        assigned.append(counts.get(video, 0) % folds)
        counts[video] = counts.get(video, 0) + 1
    return torch.tensor(assigned)


def can_cross_fit(caption_videos: Tensor) -> bool:
    """Whether the video of at least half of the captions has another caption."""
    counts = torch.bincount(caption_videos)[caption_videos]
    return bool((counts > 1).float().mean() >= 0.5)


def scores_by_fold(features: Features, score: Callable[[Tensor, Tensor], Tensor], *, cross_fitted: bool) -> Tensor:
    """Return the scores (captions, videos) that `score` computes.

    `score` takes the captions that it may use to represent videos and the captions that it scores, both (captions,)
    bool, and returns (scored captions, videos). Cross-fitted, each fold is scored with what all other folds gave;
    otherwise all captions are used and scored.
    """
    if not cross_fitted:
        every = torch.ones(len(features.texts), dtype=torch.bool)
        return score(every, every)
    folds = caption_folds(features.caption_videos)
    scores = features.texts.new_zeros(len(features.texts), len(features.vectors))
    for fold in folds.unique().tolist():
        scores[folds == fold] = score(folds != fold, folds == fold)
    return scores


def relevance_weights(relevance: Tensor, features: Features, keep: Tensor) -> Tensor:
    """Return the mean relevance of the captions in `keep` for each video's frames, (videos, frames), rows sum to 1.

    `relevance`: (captions, frames), for each caption's own video. A video without a caption in `keep`, or without any
    relevance, keeps the student's weights.
    """
    total = torch.zeros_like(features.weights).index_add_(0, features.caption_videos[keep], relevance[keep])
    total = total * features.mask
    sums = total.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, total / sums.clamp_min(torch.finfo(total.dtype).tiny), features.weights)


def fit_vectors(
    start: Tensor,
    texts: Tensor,
    caption_videos: Tensor,
    *,
    scale: float,
    steps: int = FIT_STEPS,
    batch: int = FIT_BATCH,
) -> Tensor:
    """Return one L2-normalised vector per video, fitted to texts by Adam: (videos, dim).

    The loss is the cross-entropy of softmax(scale cos) over videos for each text, plus that over the batch's texts
    for each. `start`: (videos, dim); `texts`: (texts, dim) of the videos `caption_videos` (texts,). The vector of a
    video without texts only moves away from the texts of other videos.
    """
    if not len(texts):
        return start
    generator = torch.Generator().manual_seed(0)
    vectors = start.clone().requires_grad_(True)
    rate = 0.1 / start.shape[1] ** 0.5
    optimizer = torch.optim.Adam([vectors], lr=rate)
    with torch.enable_grad():
        for step in range(steps):
            rows = torch.randperm(len(texts), generator=generator)[:batch].to(texts.device)
            targets = caption_videos[rows]
            logits = scale * texts[rows] @ F.normalize(vectors, dim=-1).T
            over_texts = logits.log_softmax(dim=0)[torch.arange(len(rows), device=texts.device), targets]
            loss = F.cross_entropy(logits, targets) - over_texts.mean()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return F.normalize(vectors.detach(), dim=-1)


def closest_frame_scores(texts: Tensor, frames: Tensor, mask: Tensor, *, block: int = 32) -> Tensor:
    """Return the highest cosine of each text with a valid frame of each video: late interaction (texts, videos)."""
    padded = ~mask.bool()
    blocks = [
        torch.einsum("td,vfd->tvf", rows, frames).masked_fill(padded, -torch.inf).amax(dim=-1)
        for rows in texts.split(block)
    ]
    return torch.cat(blocks)


def conditioned_scores(texts: Tensor, frames: Tensor, products: Tensor, relevance: Tensor) -> Tensor:
    """Return the cosine of each text with each video's frames, pooled by the relevance of the pair: (texts, videos).

    `texts`: (texts, dim), `frames`: (videos, frames, dim), both normalised; `products`: (videos, frames, frames), of
    a video's frames with each other; `relevance`: (texts, videos, frames). A residual adapter of pooled videos is not
    applied.
    """
    cosines = torch.einsum("td,vfd->tvf", texts, frames)
    length = torch.einsum("tvf,vfg,tvg->tv", relevance, products, relevance).clamp_min(1e-12).sqrt()
    return (relevance * cosines).sum(dim=-1) / length


def caption_blocks(rows: np.ndarray, videos: int, *, pairs: int = 32768) -> Iterator[np.ndarray]:
    """Yield captions in blocks that form about `pairs` pairs with all videos."""
    size = max(1, pairs // videos)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
