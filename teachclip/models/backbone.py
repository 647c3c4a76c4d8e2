"""A dual encoder of any supported family: load it and encode texts and frames, whatever its encoders look like.

What differs between the families is told by `teachclip.models.families`; the rest is transformers' own interface.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from teachclip.errors import CheckpointError, DataError
from teachclip.models.clip import check_loading_info, check_token_ids, first_line, load_clip, quiet_loading
from teachclip.models.families import (
    family_of,
    full_length,
    image_size,
    takes_any_size,
    text_positions,
    vocabulary_size,
)

log = logging.getLogger(__name__)

MAX_SCALE = 100.0
"""The largest factor between cosines and logits (CLIP, Radford et al. 2021, section 2.5)."""

SCALE_PARAMETERS = ("logit_scale", "logit_bias", "temperature")
"""What turns cosines into logits; these train even where the encoders are frozen."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
_INPUTS = (
    *("text_model.embeddings.", "text_model.roberta.embeddings."),
    *("vision_model.embeddings.", "vision_model.pre_layrnorm."),
    "text_model.pooler.",  # ALIGN's, which nothing reads: several processes would wait for its gradients
)


def load_backbone(source: str | os.PathLike[str] | Mapping[str, Any]) -> PreTrainedModel:
    """Load a dual encoder in float32 and evaluation mode.

    `source`: a hub id; a folder; a CLIP state dict, OpenAI's or transformers', as a file or a mapping; or a
    configuration alone, as a JSON file or a folder with no weights in it: then the weights are random, which a log
    line says. Raises CheckpointError if it cannot be loaded whole, or is of no supported family.
    """
    if isinstance(source, Mapping):
        return load_clip(source)
    path = Path(source)
    if path.is_file() and path.suffix != ".json":
        return load_clip(source)
    config = load_config(source)
    family = family_of(config)
    if path.is_file() or (path.is_dir() and not any(found for mark in _WEIGHTS for found in path.glob(mark))):
        log.warning("%s holds a configuration alone: the %s starts from random weights", source, family.name)
        return new_backbone(config).eval()
    try:
        with quiet_loading():
            model, info = MODEL_MAPPING[type(config)].from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a {family.name}: {first_line(error)}") from error
    check_loading_info(info, source=str(source), allow_unexpected=True)
    return model.eval()


def load_config(source: str | os.PathLike[str]) -> PreTrainedConfig:
    """Load the configuration of a dual encoder from a hub id, a folder or a JSON file.

    Raises CheckpointError if there is none, or if it is of no supported family.
    """
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: no dual encoder can be loaded from it: {first_line(error)}") from error
    family_of(config, source=str(source))
    return config


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a dual encoder with random weights, in float32. Raises CheckpointError for another configuration."""
    family_of(config)
    return MODEL_MAPPING[type(config)]._from_config(config, dtype=torch.float32)


def text_features(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return projected text features (texts, dim), not normalised; see `text_output`."""
    return text_output(backbone, input_ids, attention_mask).pooler_output


def text_output(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    """Return a text encoder's output, whose `pooler_output` (texts, dim) is the projected feature, not normalised.

    `input_ids`, `attention_mask`: (texts, tokens), padded on the right. The mask is used where attention goes both
    ways; None means that nothing is padding. A causal encoder reads one token that padding comes after, and runs
    faster without; SigLIP was trained on captions padded to its full length, without one.

    `options` are transformers' own, such as `output_hidden_states`.

    Raises DataError for too many tokens, for another than the full length where a family needs that, and for ids
    outside the vocabulary (on the CPU only, where looking costs no synchronisation).
    """
    config = backbone.config
    family, longest, full = family_of(config), text_positions(config), full_length(config)
    shape = tuple(input_ids.shape)
    if input_ids.ndim != 2 or shape[1] > longest:
        raise DataError(f"input_ids has shape {shape}, expected (texts, at most {longest})")
    if full is not None and shape[1] != full:
        raise DataError(f"input_ids has shape {shape}, but a {family.name} reads texts padded to {full} tokens")
    if input_ids.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        check_token_ids(input_ids, vocabulary=vocabulary_size(config))
    mask = {"attention_mask": attention_mask} if family.text == "masked" and attention_mask is not None else {}
    return backbone.get_text_features(input_ids=input_ids, **mask, **options)


def frame_features(backbone: Any, pixel_values: Tensor) -> Tensor:
    """Return projected features of every frame (videos, frames, dim), not normalised.

    `pixel_values`: (videos, frames, 3, height, width), normalised. Raises DataError if its shape is another.
    """
    config = backbone.config
    shape, size = tuple(pixel_values.shape), image_size(config)
    is_square = len(shape) == 5 and shape[2] == config.vision_config.num_channels and shape[3] == shape[4]
    if not is_square or not (shape[3] == size or takes_any_size(config)):
        wanted = f"(videos, frames, {config.vision_config.num_channels}, {size}, {size})"
        raise DataError(f"pixel_values has shape {shape}, this model takes {wanted}")
    pixels = pixel_values.flatten(0, 1)
    inputs = _patches(pixels, config) if config.model_type == "siglip2" else {"pixel_values": pixels}
    features = backbone.get_image_features(**inputs).pooler_output
    return features.unflatten(0, shape[:2])


def _patches(pixels: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Cut images (images, 3, size, size) into what a NaFlex encoder reads: (images, patches, patch * patch * 3)."""
    patch = config.vision_config.patch_size  # type: ignore[attr-defined]
    count, side = len(pixels), pixels.shape[-1] // patch
    patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.flatten(3).flatten(1, 2),
        "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.int32, device=pixels.device),
        "spatial_shapes": torch.full((count, 2), side, dtype=torch.int64, device=pixels.device),
    }


def log_scale(backbone: Any) -> Tensor:
    """Return the logarithm of the factor between cosines and logits, a differentiable 0-d float32 tensor."""
    if backbone.config.model_type == "align":
        return -backbone.temperature.float().log()
    return backbone.logit_scale.float().reshape(())


def logits_of(backbone: Any, cosines: Tensor) -> Tensor:
    """Turn cosines (texts, videos) into logits: exp(scale) cos, plus SigLIP's bias (Zhai et al. 2023, section 3)."""
    logits = log_scale(backbone).exp() * cosines
    bias = getattr(backbone, "logit_bias", None)
    return logits if bias is None else logits + bias.float()


@torch.no_grad()
def clamp_scale(backbone: Any) -> None:
    """Keep the factor between cosines and logits at or below `MAX_SCALE`; called after each step.

    SigLIP's is left alone, as in its training: its published models are above that from the start.
    """
    if backbone.config.model_type == "align":
        backbone.temperature.clamp_(min=1 / MAX_SCALE)
    elif getattr(backbone, "logit_bias", None) is None:
        backbone.logit_scale.clamp_(max=math.log(MAX_SCALE))


def input_parameters(backbone: nn.Module) -> list[str]:
    """Return the names of the parameters that turn tokens and pixels into the first layers' inputs.

    For CLIP these are what the published runs freeze: token and position tables, class and patch embedding, and the
    norm before the vision layers. The other families have the same under `embeddings`, and
    ALIGN a part that is never read.
    """
    return [name for name, _ in backbone.named_parameters() if name.startswith(_INPUTS)]
