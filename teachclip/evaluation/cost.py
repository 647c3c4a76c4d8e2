"""What a scorer costs at search time: bytes per video, and operations and milliseconds per query."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teachclip.scorer import Scorer, Tokens, select_tokens


@torch.no_grad()
def search_cost(scorer: Scorer, texts: Tokens, videos: Tokens, *, candidates: int = 1000) -> dict[str, float]:
    """Measure the cost of scoring one text against `candidates` videos (existing ones, repeated as needed).

    Returns `bytes_per_video` (what must be kept of a video to score it, as held in memory), `flops_per_query`
    (counted by torch for matrix products; encoding the query, which every scorer pays alike, is not in it) and
    `ms_per_query` (median of 20 runs on the device of the tokens). A student with a residual text head pays for it
    once per query, whatever the number of videos: `text_head_flops` and `text_head_ms`.
    """
    count = len(next(iter(videos.values())))
    corpus = select_tokens(videos, torch.arange(candidates) % count)
    query = select_tokens(texts, slice(0, 1))
    size = sum(tensor.nbytes for tensor in corpus.values()) / candidates
    flops, ms = _measure(lambda: scorer.score(query, corpus))
    found = {"bytes_per_video": size, "flops_per_query": flops, "ms_per_query": ms, "candidates": candidates}
    head = getattr(scorer, "text_adapter", None)
    if head is not None:
        feature = query["embeds"]
        found["text_head_flops"], found["text_head_ms"] = _measure(lambda: head(feature))
    return found


def _measure(compute: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the floating point operations and the median milliseconds of 20 runs."""
    counter = FlopCounterMode(display=False)
    with counter:
        compute()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        if compute().is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(counter.get_total_flops()), 1000 * sorted(times)[len(times) // 2]
