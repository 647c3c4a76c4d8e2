"""Evaluation of a scorer on a split: retrieval metrics in both directions, reranking, and the cost of a search.

The same code serves students and teachers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from teachclip.data.annotations.records import Split
from teachclip.evaluation.certainty import certainty
from teachclip.evaluation.cost import COST_RUNS, search_cost
from teachclip.evaluation.post_processing import PostProcessing, post_processed
from teachclip.evaluation.reranking import Again, Reranking, again_by_inputs, again_by_tokens, reranked
from teachclip.evaluation.retrieval import Ranks, metrics_of, retrieval_ranks
from teachclip.processes import Processes
from teachclip.scorer import PairScorer, Scorer, Tokens, tokens_to
from teachclip.scoring.inputs import Inputs, encode_split

PAIR_COST_RUNS = 3
"""How often the cost of a teacher is timed that reads a text and a video together: seconds, not milliseconds."""


@dataclass(frozen=True)
class Blocks:
    """How much is computed at once. It changes speed and memory; ranks change at most by rounding in the last bit.

    `batch_size`: videos per forward pass. Scores are computed in blocks of `text_block` x `video_block` pairs.
    `precision`: of the encoders, `float32`, or `bfloat16`, which changes scores by far more than that.
    """

    batch_size: int = 32
    text_block: int = 128
    video_block: int = 512
    precision: str = "float32"


def evaluate_split(
    scorer: Scorer,
    inputs: Inputs,
    split: Split,
    blocks: Blocks,
    device: torch.device | str,
    processes: Processes | None = None,
    *,
    final: bool = False,
    reranking: Reranking | None = None,
    post: PostProcessing | None = None,
    keep_ranks: Callable[[Ranks], object] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the `t2v` and `v2t` metrics, `sum_of_recalls`, the numbers of `videos` and `captions`.

    With `final`, for a result that is reported, also `cost`, as `search_cost` returns it, and what `certainty`
    returns. With `reranking`, also `reranked`, the name of the teacher and what `reranked` returns. With `post`, also
    `post_processed`, see there. `keep_ranks` gets the ranks. All processes encode their share and return the same
    numbers.
    """
    encode = functools.partial(
        encode_split,
        batch_size=blocks.batch_size,
        device=device,
        processes=processes,
        progress=progress,
        precision=blocks.precision,
    )
    texts, videos = encode(scorer, inputs)
    texts, videos = tokens_to(texts, device), tokens_to(videos, device)
    with torch.no_grad():
        ranks = retrieval_ranks(
            scorer,
            texts,
            videos,
            split.caption_videos,
            text_block=blocks.text_block,
            video_block=blocks.video_block,
            progress=progress,
        )
    metrics = metrics_of(ranks)
    metrics["videos"], metrics["captions"] = len(split.videos), len(split.captions)
    if keep_ranks is not None:
        keep_ranks(ranks)
    if final:
        metrics["cost"] = search_cost(scorer, texts, videos)
        metrics |= certainty(ranks, split)
    if reranking is not None:
        again = _again(reranking, encode, blocks.batch_size, device)
        owners, runs = split.caption_videos, _cost_runs(reranking)
        by_depth = reranked(scorer, texts, videos, reranking.depths, again, owners, cost_runs=runs, progress=progress)
        metrics["reranked"] = {"by": reranking.name, "depths": by_depth}
    if post is not None:
        how: dict[str, Any] = {"block": blocks.text_block, "device": device, "precision": blocks.precision}
        metrics["post_processed"] = post_processed(scorer, texts, videos, split.caption_videos, post, **how)
    return metrics


def _cost_runs(reranking: Reranking) -> int:
    return PAIR_COST_RUNS if isinstance(reranking.teacher, PairScorer) else COST_RUNS


def _again(
    reranking: Reranking, encode: Callable[..., tuple[Tokens, Tokens]], batch_size: int, device: torch.device | str
) -> Again:
    """Return how the teacher scores, once it has encoded all that it encodes once, by `encode`."""
    teacher, inputs = reranking.teacher, reranking.inputs
    if isinstance(teacher, PairScorer):
        return again_by_inputs(teacher, inputs, batch_size=batch_size, device=device)
    texts, videos = (tokens_to(part, device) for part in encode(teacher, inputs))
    return again_by_tokens(teacher, texts, videos)
