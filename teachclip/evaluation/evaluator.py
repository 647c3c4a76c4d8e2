"""Evaluate a scorer on a split: encode once, rank, count. The same code serves students and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from teachclip.data.annotations.records import Split
from teachclip.evaluation.cost import search_cost
from teachclip.evaluation.retrieval import evaluate_retrieval
from teachclip.processes import Processes
from teachclip.scorer import Scorer, tokens_to
from teachclip.scoring.inputs import Inputs, encode_split


@dataclass(frozen=True)
class Blocks:
    """How much is computed at once: changes speed and memory, and ranks no more than rounding in the last bit does.

    `batch_size` videos per forward pass; scores of `text_block` x `video_block` pairs.
    """

    batch_size: int = 32
    text_block: int = 128
    video_block: int = 512


def evaluate(
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
    """Return `t2v` and `v2t` metrics, `sum_of_recalls`, and with `cost` what the scorer costs at search time.

    All processes encode their share and return the same numbers.
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
