"""Reranking: a student recalls the best videos of each text, a teacher orders them anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.errors import DataError
from teachclip.evaluation.cost import COST_RUNS, measure
from teachclip.evaluation.metrics import rank_metrics
from teachclip.scorer import Scorer, Tokens, select_tokens
from teachclip.scoring.inputs import Inputs, encode_text_batch, encode_video_batch, to_device

DEPTHS = (10, 20, 50, 100)
"""How many of the best videos of a text are reranked."""

Again = Callable[[int, Tensor], Tensor]
"""Scores one text, by its row, with some videos, by theirs: (videos,) logits."""


def again_by_tokens(teacher: Scorer, texts: Tokens, videos: Tokens) -> Again:
    """Return how a teacher scores texts and videos that were encoded once."""

    def again(row: int, columns: Tensor) -> Tensor:
        query = select_tokens(texts, slice(row, row + 1))
        return teacher.score(query, select_tokens(videos, columns))[0].float()

    return again


def again_by_inputs(teacher: Scorer, inputs: Inputs, *, batch_size: int, device: torch.device | str) -> Again:
    """Return how a teacher scores that reads a text and a video together: both are read whenever they are asked for.

    `batch_size`: videos in memory at a time.
    """

    def again(row: int, columns: Tensor) -> Tensor:
        query = encode_text_batch(teacher, to_device(inputs.texts(np.array([row])), device))
        parts = []
        for some in columns.cpu().split(batch_size):
            videos = encode_video_batch(teacher, to_device(inputs.videos(some.numpy()), device))
            parts.append(teacher.score(query, videos)[0].float())
        return torch.cat(parts)

    return again


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
    depths: Sequence[int],
    again: Again,
    caption_videos: np.ndarray,
    *,
    cost_runs: int = COST_RUNS,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Return text-to-video retrieval with the best k videos of `scorer` reranked, for each depth k that differs.

    `texts`, `videos`: the tokens of `scorer`; `again`: how the teacher scores the same items. `caption_videos`:
    (captions,), the row of each caption's video. A video behind the first k keeps its rank. As in `retrieval_ranks`,
    a tie never adds a hit: a video that ties with the k-th is not recalled. `cost_runs`: how often its cost is timed.

    Each item has `k`, the metrics `t2v`, and what the teacher adds to the search: `flops_per_query`, `ms_per_query`.
    """
    count = len(next(iter(videos.values())))
    depths = sorted({min(depth, count) for depth in depths})
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
        anew = again(row, best)
        place = int((best == own).nonzero()[0, 0])
        for number, depth in enumerate(depths):
            if rank <= depth:
                ranks[number, row] = int((anew[:depth] >= anew[place]).sum())
    results = []
    for number, depth in enumerate(depths):
        flops, ms = measure(lambda: again(0, torch.arange(depth)), cost_runs)  # noqa: B023 - called at once
        results.append({"k": depth, "t2v": rank_metrics(ranks[number]), "flops_per_query": flops, "ms_per_query": ms})
    return results
