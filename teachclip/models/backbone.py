"""A dual encoder of any supported family: load it, encode texts and frames, scale cosines.

The differences between the families are in `teachclip.models.families`; the rest is the interface of transformers.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import check_finite, explained_loading
from teachclip.models.clip import check_loading_info, check_token_ids, load_clip, quiet_loading
from teachclip.models.families import (
    family_of,
    full_length,
    image_size,
    takes_any_size,
    text_positions,
    vocabulary_size,
)
from teachclip.models.hub import require_reachable

log = logging.getLogger(__name__)

MAX_SCALE = 100.0
"""The largest factor between cosines and logits (CLIP, Radford et al. 2021, section 2.5)."""

SCALE_PARAMETERS = ("logit_scale", "logit_bias", "temperature")
"""The parameters that turn cosines into logits; they are trained even if the encoders are frozen."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
_INPUTS = (
    *("text_model.embeddings.", "text_model.roberta.embeddings.", "text_model.encoder.embeddings."),
    *("vision_model.embeddings.", "vision_model.pre_layrnorm."),
    "text_model.pooler.",  # ALIGN's, which is unused: distributed training would wait for its gradients
)


def load_backbone(
    source: str | os.PathLike[str] | Mapping[str, Any], *, random_weights: bool = True, **hub: Any
) -> PreTrainedModel:
    """Load a dual encoder in float32 and evaluation mode.

    `source`: a hub id; a folder; a CLIP state dict, OpenAI's or transformers', as a file or a mapping; or only a
    configuration, as a JSON file or a folder without weights: then the weights are random, which is logged, or with
    `random_weights=False` refused. `hub`: where in a hub repository, as in transformers: `revision`, `subfolder`, ...
    Python code in a folder is never run. Raises CheckpointError if it cannot be loaded completely, if its family is
    not supported, or for weights that are NaN or infinite.
    """
    if isinstance(source, Mapping):
        return load_clip(source)
    source = os.path.expanduser(source)
    path = Path(source)
    if path.is_file() and path.suffix != ".json":
        return load_clip(source)
    config = load_config(source, **hub)
    family = family_of(config)
    folder = path / str(hub.get("subfolder") or "")
    if path.is_file() or (path.is_dir() and not any(file for pattern in _WEIGHTS for file in folder.glob(pattern))):
        if not random_weights:
            raise CheckpointError(f"{source}: has a configuration but no weights")
        log.warning("%s has a configuration but no weights: the %s starts from random weights", source, family.name)
        return new_backbone(config).eval()
    with explained_loading(source, f"a {family.name}"), quiet_loading():
        model, info = MODEL_MAPPING[type(config)].from_pretrained(
            str(source), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **hub
        )
    check_loading_info(info, source=str(source), allow_unexpected=True)
    check_finite(model.state_dict(), source=str(source))
    return model.eval()


def load_config(source: str | os.PathLike[str], **hub: Any) -> PreTrainedConfig:
    """Load the configuration of a dual encoder from a hub id, a folder or a JSON file.

    `hub`: as of `load_backbone`. Raises CheckpointError if there is none, or if its family is not supported.
    """
    require_reachable(source, **hub)
    with explained_loading(source, "a dual encoder"):
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False, **hub)
        family_of(config, source=str(source))
    return config


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a dual encoder with random weights, in float32. Raises CheckpointError for an unsupported family."""
    family_of(config)
    return MODEL_MAPPING[type(config)]._from_config(config, dtype=torch.float32)


def text_features(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return projected text features (texts, dim), not normalised; see `text_output`."""
    return text_output(backbone, input_ids, attention_mask).pooler_output


def text_output(backbone: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    """Return a text encoder's output, whose `pooler_output` (texts, dim) is the projected feature, not normalised.

    `input_ids`, `attention_mask`: (texts, tokens), padded on the right. The mask is used where attention is
    bidirectional; None means no padding. A causal encoder reads a token before the padding and is faster without a
    mask; SigLIP was trained on captions padded to its full length, without one.

    `options` are those of transformers, such as `output_hidden_states`.

    Raises DataError for too many tokens, for another length where a family needs the full one, and for ids outside
    the vocabulary (checked on the CPU only, where it needs no synchronisation).
    """
    config = backbone.config
    family, longest, full = family_of(config), text_positions(config), full_length(config)
    shape = tuple(input_ids.shape)
    if input_ids.ndim != 2 or shape[1] > longest:
        raise DataError(f"input_ids has shape {shape}, expected (texts, at most {longest})")
    if full is not None and shape[1] != full:
        raise DataError(f"input_ids has shape {shape}, but {family.name} reads texts padded to {full} tokens")
    if input_ids.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        check_token_ids(input_ids, vocabulary=vocabulary_size(config))
    mask = {"attention_mask": attention_mask} if family.text == "masked" and attention_mask is not None else {}
    return backbone.get_text_features(input_ids=input_ids, **mask, **options)


def frame_features(backbone: Any, pixel_values: Tensor) -> Tensor:
    """Return projected features of every frame (videos, frames, dim), not normalised.

    `pixel_values`: (videos, frames, 3, height, width), normalised. Raises DataError for another shape.
    """
    config = backbone.config
    shape, size = tuple(pixel_values.shape), image_size(config)
    is_square = len(shape) == 5 and shape[2] == config.vision_config.num_channels and shape[3] == shape[4]
    if not is_square or not (shape[3] == size or takes_any_size(config)):
        expected = f"(videos, frames, {config.vision_config.num_channels}, {size}, {size})"
        raise DataError(f"pixel_values has shape {shape}, expected {expected}")
    pixels = pixel_values.flatten(0, 1)
    inputs = _patches(pixels, config) if config.model_type == "siglip2" else {"pixel_values": pixels}
    features = backbone.get_image_features(**inputs).pooler_output
    return features.unflatten(0, shape[:2])


def _patches(pixels: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Cut images (images, 3, size, size) into patches for a NaFlex encoder: (images, patches, patch * patch * 3)."""
    patch = config.vision_config.patch_size  # type: ignore[attr-defined]
    count, side = pixels.shape[0], pixels.shape[-1] // patch  # `len` would fix the number in an export
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
def scale_and_bias(backbone: Any) -> tuple[float, float]:
    """Return a and b of the logits a cos + b, see `logits_of`."""
    bias = getattr(backbone, "logit_bias", None)
    return float(log_scale(backbone).exp()), 0.0 if bias is None else float(bias)


@torch.no_grad()
def clamp_scale(backbone: Any) -> None:
    """Clamp the factor between cosines and logits to `MAX_SCALE`; called after each step.

    SigLIP's is not clamped, as in its training: its published models are above from the start.
    """
    if backbone.config.model_type == "align":
        backbone.temperature.clamp_(min=1 / MAX_SCALE)
    elif getattr(backbone, "logit_bias", None) is None:
        backbone.logit_scale.clamp_(max=math.log(MAX_SCALE))


def input_parameters(backbone: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that turn tokens and pixels into the inputs of the first layers.

    For CLIP these are what the published runs freeze: token, position, class and patch embeddings and the norm before
    the vision layers. The other families have the same under `embeddings`; ALIGN's unused pooler is added.
    """
    inputs = _INPUTS if backbone.config.model_type == "align" else _INPUTS[:-1]
    return [name for name, _ in backbone.named_parameters() if name.startswith(inputs)]
