"""Which frames a caption speaks of, from a teacher.

A kind is a function of `scores` (raw scores over the temperature, the most negative number where a frame is not
valid), `relevance` (the teacher's, rows sum to 1 over valid frames) and `mask` (bool), all (pairs, frames). It
returns values per pair (pairs,) or per element (pairs, frames), and a mask of that shape that says which of them
count in the mean. Another kind is one line in `teachclip.registry.FRAME_TEXT_LOSSES`, or `kind: module:name` in a
recipe.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.losses.checks import check_distances, check_mask, check_matrix, check_shape, check_temperature, pick
from teachclip.losses.correlation import correlation_distance
from teachclip.registry import FRAME_TEXT_LOSSES


def frame_text_loss(
    frame_scores: Tensor,
    frame_relevance: Tensor,
    *,
    kind: str = "cross_entropy",
    temperature: float = 1.0,
    frame_mask: Tensor | None = None,
    pair_weights: Tensor | None = None,
) -> Tensor:
    """Distance of the student's frame weights from a teacher's frame relevance (TeachCLIP, section 3.2.2).

    With `w = softmax(frame_scores / temperature)` over the valid frames of a pair and q the teacher's relevance of
    them, brought to sum 1:

    - `cross_entropy` (published default): mean over ALL valid elements of `-q log w`. As published; the usual soft
      cross-entropy divided by the number of frames, hence its published weight of 2.
    - `pearson`: mean over pairs of `1 - corr(w, q)`, in [0, 2]. One direction only: frames of different videos have
      nothing in common. A pair whose weights or relevance are constant counts as 1 and gives no gradient.
    - `smooth_l1`: Huber distance with threshold 1 of the weights, mean over all valid elements of `w - q`.
    - `binary_cross_entropy`: mean over all valid elements of `-y log p - (1 - y) log(1 - p)` with
      `p = sigmoid(frame_scores / temperature)` and `y = q / max q`. Not published; for the sigmoid attention: every
      frame is judged by itself, so that the frames of several events are all right at once.

    The published temperature is 1, while the student pools with `softmax(frame_scores / 0.1)`: frame attention that
    pools sharply matches softly. Larger values match softer still.

    The mean over all elements is taken over the valid frames of all pairs together: each pair's cross-entropy then
    has the same weight in the batch, whatever its length, and a batch padded to more frames has the same loss. (A
    mean within each pair first would let short videos weigh more.) No mask is the same as an all-true one. What
    padded frames hold has no influence, not even NaN; relevance that a teacher gave to them is dropped and the rest
    scaled to sum 1. A pair without a valid frame, or without any relevance on its valid frames, does not count.

    With `pair_weights` (pairs,) a pair counts that many times in the mean, whose divisor stays the same: weights that
    add up to 1 over several teachers share a pair out.

    `frame_scores`: (pairs, frames), the raw scores of the frame attention, no softmax. `frame_relevance`:
    (pairs, frames), non-negative. `frame_mask`: (pairs, frames) bool, True on real frames. Raises ValueError on an
    unknown kind, wrong shapes, or a temperature that is not positive.
    """
    loss = pick("frame-text", kind, FRAME_TEXT_LOSSES)
    check_temperature(temperature)
    check_matrix("frame_scores", frame_scores)
    check_shape("frame_relevance", frame_relevance, "frame_scores", frame_scores)
    if frame_mask is None:
        frame_mask = torch.ones_like(frame_scores, dtype=torch.bool)
    check_mask("frame_mask", frame_mask, frame_scores)
    relevance = frame_relevance.detach().float().masked_fill(~frame_mask, 0)
    total = relevance.sum(-1, keepdim=True)
    mask = frame_mask & (total != 0)
    relevance = relevance / total.masked_fill(total == 0, 1)
    # The most negative number instead of -inf: a pair without valid frames stays finite and does not count.
    scores = (frame_scores.float() / temperature).masked_fill(~mask, torch.finfo(torch.float32).min)
    values, valid = loss(scores, relevance, mask)
    check_distances("frame-text", kind, values, scores)
    check_mask("what counts", valid, values)
    if pair_weights is not None:
        if pair_weights.shape != scores.shape[:1]:
            raise ValueError(f"pair_weights has shape {tuple(pair_weights.shape)}; needed ({len(scores)},)")
        values = values * pair_weights.view(-1, *[1] * (values.ndim - 1))
    return _masked_mean(values, valid)


def soft_cross_entropy(scores: Tensor, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return `-relevance log softmax(scores)` of every element."""
    return -relevance * F.log_softmax(scores, -1), mask


def binary_cross_entropy(scores: Tensor, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy of `sigmoid(scores)` with `relevance / max relevance` of every element."""
    largest = relevance.amax(-1, keepdim=True)
    target = relevance / largest.masked_fill(largest == 0, 1)
    scores = scores.masked_fill(~mask, 0)  # what padded frames hold is dropped below and must stay finite until then
    return F.binary_cross_entropy_with_logits(scores, target, reduction="none"), mask


def pearson_distance(scores: Tensor, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return `1 - corr(softmax(scores), relevance)` of every pair."""
    weights = F.log_softmax(scores, -1).exp()
    return correlation_distance(weights, relevance, mask), mask.any(-1)


def smooth_l1_distance(scores: Tensor, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Huber distance, threshold 1, of `softmax(scores)` and relevance of every element."""
    weights = F.log_softmax(scores, -1).exp()
    return F.smooth_l1_loss(weights, relevance, reduction="none"), mask


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where `mask` is True, and 0 if there are none."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)
