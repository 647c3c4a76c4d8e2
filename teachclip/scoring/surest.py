"""Which texts stand for the captions of a video that has none: those that a teacher is surest of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

BLOCK_NUMBERS = 2**24
"""Logits that are in memory at a time."""


class SurePairs(NamedTuple):
    """Pairs of a text and a video, grouped by video, and how sure the teacher is of each: all (pairs,)."""

    texts: np.ndarray
    videos: np.ndarray
    confidence: np.ndarray


def surest_pairs(
    read_rows: Callable[[slice], np.ndarray], caption_videos: np.ndarray, videos: int, *, count: int
) -> SurePairs:
    """Return a video's captions or, of one without any, the `count` texts that a teacher is surest of.

    It is as sure of text t and video v as it finds v by t among all videos: `softmax(row t)_v` of its video-text
    relevance, as in `teacher_confidence`. A text that fits all videos alike is a sure text of none.

    `read_rows` reads a slice of the logits (texts, videos). `caption_videos`: (texts,), the row of each text's own
    video, -1 for none. With fewer texts than `count` all of them are taken.
    """
    texts = len(caption_videos)
    best = torch.full((0, videos), -torch.inf)
    rows = torch.zeros((0, videos), dtype=torch.int64)
    own = np.zeros(texts, dtype=np.float64)
    size = max(1, BLOCK_NUMBERS // videos)
    for start in range(0, texts, size):
        block = slice(start, min(start + size, texts))
        logs = torch.from_numpy(np.asarray(read_rows(block), dtype=np.float32)).log_softmax(dim=1)
        owners = caption_videos[block]
        own[block] = np.where(owners >= 0, logs[torch.arange(len(logs)), torch.from_numpy(owners)].exp().numpy(), 0)
        numbers = torch.arange(block.start, block.stop)[:, None].expand(-1, videos)
        best, rows = torch.cat([best, logs]), torch.cat([rows, numbers])
        best, kept = best.topk(min(count, len(best)), dim=0)
        rows = rows.gather(0, kept)
    captions = np.flatnonzero(caption_videos >= 0)
    lonely = np.setdiff1d(np.arange(videos), caption_videos[captions])
    found = SurePairs(
        np.concatenate([captions, rows.T[lonely].flatten().numpy()]),
        np.concatenate([caption_videos[captions], np.repeat(lonely, len(rows))]),
        np.concatenate([own[captions], best.T[lonely].flatten().exp().numpy()]),
    )
    order = np.argsort(found.videos, kind="stable")
    return SurePairs(*(part[order] for part in found))
