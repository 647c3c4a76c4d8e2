"""The three losses of TeachCLIP (CVPR 2024, section 3.2), as pure functions of tensors.

| function | teaches | compares |
|---|---|---|
| `contrastive_loss` | which caption belongs to which video | student logits with the pairing itself |
| `video_text_loss` | how close every caption is to every video | student logits with teacher logits |
| `frame_text_loss` | which frames a caption speaks of | student frame weights with a teacher's frame relevance |

The published total is 0.2 contrastive + 1 video-text + 2 frame-text, or 1, 10, 1 where the video-text kind is
`cross_entropy`, whose mean over all elements makes it small. With several teachers each term is the mean over them.

Every function converts its inputs to float32 first (autocast would leave a softmax in bfloat16), returns a 0-d
float32 tensor, sends no gradient to the teacher, and needs no synchronisation with the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

CONSTANT = 1e-6
"""A row whose spread is below this share of its length is constant up to float32 rounding: it has no correlation."""


def contrastive_loss(logits_per_text: Tensor, positives: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of matching captions and videos (InfoNCE; CLIP, Radford et al. 2021, section 2.3).

    `(CE(S) + CE(S^T)) / 2`, where CE is the mean over rows of `-sum_j t_ij log softmax(S_i)_j` and the target t_i is
    uniform over the positives of row i. Without `positives` row i belongs to column i and this is the usual diagonal
    form. Several captions of one video in a batch are all positives of it, never negatives.

    `logits_per_text`: (texts, videos), already divided by a temperature if there is one. `positives`: (texts, videos)
    bool. A text or a video without any positive is only a negative to others: it is left out of its mean. Raises
    ValueError on wrong shapes.
    """
    _check_matrix("logits_per_text", logits_per_text)
    texts, videos = logits_per_text.shape
    if positives is None:
        if texts != videos:
            raise ValueError(f"logits_per_text is {texts} x {videos}: without positives it must be square")
        positives = torch.eye(texts, dtype=torch.bool, device=logits_per_text.device)
    _check_mask("positives", positives, logits_per_text)
    logits = logits_per_text.float()
    return (_match(logits, positives) + _match(logits.T, positives.T)) / 2


def _match(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over the rows that have positives of the cross-entropy with the uniform distribution over them."""
    count = positives.sum(-1)
    rows = -F.log_softmax(logits, -1).masked_fill(~positives, 0).sum(-1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)


def video_text_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: str = "pearson", temperature: float = 1.0
) -> Tensor:
    """Distance of the student's video-text relevance from a teacher's (TeachCLIP, section 3.2.1).

    With `x = student_logits / temperature`, `y = teacher_logits / temperature`, and rows of both directions (texts,
    then videos by transposing):

    - `pearson` (published default): mean over rows of `1 - corr(softmax(x_row), softmax(y_row))`, both directions
      added, so in [0, 4]. Blind to scale and shift of the probabilities: it asks for the teacher's preferences, not
      for its confidence (DIST, Huang et al. 2022). A row that is constant in student or teacher has no correlation;
      it counts as 1 and gives no gradient. So one pair in a batch gives exactly 2.
    - `cross_entropy`: mean over ALL elements of `-softmax(y) log softmax(x)`, both directions added. As published; it
      is the usual soft cross-entropy divided by the row length, hence its published weight of 10.
    - `kl`: mean over rows of `sum softmax(y) (log softmax(y) - log softmax(x))`, both directions added. Not
      published. In a square batch its gradient is that of `cross_entropy` times the batch size, and its minimum is 0.
      No factor `temperature**2` is applied, as in the siblings.
    - `smooth_l1`: Huber distance with threshold 1, mean over all elements of `x - y`. Compares logits, not
      distributions, so it also asks for the teacher's scale; both directions are the same and count once.

    `student_logits`, `teacher_logits`: (texts, videos), on the logit scale. Raises ValueError on an unknown kind,
    unequal shapes, or a temperature that is not positive.
    """
    loss = _pick("video-text", kind, VIDEO_TEXT_LOSSES)
    _check_temperature(temperature)
    _check_matrix("student_logits", student_logits)
    _check_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    return loss(student_logits.float() / temperature, teacher_logits.detach().float() / temperature)


def frame_text_loss(
    frame_scores: Tensor,
    frame_relevance: Tensor,
    *,
    kind: str = "cross_entropy",
    temperature: float = 1.0,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """Distance of the student's frame weights from a teacher's frame relevance (TeachCLIP, section 3.2.2).

    With `w = softmax(frame_scores / temperature)` over the valid frames of a pair and q the teacher's relevance of
    them, brought to sum 1:

    - `cross_entropy` (published default): mean over ALL valid elements of `-q log w`. As published; the usual soft
      cross-entropy divided by the number of frames, hence its published weight of 2.
    - `pearson`: mean over pairs of `1 - corr(w, q)`, in [0, 2]. One direction only: frames of different videos have
      nothing in common. A pair whose weights or relevance are constant counts as 1 and gives no gradient.
    - `smooth_l1`: Huber distance with threshold 1 of the weights, mean over all valid elements of `w - q`.

    The published temperature is 1, while the student pools with `softmax(frame_scores / 0.1)`: a gate that pools
    sharply matches softly. Larger values match softer still.

    The mean over all elements is taken over the valid frames of all pairs together: each pair's cross-entropy then
    has the same weight in the batch, whatever its length, and a batch padded to more frames has the same loss. (A
    mean within each pair first would let short videos weigh more.) No mask is the same as an all-true one. What
    padded frames hold has no influence, not even NaN; relevance that a teacher gave to them is dropped and the rest
    scaled to sum 1. A pair without a valid frame, or without any relevance on its valid frames, is left out.

    `frame_scores`: (pairs, frames), the raw scores of the frame-weighting head, no softmax. `frame_relevance`:
    (pairs, frames), non-negative. `frame_mask`: (pairs, frames) bool, True on real frames. Raises ValueError on an
    unknown kind, wrong shapes, or a temperature that is not positive.
    """
    loss = _pick("frame-text", kind, FRAME_TEXT_LOSSES)
    _check_temperature(temperature)
    _check_matrix("frame_scores", frame_scores)
    _check_shape("frame_relevance", frame_relevance, "frame_scores", frame_scores)
    if frame_mask is None:
        frame_mask = torch.ones_like(frame_scores, dtype=torch.bool)
    _check_mask("frame_mask", frame_mask, frame_scores)
    relevance = frame_relevance.detach().float().masked_fill(~frame_mask, 0)
    total = relevance.sum(-1, keepdim=True)
    mask = frame_mask & (total != 0)
    relevance = relevance / total.masked_fill(total == 0, 1)
    # The most negative number instead of -inf: a pair without valid frames stays finite and is then left out.
    scores = (frame_scores.float() / temperature).masked_fill(~mask, torch.finfo(torch.float32).min)
    return loss(F.log_softmax(scores, -1), relevance, mask)


def correlation_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `1 - corr(student_row, teacher_row)` of every row, corr being Pearson's (the cosine of centred rows).

    `student`, `teacher`: (rows, n) of one floating type; `mask`: (rows, n) bool, True on elements that take part.
    Returns (rows,) in [0, 2]. Where either row is constant (see `CONSTANT`) the result is 1 with no gradient: the
    limit does not exist, and dividing by a small constant instead would blow rounding noise up into a gradient.
    """
    mask = torch.ones_like(student, dtype=torch.bool) if mask is None else mask
    left, left_varies = _centred_unit(student, mask)
    right, right_varies = _centred_unit(teacher, mask)
    return 1 - (left * right).sum(-1) * (left_varies & right_varies)


def _centred_unit(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows minus their mean, scaled to length 1, and which rows vary at all (the others are zero)."""
    rows = rows.masked_fill(~mask, 0)
    mean = rows.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    centred = (rows - mean).masked_fill(~mask, 0)
    square = centred.square().sum(-1, keepdim=True)
    # Not written as `>`: a row with NaN must count as varying, so that NaN reaches the loss and is noticed.
    varies = ~(square <= CONSTANT**2 * rows.detach().square().sum(-1, keepdim=True))
    # The inner fill keeps the square root away from zero, where its gradient is infinite.
    unit = centred.masked_fill(~varies, 0) / square.masked_fill(~varies, 1).sqrt()
    return unit, varies.squeeze(-1)


def _both_ways(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """Add a loss over rows (texts) and the same over columns (videos)."""
    return loss(student, teacher) + loss(student.T, teacher.T)


def _video_pearson(student: Tensor, teacher: Tensor) -> Tensor:
    return _both_ways(lambda x, y: correlation_distance(x.softmax(-1), y.softmax(-1)).mean(), student, teacher)


def _video_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return _both_ways(lambda x, y: -(y.softmax(-1) * F.log_softmax(x, -1)).mean(), student, teacher)


def _video_kl(student: Tensor, teacher: Tensor) -> Tensor:
    def one_way(x: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(x, -1), F.log_softmax(y, -1), reduction="batchmean", log_target=True)

    return _both_ways(one_way, student, teacher)


def _video_smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher)


def _frame_cross_entropy(log_weights: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    return _masked_mean(-relevance * log_weights, mask)


def _frame_pearson(log_weights: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    return _masked_mean(correlation_distance(log_weights.exp(), relevance, mask), mask.any(-1))


def _frame_smooth_l1(log_weights: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    return _masked_mean(F.smooth_l1_loss(log_weights.exp(), relevance, reduction="none"), mask)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where `mask` is True, and 0 if there are none."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


VIDEO_TEXT_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pearson": _video_pearson,
    "cross_entropy": _video_cross_entropy,
    "smooth_l1": _video_smooth_l1,
    "kl": _video_kl,
}
"""Kinds of `video_text_loss`: functions of student and teacher logits (texts, videos) over the temperature."""

FRAME_TEXT_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": _frame_cross_entropy,
    "pearson": _frame_pearson,
    "smooth_l1": _frame_smooth_l1,
}
"""Kinds of `frame_text_loss`: functions of log weights, relevance and mask, each (pairs, frames)."""


def _pick(what: str, kind: str, table: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    if kind not in table:
        raise ValueError(f"unknown kind of {what} loss {kind!r}; known: {', '.join(table)}")
    return table[kind]


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name} must be a matrix with at least one element, got shape {tuple(tensor.shape)}")


def _check_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {other_name} has {tuple(other.shape)}; they must be equal"
        )


def _check_mask(name: str, mask: Tensor, of: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != of.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"{name} must be bool of shape {tuple(of.shape)}, got {got}")
