"""What a student starts from: CLIP's towers, and CLIP's text tower for the temporal transformer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CLIPModel

from teachclip.models.layouts import transformers_to_openai
from teachclip.models.temporal import ResidualLinear, TemporalTransformer, rename_blocks

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel

log = logging.getLogger(__name__)


@torch.no_grad()
def start_from_clip(model: StudentModel, clip: CLIPModel) -> None:
    """Copy a CLIP into a student as the official code does (golden 10; CLIP4Clip, section 3.3).

    Both towers are CLIP's; `start_temporal` says what the temporal parts start from. The aggregation always starts at
    random.
    """
    model.clip.load_state_dict({key: tensor.float() for key, tensor in clip.state_dict().items()})
    if model.config.temporal_layers:
        start_temporal(clip, model.frame_position_embeddings, model.temporal)


@torch.no_grad()
def start_at_random(*parts: nn.Module) -> None:
    """Start parts that CLIP may have no counterpart for, as CLIP4Clip's code does, from torch's global generator.

    Linear weights and tables from N(0, 0.02), less where a `ResidualLinear` says so; biases 0; norms the identity.
    """
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.start_std if isinstance(module, ResidualLinear) else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()


@torch.no_grad()
def start_temporal(clip: CLIPModel, positions: nn.Embedding, *stacks: TemporalTransformer) -> bool:
    """Start temporal parts from CLIP's text tower, as CLIP4Clip and the models after it do (CLIP4Clip, section 3.3).

    The frame positions start from the text positions, and block i of every stack from text block i, if the text tower
    is as wide as the joint space; returns whether it is. What has no counterpart keeps its random start, which a log
    line names.
    """
    text, width = clip.config.text_config, positions.embedding_dim
    if text.hidden_size != width or text.intermediate_size != 4 * width:
        log.info(
            "text tower is %d wide (inner %d), the joint space %d: the temporal transformer starts at random",
            text.hidden_size,
            text.intermediate_size,
            width,
        )
        return False
    blocks = rename_blocks(transformers_to_openai(clip.state_dict()), prefix="transformer.resblocks.")
    for stack in stacks:
        own = stack.state_dict()
        stack.load_state_dict(own | {key: tensor for key, tensor in blocks.items() if key in own})
        layers = len(stack.layers)
        if text.num_hidden_layers < layers:
            log.info("%d temporal layers, %d text layers: the rest starts at random", layers, text.num_hidden_layers)
    table = clip.text_model.embeddings.position_embedding.weight
    rows = min(len(table), positions.num_embeddings)
    positions.weight[:rows] = table[:rows]
    if rows < positions.num_embeddings:
        log.info("%d frame positions, %d text positions: the rest starts at random", positions.num_embeddings, rows)
    return True
