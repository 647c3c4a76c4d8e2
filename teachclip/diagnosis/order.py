"""Whether a student knows in which order things happen: frames and clauses in another order.

A student that is blind to order finds as much when the frames of every video change places, and prefers "A, then B"
to "B, then A" for a video as often as not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Caption, Split
from teachclip.data.batches import Tokenized
from teachclip.data.clauses import swapped
from teachclip.diagnosis.ladder import Step, measure
from teachclip.models.families import vocabulary_size
from teachclip.models.student import StudentModel
from teachclip.pipeline.workspace import Workspace
from teachclip.scorer import Tokens, teacher_traits

SEED = 0


def reversed_frames(mask: Tensor) -> Tensor:
    """Return the places of each video's frames from the last to the first: (videos, frames); padding stays."""
    return _reordered(mask, lambda count: np.arange(count)[::-1])


def permuted_frames(mask: Tensor, *, seed: int = SEED) -> Tensor:
    """Return the places of each video's frames in random order: (videos, frames); padding stays."""
    rng = np.random.default_rng(seed)
    return _reordered(mask, rng.permutation)


def _reordered(mask: Tensor, order: Callable[[int], np.ndarray]) -> Tensor:
    places = np.tile(np.arange(mask.shape[1]), (len(mask), 1))
    for row, valid in zip(places, mask.bool().cpu().numpy(), strict=True):
        own = np.flatnonzero(valid)
        row[own] = own[order(len(own))]
    return torch.from_numpy(places)


@torch.no_grad()
def frame_order_steps(student: StudentModel, texts: Tensor, videos: Tokens, caption_videos: np.ndarray) -> list[Step]:
    """Return the student's results with the frames of every video in another order.

    `texts`: (captions, dim), embedded. `videos`: `frame_features` (videos, frames, dim) and `frame_mask`.
    """
    features, mask = videos["frame_features"], videos["frame_mask"].bool()
    steps = []
    for name, places in (("reversed", reversed_frames(mask)), ("permuted", permuted_frames(mask))):
        moved = features[torch.arange(len(features))[:, None], places.to(features.device)]
        embeds = student.videos_from_features(moved, mask)["embeds"]
        metrics = measure(texts @ embeds.T, caption_videos)
        description = f"The student with the frames of every video {name}: what it loses is what it knows of order."
        steps.append(Step(f"frames_{name}", f"frames {name}", description, metrics))
    return steps


@torch.no_grad()
def clause_order(work: Workspace, student: StudentModel, split: Split, videos: Tensor) -> dict[str, Any]:
    """Return how often the student prefers a caption to the same one with its clauses swapped, for its own video.

    `videos`: (videos, dim), embedded. Returns `captions`, how many tell an order, and `preferred`, the share in
    percent of which the true order scores higher (50: it cannot tell them apart), or None if there are none.
    """
    others = {row: text for row, caption in enumerate(split.captions) if (text := swapped(caption.text))}
    if not others:
        return {"captions": 0, "preferred": None}
    rows = list(others)
    own = _embedded(work, student, [split.captions[row] for row in rows])
    other = _embedded(work, student, [replace(split.captions[row], text=text) for row, text in others.items()])
    shown = videos[torch.from_numpy(split.caption_videos[rows])].cpu()
    ahead = ((own - other) * shown).sum(dim=1)
    preferred = 100 * ((ahead > 0).double() + 0.5 * (ahead == 0).double()).mean()
    return {"captions": len(rows), "preferred": float(preferred)}


def _embedded(work: Workspace, student: StudentModel, captions: Sequence[Caption], block: int = 256) -> Tensor:
    how = teacher_traits(student).preprocessing or work.preprocessing
    size = vocabulary_size(work.backbone.config)
    tokenized = Tokenized.from_captions(
        list(captions),
        how.tokenizer,
        max_tokens=how.max_tokens,
        vocab_size=size,
        pad_id=how.pad_id,
        pad_to=how.pad_to,
    )
    parts = []
    for start in range(0, len(captions), block):
        ids, mask = tokenized.batch(np.arange(start, min(start + block, len(captions))))
        parts.append(student.encode_texts(ids.to(work.device), mask.to(work.device))["embeds"].cpu())
    return torch.cat(parts)
