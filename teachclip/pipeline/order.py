"""What teaches the order of events: captions with their clauses swapped, and videos joined from two clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.console import log
from teachclip.data.annotations.records import Caption, Split
from teachclip.data.batches import Tokenized
from teachclip.data.clauses import caption_pairs, swapped
from teachclip.errors import RecipeError
from teachclip.models.backbone import text_features
from teachclip.models.families import vocabulary_size
from teachclip.models.preprocessing import Preprocessing
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.schema import Recipe
from teachclip.scoring.inputs import Batch, Inputs
from teachclip.training.joined_clips import JoinedClips

BLOCK = 256


@dataclass(frozen=True)
class Texts:
    """Texts by row, without videos: token ids, or `features` (texts, dim) of frozen encoders."""

    tokens: Tokenized
    features: Tensor | None = None

    @property
    def text_count(self) -> int:
        """Number of texts."""
        return len(self.tokens)

    @property
    def video_count(self) -> int:
        """There are no videos here."""
        return 0

    def texts(self, rows: np.ndarray) -> Batch:
        """Return the inputs of some texts."""
        if self.features is not None:
            return {"text_features": self.features[torch.from_numpy(rows)]}
        input_ids, attention_mask = self.tokens.batch(rows)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def videos(self, rows: np.ndarray) -> Batch:
        """Return nothing."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SwappedTexts(Texts):
    """Captions with their clauses swapped, by caption row; `is_swapped` (captions,) says which there are."""

    is_swapped: np.ndarray

    def texts(self, rows: np.ndarray) -> Batch:
        """Return the inputs of some captions, and `is_swapped` (texts,)."""
        return {**super().texts(rows), "is_swapped": torch.from_numpy(self.is_swapped[rows])}


def build_swapped(work: Workspace, split: Split) -> SwappedTexts | None:
    """Return the captions of a split whose two clauses stand around a word of `swapped_clauses`, swapped.

    Those that do not fit into `text.max_tokens` are excluded: what is cut off may be a clause. None if the recipe
    asks for none, or there is none, which is logged. Frozen encoders read them here.
    """
    connectives = work.recipe.losses.contrastive.swapped_clauses
    if not connectives:
        return None
    texts = [swapped(caption.text, connectives) for caption in split.captions]
    captions = [
        replace(caption, text=text or caption.text) for caption, text in zip(split.captions, texts, strict=True)
    ]
    tokens = _tokens(captions, work.preprocessing, work.backbone)
    has_clauses = np.array([text is not None for text in texts], dtype=bool)
    is_swapped = has_clauses & (tokens.lengths < work.preprocessing.max_tokens)
    too_long = has_clauses.sum() - is_swapped.sum()
    cut = f"; {too_long} more do not fit into text.max_tokens={work.preprocessing.max_tokens}" if too_long else ""
    log(f"clauses swapped: {is_swapped.sum()} of {len(texts)} captions{cut}")
    if not is_swapped.any():
        return None
    if work.recipe.train.encoders != "frozen":
        return SwappedTexts(tokens, is_swapped=is_swapped)
    features = _features(work, tokens, np.flatnonzero(is_swapped))
    return SwappedTexts(tokens, features, is_swapped=is_swapped)


def build_joined(work: Workspace, split: Split, inputs: Inputs) -> JoinedClips | None:
    """Return the joined clips of a recipe, or None if it has none.

    `inputs`: the student's, of the training split. Raises RecipeError as `joined_pairs` does.
    """
    recipe, term = work.recipe, work.recipe.losses.joined_clips
    if not term.is_used:
        return None
    pairs = joined_pairs(recipe, split, work.preprocessing, work.backbone)
    log(f"joined clips: {len(pairs)} pairs of captions of different videos")
    captions = [*_joined(split, pairs, term.connective), *_joined(split, pairs[:, ::-1], term.connective)]
    tokens = _tokens(captions, work.preprocessing, work.backbone)
    frozen = recipe.train.encoders == "frozen"
    features = _features(work, tokens, np.arange(len(tokens))) if frozen else None
    clips = split.caption_videos[pairs]
    return JoinedClips(inputs, Texts(tokens, features), clips, term.count, recipe.order_seed)


def joined_pairs(recipe: Recipe, split: Split, how: Preprocessing, backbone: Any) -> np.ndarray:
    """Return caption rows of the clips that a recipe joins, (pairs, 2): those whose texts fit into `text.max_tokens`.

    `how`: how the student reads texts. Raises RecipeError if there are fewer pairs than a step takes.
    """
    term = recipe.losses.joined_clips
    pairs = caption_pairs(split, recipe.order_seed)
    both = [_joined(split, pairs, term.connective), _joined(split, pairs[:, ::-1], term.connective)]
    fits = np.maximum(*(_tokens(captions, how, backbone).lengths for captions in both)) < how.max_tokens
    if fits.sum() < term.count:
        raise RecipeError(
            f"losses.joined_clips: {fits.sum()} pairs of captions fit into text.max_tokens={how.max_tokens}, fewer "
            f"than count={term.count}; raise text.max_tokens or lower count"
        )
    return pairs[fits]


def _joined(split: Split, pairs: np.ndarray, connective: str) -> list[Caption]:
    """Return "A then B" for each pair of caption rows."""
    texts = [caption.text for caption in split.captions]
    return [
        Caption(
            f"{one}+{other}", split.captions[one].video_id, f"{texts[one].rstrip(' .')}{connective}{texts[other]}"
        )
        for one, other in pairs.tolist()
    ]


def _tokens(captions: Sequence[Caption], how: Preprocessing, backbone: Any) -> Tokenized:
    options: dict[str, Any] = {
        "max_tokens": how.max_tokens,
        "vocab_size": vocabulary_size(backbone.config),
        "pad_id": how.pad_id,
        "pad_to": how.pad_to,
    }
    return Tokenized.from_captions(captions, how.tokenizer, **options)


@torch.no_grad()
def _features(work: Workspace, tokens: Tokenized, rows: np.ndarray) -> Tensor:
    """Return what the frozen text encoder gives of some captions, zeros for the others: (captions, dim), float32."""
    backbone = work.backbone.to(work.device).eval()
    parts = []
    for start in range(0, len(rows), BLOCK):
        ids, mask = tokens.batch(rows[start : start + BLOCK])
        parts.append(text_features(backbone, ids.to(work.device), mask.to(work.device)).float().cpu())
    encoded = torch.cat(parts)
    features = torch.zeros(len(tokens), encoded.shape[1])
    features[torch.from_numpy(rows)] = encoded
    return features
