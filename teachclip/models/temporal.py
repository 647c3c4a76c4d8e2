"""Temporal layers over a video's frames (CLIP4Clip, section 3.3; TeachCLIP, section 3.1; CLIP2Video, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from teachclip.models.frame_attention import usable_mask

LAYER_NORM_EPS = 1e-12
"""The official code's own LayerNorm here; CLIP's encoders use 1e-5."""

OFFICIAL_NAMES = {
    "attn.in_proj_weight": "attention.qkv_proj.weight",
    "attn.in_proj_bias": "attention.qkv_proj.bias",
    "attn.out_proj.weight": "attention.out_proj.weight",
    "attn.out_proj.bias": "attention.out_proj.bias",
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
"""Names in a block: from OpenAI's, which the official checkpoints use, to those of `TemporalBlock`."""


def rename_blocks(state: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """Return the blocks `{prefix}{i}.` of an official state dict under the names of `TemporalTransformer`."""
    result = {}
    for key, tensor in state.items():
        if key.startswith(prefix):
            number, _, rest = key[len(prefix) :].partition(".")
            if rest in OFFICIAL_NAMES:
                result[f"layers.{number}.{OFFICIAL_NAMES[rest]}"] = tensor
    return result


def official_blocks(stack: TemporalTransformer, *, prefix: str) -> dict[str, Tensor]:
    """Return a stack's weights as blocks `{prefix}{i}.` of an official state dict, the inverse of `rename_blocks`."""
    names = {new: old for old, new in OFFICIAL_NAMES.items()}
    result = {}
    for key, tensor in stack.layers.state_dict().items():
        number, _, rest = key.partition(".")
        result[f"{prefix}{number}.{names[rest]}"] = tensor
    return result


class StdLinear(nn.Linear):
    """A linear layer whose weights start from N(0, start_std) instead of N(0, 0.02)."""

    def __init__(self, inputs: int, outputs: int, *, start_std: float) -> None:
        super().__init__(inputs, outputs)
        self.start_std = start_std


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection and torch's fused kernel."""

    def __init__(self, width: int, heads: int, *, start_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = StdLinear(width, width, start_std=start_std)

    def forward(self, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
        """Attend within `hidden` (videos, tokens, width). `key_mask` (videos, 1, 1, tokens): False is ignored."""
        projected = self.qkv_proj(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers with an activation in between: QuickGELU, x * sigmoid(1.702 x), as in CLIP, or another."""

    def __init__(self, width: int, inner_width: int, *, start_std: float, activation: str = "quick_gelu") -> None:
        super().__init__()
        self.activation = ACT2FN[activation]
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = StdLinear(inner_width, width, start_std=start_std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `hidden` (..., width) to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden)))


class TemporalBlock(nn.Module):
    """One pre-norm transformer block, as in CLIP's text encoder but without a causal mask."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner_width: int,
        *,
        eps: float = LAYER_NORM_EPS,
        start_std: float = 0.02,
        activation: str = "quick_gelu",
    ) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, start_std=start_std)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, inner_width, start_std=start_std, activation=activation)

    def forward(self, hidden: Tensor, key_mask: Tensor | None) -> Tensor:
        """Transform `hidden` (videos, tokens, width); see `Attention` for `key_mask`."""
        hidden = hidden + self.attention(self.layer_norm1(hidden), key_mask)
        return hidden + self.mlp(self.layer_norm2(hidden))


class TemporalTransformer(nn.Module):
    """A stack of pre-norm blocks over the tokens of a video; no norm after the last one, no residual around it.

    `activation`: of the blocks, by its name in transformers.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        inner_width: int | None = None,
        eps: float = LAYER_NORM_EPS,
        activation: str = "quick_gelu",
    ) -> None:
        super().__init__()
        inner = inner_width or 4 * width
        std = 0.02 / math.sqrt(2 * max(1, layers))  # of the layers that write to the residual stream
        options: dict[str, Any] = {"eps": eps, "start_std": std, "activation": activation}
        self.layers = nn.ModuleList(TemporalBlock(width, heads, inner, **options) for _ in range(layers))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform `hidden` (videos, tokens, width). Tokens where `mask` (videos, tokens) is False are ignored."""
        key_mask = None if mask is None else usable_mask(mask)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, key_mask)
        return hidden


class FrameDifferences(nn.Module):
    """The Temporal Difference Block (CLIP2Video, arXiv 2106.11097, section 3.2): tokens for motion between frames.

    positions: rows of the frame position embedding. layers: blocks with attention among the differences, or 0 for one
    matrix instead (`sigmoid_mlp` in the official code). Parameters have the official names.
    """

    def __init__(self, width: int, *, positions: int, layers: int, heads: int) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(positions, width)
        self.type_position_embeddings = nn.Embedding(2, width)
        self.frame2t_attention = TemporalTransformer(width, layers=layers, heads=heads) if layers else None
        self.frame2t_projection = None if layers else nn.Parameter(torch.eye(width))
        self.trans_layernorm = nn.LayerNorm(width)

    def between(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Return a token for each pair of neighbouring frames (videos, frames - 1, dim), between -1 and 1.

        d_i = f_{i+1} - f_i, plus the position of its right frame, through the attention among differences, which
        ignores those whose right frame is padded; then 2 sigmoid(LN(d)) - 1. With a matrix M it is
        2 sigmoid(LN(d M)) - 1. `frames`: (videos, frames, dim), `frame_mask`: (videos, frames) bool.
        """
        steps = frames[:, 1:] - frames[:, :-1]
        if self.frame2t_projection is not None:
            projected = steps @ self.frame2t_projection
        else:
            assert self.frame2t_attention is not None
            positions = self.frame_position_embeddings.weight[1 : frames.shape[1]]
            projected = self.frame2t_attention(steps + positions, frame_mask[:, 1:])
        return 2 * torch.sigmoid(self.trans_layernorm(projected)) - 1

    def forward(self, frames: Tensor, frame_mask: Tensor, stack: TemporalTransformer) -> Tensor:
        """Return the frames after attention to each other and to their differences (videos, frames, dim).

        `stack` reads f_0, d_0, f_1, d_1, ..., f_{n-1}. A difference has the position and the mask of its left frame.
        The feature of each frame is added to its output. `frames`: raw CLIP features, at least two per video.
        """
        positions = self.frame_position_embeddings.weight[: frames.shape[1]]
        of_difference, of_frame = self.type_position_embeddings.weight
        tokens = frames + positions + of_frame
        between = self.between(frames, frame_mask) + positions[:-1] + of_difference
        pairs = torch.stack((tokens[:, :-1], between.to(tokens.dtype)), dim=2).flatten(1, 2)
        mask = frame_mask.repeat_interleave(2, dim=1)[:, :-1]
        return stack(torch.cat((pairs, tokens[:, -1:]), dim=1), mask)[:, ::2] + frames
