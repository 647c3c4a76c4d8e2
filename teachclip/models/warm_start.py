"""Initial weights of the layers over frames: from the text encoder of the backbone, or random."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from teachclip.models.families import family_of, joint_width, text_positions
from teachclip.models.layouts import transformers_to_openai
from teachclip.models.temporal import StdLinear, TemporalTransformer, rename_blocks

log = logging.getLogger(__name__)

RANDOM_POSITIONS = 77
"""Rows of a randomly initialised frame position embedding: as many as CLIP's text positions."""


def can_start_temporal(config: PreTrainedConfig) -> bool:
    """Return whether blocks and positions of the text encoder fit a temporal transformer over the joint space.

    The blocks must be pre-norm, as in CLIP, MetaCLIP 2 and SigLIP, as wide as the joint space, and four times as wide
    inside.
    """
    text, width = config.text_config, joint_width(config)  # type: ignore[attr-defined]
    is_pre_norm = family_of(config).text in ("causal", "full")
    return is_pre_norm and text.hidden_size == width and text.intermediate_size == 4 * width


def temporal_settings(config: PreTrainedConfig, *, frames: int = 0) -> dict[str, Any]:
    """Return the options of `StudentConfig` for the temporal transformer on a dual encoder.

    If it starts from the text encoder it has the same heads and activation, else CLIP's. There are as many frame
    positions as text positions to start from, or `RANDOM_POSITIONS`, and at least `frames`.
    """
    text, is_copied = config.text_config, can_start_temporal(config)  # type: ignore[attr-defined]
    return {
        "temporal_heads": text.num_attention_heads if is_copied else None,
        "temporal_activation": text.hidden_act if is_copied else "quick_gelu",
        "max_frames": max(text_positions(config) if is_copied else RANDOM_POSITIONS, frames),
    }


@torch.no_grad()
def start_at_random(*layers: nn.Module) -> None:
    """Initialise layers without a counterpart in CLIP like the code of CLIP4Clip, with torch's global generator.

    Linear weights and embeddings: N(0, 0.02), or the deviation of a `StdLinear`; biases: 0; norms: the identity.
    """
    for module in (module for layer in layers for module in layer.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.start_std if isinstance(module, StdLinear) else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()


@torch.no_grad()
def start_temporal(backbone: Any, positions: nn.Embedding, *stacks: TemporalTransformer) -> bool:
    """Initialise temporal layers from the text encoder, as CLIP4Clip and later models do (CLIP4Clip, section 3.3).

    The frame positions start from the text positions, and block i of every stack from text block i, if
    `can_start_temporal`; returns whether that is the case. Layers without a counterpart keep their random weights,
    which is logged.
    """
    text, family = backbone.config.text_config, family_of(backbone.config)
    if not can_start_temporal(backbone.config):
        log.info(
            "%s text encoder is %d wide (inner %s, %s blocks), the joint space %d: "
            "the temporal transformer starts from random weights",
            family.name,
            text.hidden_size,
            getattr(text, "intermediate_size", "unknown"),
            "post-norm" if family.text == "masked" else "pre-norm",
            positions.embedding_dim,
        )
        return False
    encoder = {key: tensor for key, tensor in backbone.state_dict().items() if key.startswith("text_model.encoder.")}
    blocks = rename_blocks(transformers_to_openai(encoder), prefix="transformer.resblocks.")
    for stack in stacks:
        state = stack.state_dict()
        stack.load_state_dict(state | {key: tensor for key, tensor in blocks.items() if key in state})
        layers = len(stack.layers)
        if text.num_hidden_layers < layers:
            log.info(
                "%d temporal layers, %d text layers: the others start from random weights",
                layers,
                text.num_hidden_layers,
            )
    table = backbone.text_model.embeddings.position_embedding.weight
    rows = min(len(table), positions.num_embeddings)
    positions.weight[:rows] = table[:rows]
    if rows < positions.num_embeddings:
        log.info(
            "%d frame positions, %d text positions: the others start from random weights",
            positions.num_embeddings,
            rows,
        )
    return True
