"""Evaluation of a scorer on a split: retrieval metrics in both directions, and the cost of a search.

The same code serves students and teachers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teachclip.data.annotations.records import Split
from teachclip.evaluation.retrieval import evaluate_retrieval
from teachclip.processes import Processes
from teachclip.scorer import Scorer, Tokens, select_tokens, text_adapter_of, tokens_to
from teachclip.scoring.inputs import Inputs, encode_split

COST_RUNS = 20


@dataclass(frozen=True)
class Blocks:
    """How much is computed at once. It changes speed and memory; ranks change at most by rounding in the last bit.

    `batch_size`: videos per forward pass. Scores are computed in blocks of `text_block` x `video_block` pairs.
    """

    batch_size: int = 32
    text_block: int = 128
    video_block: int = 512


def evaluate_split(
    scorer: Scorer,
    inputs: Inputs,
    split: Split,
    blocks: Blocks,
    device: torch.device | str,
    processes: Processes | None = None,
    *,
    cost: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the `t2v` and `v2t` metrics, `sum_of_recalls`, the numbers of `videos` and `captions`.

    With `cost`, also `cost`, as `search_cost` returns it. All processes encode their share and return the same
    numbers.
    """
    texts, videos = encode_split(
        scorer, inputs, batch_size=blocks.batch_size, device=device, processes=processes, progress=progress
    )
    texts, videos = tokens_to(texts, device), tokens_to(videos, device)
    with torch.no_grad():
        metrics = evaluate_retrieval(
            scorer,
            texts,
            videos,
            split.caption_videos,
            text_block=blocks.text_block,
            video_block=blocks.video_block,
            progress=progress,
        )
    metrics["videos"], metrics["captions"] = len(split.videos), len(split.captions)
    if cost:
        metrics["cost"] = search_cost(scorer, texts, videos)
    return metrics


@torch.no_grad()
def search_cost(scorer: Scorer, texts: Tokens, videos: Tokens, *, candidates: int = 1000) -> dict[str, float]:
    """Measure the cost of scoring one text against `candidates` videos (the given ones, repeated as needed).

    Returns `bytes_per_video` (what is kept of a video to score it, as held in memory), `flops_per_query` (counted by
    torch for matrix products, without encoding the query, which costs the same for every scorer), `ms_per_query`
    (median of 20 runs on the device of the tokens) and `candidates`. A student with a residual text adapter applies
    it once per query, whatever the number of videos: `text_adapter_flops` and `text_adapter_ms`.
    """
    count = len(next(iter(videos.values())))
    corpus = select_tokens(videos, torch.arange(candidates) % count)
    query = select_tokens(texts, slice(0, 1))
    size = sum(tensor.nbytes for tensor in corpus.values()) / candidates
    flops, ms = _measure(lambda: scorer.score(query, corpus))
    costs = {"bytes_per_video": size, "flops_per_query": flops, "ms_per_query": ms, "candidates": candidates}
    adapter = text_adapter_of(scorer)
    if adapter is not None:
        feature = query["embeds"]
        costs["text_adapter_flops"], costs["text_adapter_ms"] = _measure(lambda: adapter(feature))
    return costs


def _measure(compute: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the floating point operations and the median milliseconds of `COST_RUNS` runs."""
    counter = FlopCounterMode(display=False)
    with counter:
        compute()
    times = []
    for _ in range(COST_RUNS):
        start = time.perf_counter()
        if compute().is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(counter.get_total_flops()), 1000 * sorted(times)[len(times) // 2]
