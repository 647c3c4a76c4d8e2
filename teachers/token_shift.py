"""TS2-Net's token shift: attention in some vision layers sees patches of neighbouring frames (Liu et al., ECCV 2022).

It is applied from outside, so that the encoder stays transformers' own and keeps its names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import CLIPModel

SHIFT_PARTS = 7
"""Tokens are shifted in steps of a seventh of the tokens of a frame, as in the official code."""


def shift_tokens(hidden: Tensor, frames: int) -> Tensor:
    """Exchange some tokens between neighbouring frames (section 3.2, with the official code's choice of tokens).

    `hidden`: (videos x frames, tokens, width). With steps of tokens // 7, tokens 1, 1 + step, ... come from the frame
    before, tokens 4, 4 + step, ... from the frame after; at a video's ends they keep their own.
    """
    step = hidden.shape[1] // SHIFT_PARTS
    before = hidden.unflatten(0, (-1, frames))
    shifted = before.clone()
    shifted[:, 1:, 1::step] = before[:, :-1, 1::step]
    shifted[:, :-1, 4::step] = before[:, 1:, 4::step]
    return shifted.flatten(0, 1)


def shifted_layer(layer: Any, hidden: Tensor, frames: int) -> Tensor:
    """Run one layer of CLIP's vision encoder with tokens shifted in attention alone, not in the residual path."""
    attended = layer.self_attn(hidden_states=shift_tokens(layer.layer_norm1(hidden), frames), attention_mask=None)
    hidden = hidden + attended[0]
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def last_layers(clip: CLIPModel, count: int = 2) -> range:
    """Return the numbers of the last vision layers."""
    layers = clip.config.vision_config.num_hidden_layers
    return range(max(0, layers - count), layers)
