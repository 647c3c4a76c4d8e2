"""What a search costs: bytes of a video, operations and milliseconds of a query."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teachclip.scorer import Scorer, Tokens, select_tokens, text_adapter_of

COST_RUNS = 20


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
    flops, ms = measure(lambda: scorer.score(query, corpus))
    costs = {"bytes_per_video": size, "flops_per_query": flops, "ms_per_query": ms, "candidates": candidates}
    adapter = text_adapter_of(scorer)
    if adapter is not None:
        feature = query["embeds"]
        costs["text_adapter_flops"], costs["text_adapter_ms"] = measure(lambda: adapter(feature))
    return costs


def measure(compute: Callable[[], Tensor], runs: int = COST_RUNS) -> tuple[float, float]:
    """Return the floating point operations of a computation and the median milliseconds of some runs."""
    counter = FlopCounterMode(display=False)
    with counter:
        compute()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        if compute().is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(counter.get_total_flops()), 1000 * sorted(times)[len(times) // 2]
