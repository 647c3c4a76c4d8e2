"""The text-text loss: a text encoder learns where another one puts texts in the joint space."""

from __future__ import annotations

import torch
from torch import Tensor


def text_text_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of `1 - cos` of the embeddings of aligned texts, both (texts, dim); 0-d float32.

    For unit vectors it is half of the squared distance by which Reimers and Gurevych (EMNLP 2020, section 2) let a
    multilingual student imitate a teacher on translated sentences. Cosines are all that a search reads of texts.
    """
    return (1 - torch.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()
