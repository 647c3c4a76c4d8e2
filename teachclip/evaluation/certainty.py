"""How far a result can be trusted: intervals over queries, chance, and the ceiling that repeated captions set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from teachclip.data.annotations.records import Split
from teachclip.evaluation.metrics import CUTOFFS
from teachclip.evaluation.retrieval import Ranks

SAMPLES = 2000
"""Draws of a bootstrap: its 2.5 % ends rest on the 50 outermost."""
LEVEL = 0.95
FEW_VIDEOS = 50
"""With fewer videos a recall has so wide an interval that it tells hardly any two models apart."""
_AT_ONCE = 2**22


def certainty(ranks: Ranks, split: Split) -> dict[str, Any]:
    """Return what a reader needs to judge the metrics of `ranks` of a split.

    `intervals`: by direction and recall, the two ends of a 95 % interval in percent (`recall_intervals`). `chance`:
    the recalls of a random order of the videos. `repeated_captions`: how many captions some other video has too,
    letter case and spaces aside. `ceiling`: the highest recalls that any model can have for that reason
    (`text_ceiling`).
    """
    texts = [" ".join(caption.text.lower().split()) for caption in split.captions]
    return {
        "intervals": {
            "t2v": recall_intervals(ranks.t2v, split.caption_videos),
            "v2t": recall_intervals(ranks.v2t, np.arange(len(ranks.v2t))),
        },
        "chance": chance_recalls(len(split.videos)),
        "repeated_captions": repeated_captions(texts, split.caption_videos),
        "ceiling": text_ceiling(texts, split.caption_videos),
    }


def recall_intervals(ranks: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> dict[str, list[float]]:
    """Return the ends [low, high] of a 95 % interval of each recall, in percent.

    `ranks`: (queries,). `groups`: (queries,), which video a query is about. Captions of one video are not
    independent, so whole videos are drawn with replacement (Efron, 1979; percentile interval). It tells how much the
    result would vary with other videos, not with another training.
    """
    names, hits, counts = hits_by_group(ranks, groups)
    drawn = [100 * (weights @ hits) / (weights @ counts)[:, None] for weights in draws(len(counts), seed)]
    ends = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: [float(low), float(high)] for name, low, high in zip(names, *ends, strict=True)}


def hits_by_group(ranks: np.ndarray, groups: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the names of the recalls, the hits (groups, recalls) of each and the queries (groups,) of each group."""
    rows = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(rows).astype(np.float64)
    hits = np.stack([np.bincount(rows, np.asarray(ranks) <= cutoff) for cutoff in CUTOFFS], axis=1)
    return [f"recall_at_{cutoff}" for cutoff in CUTOFFS], hits, counts


def draws(groups: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `SAMPLES` draws of as many groups with replacement: how often each was drawn, (draws, groups) a block."""
    rng, even = np.random.default_rng(seed), np.full(groups, 1 / groups)
    size = max(1, _AT_ONCE // groups)
    for start in range(0, SAMPLES, size):
        yield rng.multinomial(groups, even, size=min(size, SAMPLES - start)).astype(np.float64)


def chance_recalls(candidates: int) -> dict[str, float]:
    """Return the expected recalls, in percent, of a random order of candidates, one of which is right."""
    return {f"recall_at_{cutoff}": min(100.0, 100 * cutoff / candidates) for cutoff in CUTOFFS}


def repeated_captions(texts: Sequence[str], caption_videos: np.ndarray) -> int:
    """Return how many captions some other video has too. `texts`, `caption_videos`: (captions,)."""
    videos = _videos_by_text(texts, caption_videos)
    return sum(sum(count.values()) for count in videos.values() if len(count) > 1)


def text_ceiling(texts: Sequence[str], caption_videos: np.ndarray) -> dict[str, float]:
    """Return the highest text-to-video recalls, in percent, that any model can have.

    Equal texts have one order of the videos, so of the videos that share a text only the first K are hits at K: best
    are those with the most such captions.
    """
    ceiling = {}
    for cutoff in CUTOFFS:
        counts = _videos_by_text(texts, caption_videos).values()
        hits = sum(sum(number for _, number in count.most_common(cutoff)) for count in counts)
        ceiling[f"recall_at_{cutoff}"] = 100 * hits / len(texts)
    return ceiling


def _videos_by_text(texts: Sequence[str], caption_videos: np.ndarray) -> dict[str, Counter[int]]:
    """Return for each text how many captions of each video it is."""
    videos: dict[str, Counter[int]] = defaultdict(Counter)
    for text, video in zip(texts, caption_videos.tolist(), strict=True):
        videos[text][video] += 1
    return videos
