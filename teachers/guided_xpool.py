"""X-Pool with the frame attention of a student: what the student has learnt goes back to its teacher.

X-Pool's attention (Gorti et al., CVPR 2022, section 4) depends on the text, so that a wrong text takes frames that no
caption speaks of. A student's attention (TeachCLIP, CVPR 2024, section 3.1) has learnt which these are, and is the
prior of X-Pool's. No paper does this; what it is worth: recipes/RESULTS.md, "A teacher that is given its student's
attention".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import CLIPModel

from teachclip.errors import CheckpointError
from teachclip.models.backbone import frame_features
from teachclip.models.configuration import FIELDS
from teachclip.models.families import family_of, image_size
from teachclip.models.modeling import StudentModel
from teachclip.models.student import load_student
from teachclip.scorer import Tokens
from teachers.xpool import LOG_PRIOR, XPool

LEAST_WEIGHT = 1e-6
"""What a frame at least weighs: one that the student has learnt to leave out stays possible."""

MOST_STRENGTH = 100.0


class GuidedXPool(nn.Module):
    """An X-Pool whose attention over frames has a student's as its prior.

    xpool: the teacher as published. Its official code gives padded frames attention (`mask_padding=False`); a
        student that masks them takes it from them.
    student: gives the prior from its own encoders, so that a video is encoded twice. Both read what the student reads
        (`preprocessing`), if it has a processor, and else what the run reads.
    strength: factor on the logarithm of the student's weights, from 0, the teacher as published, to 100.

    Raises CheckpointError for a student that has no frame attention or is no CLIP of X-Pool's image size, and for
    another strength.
    """

    loads = ("student",)
    """The option that is a place and not a setting; see `teachclip.scorer.TeacherTraits`."""

    def __init__(self, xpool: XPool, student: StudentModel, *, strength: float = 1.0) -> None:
        super().__init__()
        family = family_of(student.config.backbone_config).name
        if family != family_of(xpool.clip.config).name:
            raise CheckpointError(f"its student reads the tokens and pixels of {family}, X-Pool those of CLIP")
        sizes = [image_size(config) for config in (xpool.clip.config, student.config.backbone_config)]
        if sizes[0] != sizes[1]:
            raise CheckpointError(f"X-Pool reads frames of {sizes[0]} pixels, its student of {sizes[1]}")
        if student.config.pooling == "mean":
            raise CheckpointError("its student has no frame attention: it averages its frames")
        if not 0 <= strength <= MOST_STRENGTH:  # also not for NaN
            raise CheckpointError(f"strength is {strength}; allowed: numbers from 0 to {MOST_STRENGTH:g}")
        self.xpool = xpool
        self.student = student
        self.strength = strength
        config = student.config.to_dict()
        self.student_settings = json.dumps({key: config.get(key) for key in FIELDS}, sort_keys=True, default=str)
        """What the weights do not tell of the student, for the identity of this teacher."""
        self.preprocessing = None if student.processor is None else student.processor.preprocessing
        self.max_frames = student.config.max_frames if student.config.temporal_layers else None

    @property
    def clip(self) -> CLIPModel:
        """X-Pool's encoders."""
        return self.xpool.clip

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
        """Build a teacher from an official X-Pool state dict and a `student`, as `load_student` takes it.

        The other options are `XPool`'s. Raises CheckpointError, with `source` or the option in front, if either does
        not load or the two do not fit; see the class.
        """
        options: dict[str, Any] = {"mask_padding": mask_padding, "heads": heads, "dropout": dropout}
        xpool = XPool.from_state_dict(state, **options, clip_config=clip_config, source=source)
        try:
            return cls(xpool, load_student(os.path.expanduser(student)), strength=strength)
        except CheckpointError as error:
            raise CheckpointError(f"guided_xpool: options.student={student}: {error}") from error

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens) as `XPool` does."""
        return self.xpool.encode_texts(input_ids, attention_mask)

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) as `XPool` does, with `log_prior` (videos, frames)."""
        frames = frame_features(self.student.backbone, pixel_values)
        weights = self.student.aggregate(frames, frame_mask)[1].pooling_weights
        if weights.ndim == 3:  # of several vectors: what they take together
            weights = weights.mean(dim=1)
        prior = self.strength * weights.float().clamp_min(LEAST_WEIGHT).log()
        return {**self.xpool.encode_videos(pixel_values, frame_mask), LOG_PRIOR: prior}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return X-Pool's logits (texts, videos), float32, with the prior in its attention."""
        return self.xpool.score(texts, videos)

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return X-Pool's attention of text i over the frames of video i (pairs, frames), with the prior."""
        return self.xpool.frame_relevance(texts, videos)
