"""A CLIP whose text encoder is replaced by another text model of transformers: smaller, or of more languages.

It is transformers' VisionTextDualEncoderModel: the images' half is the CLIP's, bit for bit; the texts' half is the
model's pooled output (BERT's: the first token through its pooler) and a new projection to the joint space. A student
stands on it as on any other dual encoder.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    CLIPModel,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import check_finite, explained_loading
from teachclip.models.clip import quiet_loading
from teachclip.models.hub import require_reachable

log = logging.getLogger(__name__)


def load_text_model(source: str) -> PreTrainedModel:
    """Load a text encoder of transformers in float32 from a folder or hub id; no code of it is run.

    A pooler that its checkpoint lacks starts at random, which is logged. Raises CheckpointError for a model that
    cannot be loaded or has no pooled output.
    """
    require_reachable(source)
    with explained_loading(source, "a text encoder"), quiet_loading():
        model, info = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if any("pooler" not in name for name in missing):
        raise CheckpointError(f"{source}: weights are missing: {', '.join(missing[:3])}")
    if missing:
        log.info("%s has no pooler: it starts from random weights and is learned", source)
    check_finite(model.state_dict(), source=source)
    if getattr(model, "pooler", None) is None:
        raise CheckpointError(
            f"{source}: a {type(model).__name__} has no pooler; allowed: text encoders with a pooled output, such as "
            "BERT, XLM-RoBERTa or MiniLM"
        )
    return model


def with_text_model(clip: PreTrainedModel, text: PreTrainedModel, *, seed: int = 0) -> VisionTextDualEncoderModel:
    """Return a dual encoder with the images' half and the scale of a CLIP and another text encoder.

    The projection of texts is new, from `seed`. The models are not copied. Raises CheckpointError if `clip` is of
    another family.
    """
    if not isinstance(clip, CLIPModel):
        raise CheckpointError(f"the images' half must be a CLIP's, got a {type(clip).__name__}")
    config: Any = VisionTextDualEncoderConfig.from_vision_text_configs(
        clip.config.vision_config, text.config, projection_dim=clip.config.projection_dim
    )
    torch.manual_seed(seed)
    dual = VisionTextDualEncoderModel(config)
    dual.vision_model.load_state_dict(clip.vision_model.state_dict())
    dual.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    dual.text_model = text
    nn.init.normal_(dual.text_projection.weight, std=text.config.hidden_size**-0.5)
    with torch.no_grad():
        dual.logit_scale.copy_(clip.logit_scale)
    return dual.float().eval()
