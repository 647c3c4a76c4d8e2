"""The one central interface: a scorer encodes texts once, encodes videos once, and scores pairs.

The student and every teacher are scorers (TeachCLIP, CVPR 2024, section 3: all of its models factor so). Training,
precomputing, evaluation and reranking are written once against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Tokens = dict[str, Tensor]
"""What scoring needs of some texts or videos: named tensors whose first dimension is the item."""


@runtime_checkable
class Scorer(Protocol):
    """A video-text scorer, student or teacher."""

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts. `input_ids`, `attention_mask`: (texts, tokens)."""

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos. `pixel_values`: (videos, frames, 3, height, width); `frame_mask`: (videos, frames) bool."""

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Score all pairs. Returns logits (texts, videos), higher is closer."""


@runtime_checkable
class Teacher(Scorer, Protocol):
    """A scorer that also says which frames of a video a matched text speaks of.

    A teacher that cannot say it has the attribute `has_frame_relevance = False` and may leave the method out.
    """

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Relevance of the frames of aligned pairs. Returns (pairs, frames), rows sum to 1 over valid frames."""


@runtime_checkable
class FeatureScorer(Scorer, Protocol):
    """A scorer on top of CLIP encoders, whose stored encoder features can stand in for the encoders."""

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Encode texts from raw CLIP text features (texts, dim)."""

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos from raw CLIP frame features (videos, frames, dim) and their mask (videos, frames)."""


def gives_frame_relevance(teacher: Any) -> bool:
    """Whether a teacher gives frame-text relevance too, not video-text relevance alone."""
    return bool(getattr(teacher, "has_frame_relevance", True)) and callable(getattr(teacher, "frame_relevance", None))


def reads_relevance(teacher: Any) -> bool:
    """Whether a teacher, or its class, cannot encode but reads relevance that was computed elsewhere."""
    return callable(getattr(teacher, "relevance_of", None))


def select_tokens(tokens: Tokens, rows: Tensor | slice | Sequence[int]) -> Tokens:
    """Take the items `rows` of every tensor."""
    return {name: tensor[rows] for name, tensor in tokens.items()}


def concat_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Join token sets of several batches along the items. All parts must have the same names and item shapes."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def tokens_to(tokens: Tokens, device: torch.device | str) -> Tokens:
    """Move every tensor to `device`."""
    return {name: tensor.to(device) for name, tensor in tokens.items()}
