"""Frame attention: attentional frame aggregation (AFA) of TeachCLIP (CVPR 2024, section 3.1), and mean pooling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachclip.errors import DataError


class AttentionOutput(NamedTuple):
    """The output of `FrameAttention` and `UniformAttention`."""

    pooled: Tensor
    """The features of the videos (videos, dim), not normalised; of several vectors (videos, vectors, dim)."""
    attention_scores: Tensor
    """The raw score of every frame (videos, frames), including padded ones."""
    attention_weights: Tensor
    """The weights at temperature 1 (videos, frames), which frame-text losses compare with a teacher's relevance."""
    pooling_weights: Tensor
    """The weights of the frames in `pooled` (videos, frames); rows sum to 1, padded frames have 0.

    Scores and weights of an attention of several vectors are (videos, vectors, frames).
    """


def complete_mask(frame_mask: Tensor | None, like: Tensor) -> Tensor:
    """Return a frame mask as bool; None becomes a mask of all True for `like` (videos, frames, ...).

    Raises DataError for another shape.
    """
    if frame_mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if frame_mask.shape != like.shape[:2]:
        raise DataError(f"frame_mask has shape {tuple(frame_mask.shape)}, expected {tuple(like.shape[:2])}")
    return frame_mask.bool()


def usable_mask(mask: Tensor) -> Tensor:
    """Return `mask` with rows of only False set to True, so that no softmax becomes NaN."""
    mask = mask.bool()
    return mask | ~mask.any(dim=-1, keepdim=True)


def masked_softmax(scores: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Return softmax(scores / temperature) over the last dimension in float32, exactly zero where `mask` is False.

    `mask`: bool, broadcast against `scores`, or None for no mask. A row of only False counts as all True.
    """
    scores = scores.float() / temperature
    if mask is not None:
        scores = scores.masked_fill(~usable_mask(mask), float("-inf"))
    return scores.softmax(dim=-1)


def check_pairs(texts: Tensor, videos: Tensor) -> None:
    """Raise DataError unless there are as many texts as videos: frame relevance is defined for pairs."""
    if len(texts) != len(videos):
        raise DataError(f"frame relevance needs pairs, got {len(texts)} texts and {len(videos)} videos")


def frame_text_relevance(sentence: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax_f(cos(text i, frame f of video i)) at temperature 1 (pairs, frames), float32.

    `sentence`: (pairs, dim), `frames`: (pairs, frames, dim), normalised or not; `mask`: as of `masked_softmax`.
    """
    check_pairs(sentence, frames)
    with torch.autocast(frames.device.type, enabled=False):
        sentence, frames = F.normalize(sentence.float(), dim=-1), F.normalize(frames.float(), dim=-1)
        return masked_softmax(torch.einsum("pd,pfd->pf", sentence, frames), mask)


def residual_pooling(tokens: Tensor, mask: Tensor, assignment_centers: Tensor, residual_centers: Tensor) -> Tensor:
    """Return the residuals of sets of tokens to K centres, pooled and L2-normalised (items, dim), in float32.

    The alignment block of CLIP2Video (section 3.3) with w = assignment_centers, e = residual_centers, each (K, dim):
    a = softmax_k(x . w_k); V_k = sum over tokens x of a_k (x - e_k); c = N(mean_k N(V_k)), N(x) = x / |x|.
    `tokens`: (items, tokens, dim); tokens where `mask` (items, tokens) is False do not count.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.float()
        assignments = (tokens @ assignment_centers.float().T).softmax(dim=-1) * mask.unsqueeze(-1)
        residuals = (
            assignments.transpose(1, 2) @ tokens - assignments.sum(dim=1).unsqueeze(-1) * residual_centers.float()
        )
        return F.normalize(F.normalize(residuals, dim=-1).mean(dim=1), dim=-1)


ATTENTION_KINDS = ("softmax", "sigmoid")


class FrameAttention(nn.Module):
    """Score every frame with a small network and pool the normalised frames with the attention weights.

    s_i = w2 . ReLU(W1 g_i + b1) + b2;  v = sum_i a_i h_i / |h_i|.
    kind: `softmax` (as published): a = softmax(s / temperature); frames compete, so several events share the weight.
        `sigmoid`: a_i = sigmoid(s_i / temperature), divided by their sum; every frame is scored independently, so a
        video may show several events.
    rescale: scale g to a mean square of 1, sqrt(dim) g / |g|, so that the network learns equally fast for features of
        any scale. g are the frames h, unless `forward` gets others.
    temperature: of the pooling; 0.1 as published. The network starts from N(0, 0.02) with zero biases.
    vectors: of a video; 1 as published. More share W1 and have a w2 and b2 each, and pool the frames each by itself.
    """

    def __init__(
        self,
        width: int,
        *,
        temperature: float = 0.1,
        kind: str = "softmax",
        rescale: bool = False,
        vectors: int = 1,
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, vectors)
        self.temperature, self.kind, self.rescale, self.vectors = temperature, kind, rescale, vectors

    def forward(
        self, frames: Tensor, frame_mask: Tensor | None = None, attention_frames: Tensor | None = None
    ) -> AttentionOutput:
        """Pool `frames` (videos, frames, dim). `frame_mask` (videos, frames): padded frames get weight zero.

        `attention_frames` (videos, frames, dim): the frames that are scored; None: `frames`.
        """
        scored = frames if attention_frames is None else attention_frames
        if self.rescale:
            scored = F.normalize(scored, dim=-1) * math.sqrt(scored.shape[-1])
        scores = self.score(F.relu(self.hidden(scored)))
        if self.vectors == 1:
            scores = scores.squeeze(-1).float()
        else:
            scores = scores.transpose(1, 2).float()
            frame_mask = None if frame_mask is None else frame_mask.unsqueeze(1)
            frames = frames.unsqueeze(1)
        pooling_weights = attention_weights(scores, frame_mask, temperature=self.temperature, kind=self.kind)
        pooled = (pooling_weights.unsqueeze(-1) * F.normalize(frames.float(), dim=-1)).sum(dim=-2)
        weights = attention_weights(scores, frame_mask, kind=self.kind)
        return AttentionOutput(pooled, scores, weights, pooling_weights)


def attention_weights(
    scores: Tensor, frame_mask: Tensor | None = None, *, temperature: float = 1.0, kind: str = "softmax"
) -> Tensor:
    """Return the weights of frames from their attention scores, both (videos, frames).

    Rows sum to 1, padded frames have 0. See `FrameAttention` for `kind`. `sigmoid` is computed as the softmax of
    log sigmoid(s / temperature), which cannot divide by zero.
    """
    if kind == "sigmoid":
        return masked_softmax(F.logsigmoid(scores.float() / temperature), frame_mask)
    return masked_softmax(scores, frame_mask, temperature=temperature)


class UniformAttention(nn.Module):
    """Mean pooling: v = mean over valid frames of h_i / |h_i| (CLIP4Clip, section 3.3, meanP).

    It has no parameters; scores are 0 and weights are uniform.
    """

    def forward(
        self, frames: Tensor, frame_mask: Tensor | None = None, attention_frames: Tensor | None = None
    ) -> AttentionOutput:
        """Pool `frames` (videos, frames, dim). `frame_mask` (videos, frames): padded frames do not count."""
        scores = frames.new_zeros(frames.shape[:2], dtype=torch.float32)
        weights = masked_softmax(scores, frame_mask)
        pooled = (weights.unsqueeze(-1) * F.normalize(frames.float(), dim=-1)).sum(dim=1)
        return AttentionOutput(pooled, scores, weights, weights)
