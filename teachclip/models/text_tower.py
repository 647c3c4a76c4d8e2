"""A dual encoder whose text encoder is replaced by another text model of transformers: smaller, or of more languages.

It is transformers' VisionTextDualEncoderModel: the images' half is the old one, bit for bit; the texts' half is the
model's pooled output (BERT's: the first token through its pooler; or pooled from its tokens, see `pooled_text`) and a
new projection to the joint space. A student stands on it as on any other dual encoder.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import check_finite, explained_loading
from teachclip.models.clip import quiet_loading
from teachclip.models.families import FAMILIES, family_of, joint_width
from teachclip.models.hub import require_reachable
from teachclip.models.pooled_text import POOLINGS, PooledTextModel, pooling_of

log = logging.getLogger(__name__)

OWN = "pooler"
"""The pooling that is a model's own pooled output."""

CLIP_VISION = ("clip", "metaclip_2", "altclip", "chinese_clip")
"""Families whose images' half is CLIP's under another name: the same weights give the same numbers."""

_CLIP_VISION_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"),
    *("patch_size", "hidden_act", "layer_norm_eps", "attention_dropout"),
)
_NEEDED = ("vocab_size", "hidden_size", "max_position_embeddings")


def load_text_model(source: str, *, pooling: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Load a text encoder of transformers in float32 from a folder or hub id; no code of it is run.

    `pooling`: `pooler` (the model's own pooled output), or one of `pooled_text.POOLINGS`; None: as the folder of
    Sentence Transformers says, else `pooler`. A pooler that its checkpoint lacks starts at random, from `seed`, which
    is logged. Raises CheckpointError for a model that cannot be loaded, is no text encoder, or has no pooled output.
    """
    require_reachable(source)
    with explained_loading(source, "a text encoder"):
        _check_text(AutoConfig.from_pretrained(source, trust_remote_code=False), source)
    pooling = pooling or pooling_of(source) or OWN
    torch.manual_seed(seed)
    with explained_loading(source, "a text encoder"), quiet_loading():
        model, info = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if any("pooler" not in name for name in missing):
        raise CheckpointError(f"{source}: weights are missing: {', '.join(missing[:3])}")
    check_finite(model.state_dict(), source=source)
    if pooling != OWN:
        return PooledTextModel.of(model, pooling)
    if missing:
        log.info("%s has no pooler: it starts from random weights and is learned", source)
    if getattr(model, "pooler", None) is None:
        raise CheckpointError(
            f"{source}: a {type(model).__name__} has no pooled output of its own; choose a pooling of its tokens: "
            f"{', '.join(POOLINGS)}"
        )
    return model


def _check_text(config: PreTrainedConfig, source: str) -> None:
    """Raise CheckpointError unless a configuration is that of a text encoder."""
    kind = config.model_type
    if kind in FAMILIES:
        raise CheckpointError(f"{source}: a {FAMILIES[kind].name} is a dual encoder; expected a text encoder alone")
    lacks = [name for name in _NEEDED if not isinstance(getattr(config, name, None), int)]
    if lacks or config.is_encoder_decoder:
        why = f"its configuration has no {lacks[0]}" if lacks else "it has a decoder too"
        raise CheckpointError(
            f"{source}: a model of type {kind!r} is no text encoder that can be used ({why}); allowed: such as BERT, "
            "XLM-RoBERTa, MiniLM or DistilBERT"
        )


def with_text_model(dual: PreTrainedModel, text: PreTrainedModel, *, seed: int = 0) -> VisionTextDualEncoderModel:
    """Return a dual encoder with the images' half and the scale of another one, and with another text encoder.

    The projection of texts is new, from `seed`. The text model is not copied. Raises CheckpointError if `dual` is of
    a family without a projection of images.
    """
    half: Any = dual
    config: Any = VisionTextDualEncoderConfig.from_vision_text_configs(
        _vision_config(dual.config), text.config, projection_dim=joint_width(dual.config)
    )
    torch.manual_seed(seed)
    new = VisionTextDualEncoderModel(config)
    new.text_model = text
    new.vision_model.load_state_dict(half.vision_model.state_dict())
    new.visual_projection.load_state_dict(half.visual_projection.state_dict())
    nn.init.normal_(new.text_projection.weight, std=text.config.hidden_size**-0.5)  # type: ignore[attr-defined]
    with torch.no_grad():
        new.logit_scale.copy_(half.logit_scale)
    return new.float().eval()


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration with which transformers builds the images' half of a dual encoder by itself."""
    vision: PreTrainedConfig = config.vision_config  # type: ignore[attr-defined]
    if config.model_type in CLIP_VISION:
        return CLIPVisionConfig(**{name: getattr(vision, name) for name in _CLIP_VISION_KEYS})
    if config.model_type == "vision-text-dual-encoder":
        return vision
    allowed = ", ".join(FAMILIES[name].name for name in (*CLIP_VISION, "vision-text-dual-encoder"))
    raise CheckpointError(
        f"the images' half must be projected into the joint space, a {family_of(config).name}'s is not; allowed: "
        f"{allowed}"
    )


def without_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a text encoder's configuration to 0: a model that is built from it has none.

    A student's gradients then do not depend on the number of processes, as those of CLIP, which has none.
    """
    for part in (config, getattr(config, "encoder", None)):
        for name, value in list(vars(part).items()) if isinstance(part, PreTrainedConfig) else ():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
