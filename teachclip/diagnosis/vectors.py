"""Other ways to score captions against a student's frames: other shares, fitted vectors, many vectors a video.

What is made for a video from its captions is measured on other captions of it where there are any: the captions are
cut into folds, and each fold is ranked by what the others gave (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.scorer import Teacher, Tokens, select_tokens
from teachclip.scoring.targets import tempered_relevance

FOLDS = 5
"""Into how many folds the captions of a video are cut; with fewer captions each is a fold of its own."""
FIT_STEPS, FIT_BATCH = 200, 512
"""How long vectors are fitted, and with how many captions at a time."""
PAIR_ELEMENTS = 4_000_000
"""Numbers of the teacher's tokens that are held for pairs at once."""


@dataclass(frozen=True)
class Features:
    """What a student makes of a split's captions and frames. Texts and frames are L2-normalised."""

    texts: Tensor
    """(captions, dim)."""
    frames: Tensor
    """(videos, frames, dim): as they are pooled, after the temporal transformer."""
    encoder_frames: Tensor | None
    """(videos, frames, dim): as the encoder gives them; None if that is the same."""
    mask: Tensor
    """(videos, frames), False on padded frames."""
    shares: Tensor
    """(videos, frames): what each frame counts, rows add up to 1."""
    vectors: Tensor
    """(videos, dim): the student's own vectors, L2-normalised."""
    scale: float
    """The student's factor between cosines and logits."""
    owners: Tensor
    """(captions,): the row of each caption's video."""
    correct: Callable[[Tensor], Tensor] = lambda pooled: pooled
    """What the student does to a pooled video (videos, dim): its residual adapter, if it has one."""

    def pool(self, frames: Tensor, shares: Tensor) -> Tensor:
        """Return the L2-normalised sum of normalised frames (videos, frames, dim) by shares (videos, frames).

        As the student does: its residual adapter of pooled videos comes after the sum.
        """
        return pool(frames, shares, self.correct)


def pool(frames: Tensor, shares: Tensor, correct: Callable[[Tensor], Tensor] = lambda pooled: pooled) -> Tensor:
    """Return the L2-normalised sum of normalised frames (videos, frames, dim) by shares (videos, frames)."""
    return F.normalize(correct((shares.unsqueeze(-1) * frames).sum(dim=1)), dim=-1)


def caption_folds(owners: Tensor, folds: int = FOLDS) -> Tensor:
    """Return the fold of each caption (captions,): the captions of one video go to folds 0, 1, ... in turn."""
    seen: dict[int, int] = {}
    places = []
    for owner in owners.tolist():
        places.append(seen.get(owner, 0) % folds)
        seen[owner] = seen.get(owner, 0) + 1
    return torch.tensor(places)


def can_cross_fit(owners: Tensor) -> bool:
    """Whether at least half of the captions have a sister: another caption of their video."""
    counts = torch.bincount(owners)[owners]
    return bool((counts > 1).float().mean() >= 0.5)


def scores_by_fold(features: Features, score: Callable[[Tensor, Tensor], Tensor], *, cross_fitted: bool) -> Tensor:
    """Return the scores (captions, videos) that `score` gives.

    `score` takes which captions it may use to make something of videos, and which it scores, both (captions,) bool,
    and returns (scored captions, videos). Cross-fitted, each fold is scored with what all other folds made; otherwise
    all captions are used and scored.
    """
    if not cross_fitted:
        every = torch.ones(len(features.texts), dtype=torch.bool)
        return score(every, every)
    folds = caption_folds(features.owners)
    scores = features.texts.new_zeros(len(features.texts), len(features.vectors))
    for fold in folds.unique().tolist():
        scores[folds == fold] = score(folds != fold, folds == fold)
    return scores


def chosen_shares(relevance: Tensor, features: Features, keep: Tensor) -> Tensor:
    """Return the mean relevance of the captions in `keep` for each video's frames (videos, frames).

    `relevance`: (captions, frames), of each caption's own video. A video without a caption in `keep`, or without any
    relevance, keeps the student's own shares. Rows add up to 1.
    """
    total = torch.zeros_like(features.shares).index_add_(0, features.owners[keep], relevance[keep])
    total = total * features.mask
    sums = total.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, total / sums.clamp_min(torch.finfo(total.dtype).tiny), features.shares)


def fit_vectors(
    start: Tensor, texts: Tensor, owners: Tensor, *, scale: float, steps: int = FIT_STEPS, batch: int = FIT_BATCH
) -> Tensor:
    """Return one L2-normalised vector per video, fitted to texts by Adam: (videos, dim).

    The loss is the cross-entropy of softmax(scale cos), over videos for each text and over the batch's texts for
    each, summed. `start`: (videos, dim); `texts`: (texts, dim) of the videos `owners` (texts,). A video without texts
    only moves away from those of others.
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
            own = owners[rows]
            logits = scale * texts[rows] @ F.normalize(vectors, dim=-1).T
            over_texts = logits.log_softmax(dim=0)[torch.arange(len(rows), device=texts.device), own]
            loss = F.cross_entropy(logits, own) - over_texts.mean()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return F.normalize(vectors.detach(), dim=-1)


def closest_frame_scores(texts: Tensor, frames: Tensor, mask: Tensor, *, block: int = 32) -> Tensor:
    """Return the highest cosine of each text with a valid frame of each video: late interaction (texts, videos)."""
    hidden = ~mask.bool()
    parts = [
        torch.einsum("td,vfd->tvf", rows, frames).masked_fill(hidden, -torch.inf).amax(dim=-1)
        for rows in texts.split(block)
    ]
    return torch.cat(parts)


def conditioned_scores(texts: Tensor, frames: Tensor, products: Tensor, relevance: Tensor) -> Tensor:
    """Return the cosine of each text with each video's frames, pooled by a relevance of their own (texts, videos).

    A residual adapter of pooled videos takes no part.

    `texts`: (texts, dim), `frames`: (videos, frames, dim), both normalised; `products`: (videos, frames, frames), of
    a video's frames with each other; `relevance`: (texts, videos, frames).
    """
    cosines = torch.einsum("td,vfd->tvf", texts, frames)
    length = torch.einsum("tvf,vfg,tvg->tv", relevance, products, relevance).clamp_min(1e-12).sqrt()
    return (relevance * cosines).sum(dim=-1) / length


@torch.no_grad()
def pair_relevance(
    teacher: Teacher, texts: Tokens, videos: Tokens, rows: np.ndarray, columns: np.ndarray, *, temperature: float
) -> Tensor:
    """Return the teacher's frame relevance of text rows[i] and video columns[i]: (pairs, frames), on the CPU.

    `temperature`: the recipe's `frame_temperature` of the teacher. Only so many pairs are held at once as fit
    `PAIR_ELEMENTS`.
    """
    one = sum(tensor.numel() // max(1, len(tensor)) for tokens in (texts, videos) for tensor in tokens.values())
    size = max(1, PAIR_ELEMENTS // max(1, one))
    parts = []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        pairs = (
            select_tokens(tokens, torch.from_numpy(wanted[part]).to(next(iter(tokens.values())).device))
            for tokens, wanted in ((texts, rows), (videos, columns))
        )
        parts.append(tempered_relevance(teacher.frame_relevance(*pairs).float(), temperature).cpu())
    return torch.cat(parts)


def caption_blocks(rows: np.ndarray, videos: int, *, pairs: int = 32768) -> Iterator[np.ndarray]:
    """Yield captions in blocks of about so many pairs with all videos."""
    size = max(1, pairs // videos)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
