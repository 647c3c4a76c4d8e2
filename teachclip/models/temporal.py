"""The temporal transformer over a video's frames (CLIP4Clip, section 3.3; TeachCLIP, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
"""Names inside one block: OpenAI's, which the official checkpoints use, to ours."""


def rename_blocks(state: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """Take the blocks `{prefix}{i}.` out of an official state dict, under the names of `TemporalTransformer`."""
    result = {}
    for key, tensor in state.items():
        if key.startswith(prefix):
            number, _, rest = key[len(prefix) :].partition(".")
            if rest in OFFICIAL_NAMES:
                result[f"layers.{number}.{OFFICIAL_NAMES[rest]}"] = tensor
    return result


def official_blocks(stack: TemporalTransformer, *, prefix: str) -> dict[str, Tensor]:
    """Return the weights of a stack as blocks `{prefix}{i}.` of an official state dict; undoes `rename_blocks`."""
    names = {new: old for old, new in OFFICIAL_NAMES.items()}
    result = {}
    for key, tensor in stack.layers.state_dict().items():
        number, _, rest = key.partition(".")
        result[f"{prefix}{number}.{names[rest]}"] = tensor
    return result


class StdLinear(nn.Linear):
    """A linear layer whose weights start from N(0, start_std), where other new layers start from N(0, 0.02)."""

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
        """Attend within `hidden` (videos, tokens, width). `key_mask` (videos, 1, 1, tokens): False is never read."""
        parts = self.qkv_proj(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear maps with an activation between them: QuickGELU, x * sigmoid(1.702 x), as CLIP, or another."""

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

    `activation`: of the blocks, by transformers' names.
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
        std = 0.02 / math.sqrt(2 * max(1, layers))  # of what writes to the residual stream
        options: dict[str, Any] = {"eps": eps, "start_std": std, "activation": activation}
        self.layers = nn.ModuleList(TemporalBlock(width, heads, inner, **options) for _ in range(layers))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform `hidden` (videos, tokens, width). Tokens where `mask` (videos, tokens) is False are not read."""
        key_mask = None if mask is None else usable_mask(mask)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, key_mask)
        return hidden
