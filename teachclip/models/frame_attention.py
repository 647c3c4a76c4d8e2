"""Attentional frame aggregation (AFA): how much each frame says about a video (TeachCLIP, CVPR 2024, section 3.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachclip.errors import DataError


class AttentionOutput(NamedTuple):
    """What frame aggregation returns."""

    pooled: Tensor
    """The video's feature (videos, dim), not normalised."""
    scores: Tensor
    """Raw score of every frame (videos, frames), padded ones too."""
    weights: Tensor
    """Frame attention at temperature 1 (videos, frames): what is compared with a teacher's frame relevance."""
    shares: Tensor
    """What each frame counts in the pooled feature (videos, frames); rows sum to 1, padded frames have 0."""


def complete_mask(frame_mask: Tensor | None, like: Tensor) -> Tensor:
    """Return a frame mask as bool, or for None one that is all valid for `like` (videos, frames, ...).

    Raises DataError if its shape is another.
    """
    if frame_mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if frame_mask.shape != like.shape[:2]:
        raise DataError(f"frame_mask has shape {tuple(frame_mask.shape)}, expected {tuple(like.shape[:2])}")
    return frame_mask.bool()


def usable_mask(mask: Tensor) -> Tensor:
    """Return `mask` with rows that hold nothing valid set to all valid, so that no softmax becomes NaN."""
    mask = mask.bool()
    return mask | ~mask.any(dim=-1, keepdim=True)


def masked_softmax(scores: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Softmax over the last dimension in float32, giving exactly zero where `mask` is False.

    `mask`: bool, broadcast against `scores`, or None for no mask. A row without a valid place is taken as all valid.
    """
    scores = scores.float() / temperature
    if mask is not None:
        scores = scores.masked_fill(~usable_mask(mask), float("-inf"))
    return scores.softmax(dim=-1)


def check_pairs(texts: Tensor, videos: Tensor) -> None:
    """Raise DataError unless there are as many texts as videos: frame relevance is of pairs, text i and video i."""
    if len(texts) != len(videos):
        raise DataError(f"frame relevance is of pairs, got {len(texts)} texts and {len(videos)} videos")


def frame_text_relevance(sentence: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax_f(cos(text i, frame f of video i)) at temperature 1 (pairs, frames), float32.

    `sentence`: (pairs, dim), `frames`: (pairs, frames, dim), normalised or not; `mask`: as of `masked_softmax`.
    """
    check_pairs(sentence, frames)
    with torch.autocast(frames.device.type, enabled=False):
        sentence, frames = F.normalize(sentence.float(), dim=-1), F.normalize(frames.float(), dim=-1)
        return masked_softmax(torch.einsum("pd,pfd->pf", sentence, frames), mask)


def residual_pooling(tokens: Tensor, mask: Tensor, assignment_centers: Tensor, residual_centers: Tensor) -> Tensor:
    """Describe each set of tokens by its residuals to K centres, L2-normalised (items, dim), in float32.

    The alignment block of CLIP2Video (section 3.3) with w = assignment_centers, e = residual_centers, each (K, dim):
    a = softmax_k(x . w_k); V_k = sum over tokens x of a_k (x - e_k); c = N(mean_k N(V_k)), N(x) = x / |x|.
    `tokens`: (items, tokens, dim); those where `mask` (items, tokens) is False do not count.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.float()
        shares = (tokens @ assignment_centers.float().T).softmax(dim=-1) * mask.unsqueeze(-1)
        residuals = shares.transpose(1, 2) @ tokens - shares.sum(dim=1).unsqueeze(-1) * residual_centers.float()
        return F.normalize(F.normalize(residuals, dim=-1).mean(dim=1), dim=-1)


ATTENTION_KINDS = ("softmax", "sigmoid")


class FrameAttention(nn.Module):
    """Score every frame by a small network and pool the normalised frames with the attention of the scores.

    s_i = w2 . ReLU(W1 g_i + b1) + b2;  v = sum_i a_i h_i / |h_i|.
    Attention `softmax` (as published): a = softmax(s / temperature). Frames compete, so several events share the
    weight. Attention `sigmoid`: a_i = sigmoid(s_i / temperature), divided by their sum. Every frame is judged by
    itself, so that a video may hold several events.
    g are the frames h themselves or, if they are given apart, what the attention reads instead; `rescale` brings them
    to entries of mean square 1, sqrt(dim) g / |g|, so that the network learns as fast on any backbone's scale.
    `temperature`: 0.1 as published. The score network starts from N(0, 0.02) with zero biases.
    """

    def __init__(
        self, width: int, *, temperature: float = 0.1, attention: str = "softmax", rescale: bool = False
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.temperature, self.attention, self.rescale = temperature, attention, rescale

    def forward(
        self, frames: Tensor, frame_mask: Tensor | None = None, attention_frames: Tensor | None = None
    ) -> AttentionOutput:
        """Pool `frames` (videos, frames, dim). `frame_mask` (videos, frames): padded frames take no weight.

        `attention_frames` (videos, frames, dim): what the attention reads; None: the frames.
        """
        read = frames if attention_frames is None else attention_frames
        if self.rescale:
            read = F.normalize(read, dim=-1) * math.sqrt(read.shape[-1])
        scores = self.score(F.relu(self.hidden(read))).squeeze(-1).float()
        shares = attention_weights(scores, frame_mask, temperature=self.temperature, attention=self.attention)
        pooled = (shares.unsqueeze(-1) * F.normalize(frames.float(), dim=-1)).sum(dim=1)
        return AttentionOutput(
            pooled, scores, attention_weights(scores, frame_mask, temperature=1.0, attention=self.attention), shares
        )


def attention_weights(
    scores: Tensor, frame_mask: Tensor | None = None, *, temperature: float = 1.0, attention: str = "softmax"
) -> Tensor:
    """Return what each frame counts for its scores (videos, frames): rows sum to 1, padded frames have 0.

    See `FrameAttention` for the kinds of attention. The sigmoid's is computed as a softmax of log sigmoid(s /
    temperature), so that it cannot divide by zero.
    """
    if attention == "sigmoid":
        return masked_softmax(F.logsigmoid(scores.float() / temperature), frame_mask)
    return masked_softmax(scores, frame_mask, temperature=temperature)


class UniformAttention(nn.Module):
    """Every valid frame counts alike: v = mean over valid frames of h_i / |h_i| (CLIP4Clip, section 3.3, meanP).

    It has no parameters; scores are 0 and weights uniform.
    """

    def forward(
        self, frames: Tensor, frame_mask: Tensor | None = None, attention_frames: Tensor | None = None
    ) -> AttentionOutput:
        """Pool `frames` (videos, frames, dim). `frame_mask` (videos, frames): padded frames do not count."""
        scores = frames.new_zeros(frames.shape[:2], dtype=torch.float32)
        weights = masked_softmax(scores, frame_mask)
        pooled = (weights.unsqueeze(-1) * F.normalize(frames.float(), dim=-1)).sum(dim=1)
        return AttentionOutput(pooled, scores, weights, weights)
