"""Reranking: a student recalls the best videos of each text, a teacher orders them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from teachclip.errors import DataError
from teachclip.evaluation.cost import measure
from teachclip.evaluation.metrics import rank_metrics
from teachclip.scorer import Scorer, Tokens, select_tokens
from teachclip.scoring.inputs import Inputs

DEPTHS = (10, 20, 50, 100)
"""How many of the best videos of a text are reranked."""


@dataclass(frozen=True)
class Reranking:
    """Who reranks: a teacher in evaluation mode, what it reads, and how many of the best videos (`depths`)."""

    name: str
    teacher: Scorer
    inputs: Inputs
    depths: Sequence[int] = DEPTHS

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise DataError(f"videos to rerank: {list(self.depths)}; allowed: whole numbers from 1")


@torch.no_grad()
def reranked(
    scorer: Scorer,
    texts: Tokens,
    videos: Tokens,
    reranking: Reranking,
    teacher_texts: Tokens,
    teacher_videos: Tokens,
    caption_videos: np.ndarray,
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Return text-to-video retrieval with the best k videos of `scorer` reranked, for each depth k that differs.

    `texts`, `videos`: the tokens of `scorer`; `teacher_texts`, `teacher_videos`: those of the teacher, of the same
    items. `caption_videos`: (captions,), the row of each caption's video. A video behind the first k keeps its rank.
    As in `retrieval_ranks`, a tie never adds a hit: a video that ties with the k-th is not recalled.

    Each item has `k`, the metrics `t2v`, and what the teacher adds to the search: `flops_per_query`, `ms_per_query`.
    """
    count = len(next(iter(videos.values())))
    depths = sorted({min(depth, count) for depth in reranking.depths})
    ranks = np.empty((len(depths), len(caption_videos)), dtype=np.int64)
    rows = tqdm(range(len(caption_videos)), desc="rerank", unit="text", disable=not progress, leave=False)
    for row in rows:
        own = int(caption_videos[row])
        scores = scorer.score(select_tokens(texts, slice(row, row + 1)), videos)[0].float()
        rank = int((scores >= scores[own]).sum())  # the video itself is one of them
        ranks[:, row] = rank
        if rank > depths[-1]:
            continue
        best = scores.topk(depths[-1]).indices
        query = select_tokens(teacher_texts, slice(row, row + 1))
        again = reranking.teacher.score(query, select_tokens(teacher_videos, best))[0].float()
        place = int((best == own).nonzero()[0, 0])
        for number, depth in enumerate(depths):
            if rank <= depth:
                ranks[number, row] = int((again[:depth] >= again[place]).sum())
    results = []
    query = select_tokens(teacher_texts, slice(0, 1))
    for number, depth in enumerate(depths):
        candidates = select_tokens(teacher_videos, torch.arange(depth))
        flops, ms = measure(lambda: reranking.teacher.score(query, candidates))  # noqa: B023 - called at once
        results.append({"k": depth, "t2v": rank_metrics(ranks[number]), "flops_per_query": flops, "ms_per_query": ms})
    return results
