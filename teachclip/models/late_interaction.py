"""A zero-shot dual encoder that keeps every frame: a video is as close to a text as its closest frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from teachclip.models.backbone import logits_of
from teachclip.models.mean_pooling import MeanPooling
from teachclip.scorer import Tokens


class LateInteraction(MeanPooling):
    """The best cosine of a text and a frame: what frame sets teach where the backbone scores them."""

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Return `frames` (videos, frames, dim), L2-normalised, and `frame_mask` (videos, frames)."""
        return {"frames": normalize(frame_features, dim=-1), "frame_mask": frame_mask}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return logits (texts, videos): the highest cosine over the valid frames, scaled as the backbone does."""
        cosines = torch.einsum("td,vfd->tvf", texts["embeds"], videos["frames"])
        cosines = cosines.masked_fill(~videos["frame_mask"], float("-inf"))
        return logits_of(self.backbone, cosines.amax(dim=-1))
