"""Captions of the training split with their clauses swapped, as negatives that teach the order of events."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.data.batches import Tokenized
from teachclip.data.clauses import swapped
from teachclip.models.backbone import text_features
from teachclip.models.families import vocabulary_size
from teachclip.pipeline.workspace import Workspace
from teachclip.scoring.inputs import Batch, tokenize

BLOCK = 256


@dataclass(frozen=True)
class SwappedTexts:
    """Captions with their clauses swapped, by caption row; `is_swapped` (captions,) says which there are.

    `tokens` for encoders that train; `features` (captions, dim) of frozen ones.
    """

    is_swapped: np.ndarray
    tokens: Tokenized
    features: Tensor | None = None

    @property
    def text_count(self) -> int:
        """Number of captions, swapped or not."""
        return len(self.is_swapped)

    @property
    def video_count(self) -> int:
        """There are no videos here."""
        return 0

    def texts(self, rows: np.ndarray) -> Batch:
        """Return the inputs of some captions, and `is_swapped` (texts,)."""
        which = {"is_swapped": torch.from_numpy(self.is_swapped[rows])}
        if self.features is not None:
            return {"text_features": self.features[torch.from_numpy(rows)], **which}
        input_ids, attention_mask = self.tokens.batch(rows)
        return {"input_ids": input_ids, "attention_mask": attention_mask, **which}

    def videos(self, rows: np.ndarray) -> Batch:
        """Return nothing."""
        return {}


def build_swapped(work: Workspace, split: Split) -> SwappedTexts | None:
    """Return the captions of a split whose two clauses stand around a word of `swapped_clauses`, swapped.

    None if the recipe asks for none, or no caption has such clauses, which is logged. Frozen encoders read them here.
    """
    joints = work.recipe.losses.contrastive.swapped_clauses
    if not joints:
        return None
    texts = [swapped(caption.text, joints) for caption in split.captions]
    is_swapped = np.array([text is not None for text in texts], dtype=bool)
    log(f"clauses swapped: {int(is_swapped.sum())} of {len(texts)} captions")
    if not is_swapped.any():
        return None
    captions = [
        replace(caption, text=text or caption.text) for caption, text in zip(split.captions, texts, strict=True)
    ]
    size = vocabulary_size(work.backbone.config)
    tokens = tokenize(replace(split, captions=tuple(captions)), work.preprocessing, vocab_size=size)
    if work.recipe.train.encoders != "frozen":
        return SwappedTexts(is_swapped, tokens)
    return SwappedTexts(is_swapped, tokens, _features(work, tokens, np.flatnonzero(is_swapped)))


@torch.no_grad()
def _features(work: Workspace, tokens: Tokenized, rows: np.ndarray) -> Tensor:
    """Return what the frozen text encoder gives of some captions, zeros for the others: (captions, dim), float32."""
    backbone = work.backbone.to(work.device).eval()
    parts = []
    for start in range(0, len(rows), BLOCK):
        ids, mask = tokens.batch(rows[start : start + BLOCK])
        parts.append(text_features(backbone, ids.to(work.device), mask.to(work.device)).float().cpu())
    found = torch.cat(parts)
    features = torch.zeros(len(tokens), found.shape[1])
    features[torch.from_numpy(rows)] = found
    return features
