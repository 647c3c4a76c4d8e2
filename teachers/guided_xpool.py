"""X-Pool with the frame attention of a student: what the student has learnt goes back to its teacher.

X-Pool's attention (Gorti et al., CVPR 2022, section 4) depends on the text, so that a wrong text takes frames that no
caption speaks of. A student's attention (TeachCLIP, CVPR 2024, section 3.1) has learnt which these are, and is the
prior of X-Pool's. No paper does this; what it is worth: recipes/RESULTS.md, "A teacher that is given its student's
attention".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from teachclip.errors import CheckpointError
from teachclip.models.backbone import frame_features
from teachclip.models.modeling import StudentModel
from teachclip.models.student import load_student
from teachclip.scorer import Tokens
from teachers.xpool import LOG_PRIOR, XPool

LEAST_WEIGHT = 1e-6
"""The least that a frame weighs in the prior: one that a student has learnt to leave out stays possible."""


class GuidedXPool(nn.Module):
    """An X-Pool whose attention over frames has a student's as its prior.

    xpool: the teacher as published.
    student: gives the prior, from its own encoders and the same frames.
    strength: factor on the logarithm of the student's weights; 0 is the teacher as published.
    """

    def __init__(self, xpool: XPool, student: StudentModel, *, strength: float = 1.0) -> None:
        super().__init__()
        sizes = [model.vision_config.image_size for model in (xpool.clip.config, student.config.backbone_config)]
        if sizes[0] != sizes[1]:
            raise CheckpointError(f"guided_xpool: X-Pool reads frames of {sizes[0]} pixels, its student {sizes[1]}")
        if student.config.pooling == "mean":
            raise CheckpointError("guided_xpool: the student has no frame attention, it averages its frames")
        if strength < 0:
            raise CheckpointError(f"guided_xpool: strength is {strength}; allowed: numbers from 0")
        self.xpool = xpool
        self.student = student
        self.strength = strength
        self.max_frames = student.config.max_frames if student.config.temporal_layers else None

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        student: str,
        strength: float = 1.0,
        mask_padding: bool = True,
        heads: int = 1,
        dropout: float = 0.3,
        clip_config: Mapping[str, Any] | None = None,
        source: str = "xpool checkpoint",
    ) -> GuidedXPool:
        """Build a teacher from an official X-Pool state dict and the folder or checkpoint of a `student`.

        The other options are `XPool`'s. Raises CheckpointError if either does not load, the student has no frame
        attention, or the two read frames of another size.
        """
        options: dict[str, Any] = {
            "mask_padding": mask_padding,
            "heads": heads,
            "dropout": dropout,
            "clip_config": clip_config,
        }
        xpool = XPool.from_state_dict(state, **options, source=source)
        return cls(xpool, load_student(os.path.expanduser(student)), strength=strength)

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens) as `XPool` does."""
        return self.xpool.encode_texts(input_ids, attention_mask)

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) as `XPool` does, with the prior (videos, frames)."""
        frames = frame_features(self.student.backbone, pixel_values)
        weights = self.student.aggregate(frames, frame_mask)[1].pooling_weights
        if weights.ndim == 3:  # of several vectors: a frame that any of them takes
            weights = weights.mean(dim=1)
        prior = self.strength * weights.float().clamp_min(LEAST_WEIGHT).log()
        return {**self.xpool.encode_videos(pixel_values, frame_mask), LOG_PRIOR: prior}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return X-Pool's logits (texts, videos), float32, with the prior in its attention."""
        return self.xpool.score(texts, videos)

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return X-Pool's attention of text i over the frames of video i (pairs, frames), with the prior."""
        return self.xpool.frame_relevance(texts, videos)
