"""What a student starts from: CLIP's towers, and CLIP's text tower for the temporal transformer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from transformers import CLIPModel

from teachclip.models.layouts import transformers_to_openai
from teachclip.models.temporal import rename_blocks

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel

log = logging.getLogger(__name__)


@torch.no_grad()
def start_from_clip(model: StudentModel, clip: CLIPModel) -> None:
    """Copy a CLIP into a student as the official code does (golden 10; CLIP4Clip, section 3.3).

    Both towers are CLIP's. The frame positions start from CLIP's text positions and temporal block i from CLIP's text
    block i, if the text tower is as wide as the joint space. What has no counterpart keeps its random start, which a
    log line names. The aggregation always starts at random.
    """
    model.clip.load_state_dict({key: tensor.float() for key, tensor in clip.state_dict().items()})
    layers = model.config.temporal_layers
    if not layers:
        return
    text = clip.config.text_config
    if text.hidden_size != model.config.width or text.intermediate_size != 4 * model.config.width:
        log.info(
            "text tower is %d wide (inner %d), the joint space %d: the temporal transformer starts at random",
            text.hidden_size,
            text.intermediate_size,
            model.config.width,
        )
        return
    blocks = rename_blocks(transformers_to_openai(clip.state_dict()), prefix="transformer.resblocks.")
    own = model.temporal.state_dict()
    copied = {key: tensor for key, tensor in blocks.items() if key in own}
    model.temporal.load_state_dict(own | copied)
    if text.num_hidden_layers < layers:
        log.info("%d temporal layers, %d text layers: the rest starts at random", layers, text.num_hidden_layers)
    positions = clip.text_model.embeddings.position_embedding.weight
    rows = min(len(positions), model.config.max_frames)
    model.frame_position_embeddings.weight[:rows] = positions[:rows]
    if rows < model.config.max_frames:
        log.info("%d frame positions, %d text positions: the rest starts at random", model.config.max_frames, rows)
