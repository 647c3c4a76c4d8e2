"""Which caption belongs to which video, from the pairing itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.losses.checks import check_mask, check_matrix


def contrastive_loss(logits_per_text: Tensor, positives: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Symmetric cross-entropy of matching captions and videos (InfoNCE; CLIP, Radford et al. 2021, section 2.3).

    `(CE(S) + CE(S^T)) / 2`, where CE is the mean over rows of `-sum_j t_ij log softmax(S_i)_j` and the target t_i is
    uniform over the positives of row i. Without `positives` row i belongs to column i and this is the usual diagonal
    form. Several captions of one video in a batch are all positives of it, never negatives.

    `logits_per_text`: (texts, videos), divided by `temperature` here. `positives`: (texts, videos) bool. A text or a
    video without any positive is only a negative to others: it does not count in its mean. Raises ValueError on wrong
    shapes.
    """
    check_matrix("logits_per_text", logits_per_text)
    texts, videos = logits_per_text.shape
    if positives is None:
        if texts != videos:
            raise ValueError(f"logits_per_text is {texts} x {videos}: without positives it must be square")
        positives = torch.eye(texts, dtype=torch.bool, device=logits_per_text.device)
    check_mask("positives", positives, logits_per_text)
    logits = logits_per_text.float()
    if temperature != 1:  # a division by 1 would change the order in which gradients add up
        logits = logits / temperature
    return (_match(logits, positives) + _match(logits.T, positives.T)) / 2


def _match(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over the rows that have positives of the cross-entropy with the uniform distribution over them."""
    count = positives.sum(-1)
    rows = -F.log_softmax(logits, -1).masked_fill(~positives, 0).sum(-1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)
