"""What a student returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class StudentOutput(ModelOutput):
    """What a student computes in one forward pass; parts without input are None."""

    logits_per_text: Tensor | None = None
    """Cosines (texts, videos) times exp(logit_scale), plus SigLIP's bias; float32."""
    logits_per_video: Tensor | None = None
    """Its transpose (videos, texts)."""
    frame_scores: Tensor | None = None
    """Raw score of every frame (videos, frames); what it says of a padded frame means nothing."""
    frame_weights: Tensor | None = None
    """The attention of the scores at temperature 1 over valid frames (videos, frames); rows sum to 1."""
    video_embeds: Tensor | None = None
    """L2-normalised (videos, dim)."""
    text_embeds: Tensor | None = None
    """L2-normalised (texts, dim)."""
