"""Embeddings from which no gradient goes to the residual adapters: what captions compare where they spare these."""

from __future__ import annotations

import torch.nn.functional as F

from teachclip.models.backbone import frame_features, text_features
from teachclip.models.student import StudentModel
from teachclip.scorer import Tokens
from teachclip.scoring.inputs import Batch


def spares_adapters(student: StudentModel, teaches_adapters: bool) -> bool:
    """Whether there are adapters that captions are not to teach."""
    return bool(student.heads) and not teaches_adapters


def encode_and_spare(student: StudentModel, inputs: Batch) -> Tokens:
    """Return a student's embeddings and frame scores, and the same embeddings without a gradient to the adapters.

    `inputs`: of the student's forward. `texts` (texts, dim), `videos` (videos, dim) and `frame_scores` (videos,
    frames) as by it; `contrasted_texts` and `contrasted_videos` equal the first two. All but the adapters and the
    frame attention is computed once.
    """
    if "text_features" in inputs:
        texts = inputs["text_features"]
    else:
        texts = text_features(student.backbone, inputs["input_ids"], inputs["attention_mask"])
    if "frame_features" in inputs:
        frames = inputs["frame_features"]
    else:
        frames = frame_features(student.backbone, inputs["pixel_values"])
    mask = inputs["frame_mask"]
    hidden, usual = student.aggregate(frames, mask)
    with student.heads.spared():
        contrasted_texts = student.texts_from_features(texts)["embeds"]
        contrasted = student.pool(hidden, frames, mask)
    return {
        "texts": student.texts_from_features(texts)["embeds"],
        "videos": F.normalize(usual.pooled, dim=-1),
        "frame_scores": usual.attention_scores,
        "contrasted_texts": contrasted_texts,
        "contrasted_videos": F.normalize(contrasted.pooled, dim=-1),
    }
