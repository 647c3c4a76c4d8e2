"""The two layouts of a CLIP state dict: names of OpenAI, which the official models use, and of transformers.

OpenAI packs the three attention projections into one tensor and stores the joint projections transposed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import (
    count_layers,
    tensor_of,
)

log = logging.getLogger(__name__)

CLIP = "clip."
BLOCKS = "transformerClip.resblocks."
POSITIONS = "frame_position_embeddings.weight"

_HALF = (".attn.", ".mlp.", "clip.visual.conv1.", "clip.text_projection", "clip.visual.proj")
"""Parts of the names under `clip.` that the official files store in float16."""

HEAD_WIDTH = 64
"""Width of an attention head in every CLIP of OpenAI; a state dict does not contain the number of heads."""

_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_LAYERS = {
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}
_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PACKED = ("q_proj", "k_proj", "v_proj")


def openai_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an OpenAI CLIP state dict to transformers' names: split q, k, v and transpose the projections.

    Unknown names are kept, so that a strict check can report them.
    """
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in _TRANSPOSED:
            result[_TRANSPOSED[key]] = tensor.t().contiguous() if tensor.ndim == 2 else tensor
        elif (layer := _split_layer(key, _LAYERS)) is None:
            result[_NAMES.get(key, key)] = tensor
        else:
            prefix, rest = layer
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = rest.rsplit("_", 1)[-1]
                for name, part in zip(_PACKED, tensor.chunk(3), strict=False):
                    result[f"{prefix}self_attn.{name}.{kind}"] = part.contiguous()
            else:
                part_name, _, kind = rest.rpartition(".")
                result[f"{prefix}{_PARTS[part_name]}.{kind}" if part_name in _PARTS else key] = tensor
    return result


def transformers_to_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a transformers CLIP state dict to OpenAI's names; the inverse of `openai_to_transformers`."""
    names = {new: old for old, new in _NAMES.items()}
    transposed = {new: old for old, new in _TRANSPOSED.items()}
    layers = {new: old for old, new in _LAYERS.items()}
    parts = {new: old for old, new in _PARTS.items()}
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in transposed:
            result[transposed[key]] = tensor.t().contiguous()
        elif (layer := _split_layer(key, layers)) is None:
            result[names.get(key, key)] = tensor
        else:
            prefix, rest = layer
            part_name, _, kind = rest.rpartition(".")
            attention, _, projection = part_name.rpartition(".")
            if attention == "self_attn" and projection in _PACKED:
                if projection == "q_proj":
                    stem = key[: -len(rest)] + "self_attn."
                    packed = [state[f"{stem}{name}.{kind}"] for name in _PACKED]
                    result[f"{prefix}attn.in_proj_{kind}"] = torch.cat(packed)
            else:
                result[f"{prefix}{parts[part_name]}.{kind}" if part_name in parts else key] = tensor
    return result


def _split_layer(key: str, layers: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (translated prefix with the layer's number, rest of the name) if `key` belongs to a layer, else None."""
    for old, new in layers.items():
        if key.startswith(old):
            number, _, rest = key[len(old) :].partition(".")
            return f"{new}{number}.", rest
    return None


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Return whether a CLIP state dict has the names of OpenAI instead of those of transformers."""
    return not any(key.startswith(("vision_model.", "text_model.")) for key in state)


def read_clip_config(state: Mapping[str, Tensor], *, source: str, prefix: str = "") -> CLIPConfig:
    """Return the configuration of a CLIP from the shapes of a state dict of either layout.

    What shapes do not determine is as in OpenAI's models: heads 64 wide, QuickGELU, the text feature at the highest
    token id (`eos_token_id` 2 means that in transformers). `prefix`: put before names in errors. Raises
    CheckpointError if a required tensor is missing or has another number of dimensions.
    """
    if not state:
        raise CheckpointError(f"{source}: contains no CLIP" + (f": no name starts with {prefix}" if prefix else ""))
    translate = is_openai(state)

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        if translate:
            (key,) = transformers_to_openai({key: torch.empty(0, 0)})
        prefixed = {prefix + name: tensor for name, tensor in state.items()}
        sizes = tuple(tensor_of(prefixed, prefix + key, source=source, dimensions=dimensions).shape)
        return sizes[::-1] if translate and key in _TRANSPOSED else sizes

    patches = shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions, _ = shape("vision_model.embeddings.position_embedding.weight", 2)
    grid = math.isqrt(positions - 1)
    if grid * grid != positions - 1:
        raise CheckpointError(f"{source}: {positions} vision positions are not a square number of patches plus one")
    context, text_width = shape("text_model.embeddings.position_embedding.weight", 2)
    vocabulary, _ = shape("text_model.embeddings.token_embedding.weight", 2)
    joint_width, _ = shape("text_projection.weight", 2)
    encoders = {}
    for encoder, width in (("text_model", text_width), ("vision_model", patches[0])):
        layers = f"{encoder}.encoder.layers."
        openai_layers = next(old for old, new in _LAYERS.items() if new == layers)
        encoders[encoder] = {
            "hidden_size": width,
            "intermediate_size": shape(f"{layers}0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": count_layers(state, openai_layers if translate else layers),
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "hidden_act": "quick_gelu",
            "projection_dim": joint_width,
        }
    text = {"max_position_embeddings": context, "vocab_size": vocabulary}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    vision = {"image_size": grid * patches[-1], "patch_size": patches[-1], "num_channels": patches[1]}
    return CLIPConfig(
        text_config=encoders["text_model"] | text,
        vision_config=encoders["vision_model"] | vision,
        projection_dim=joint_width,
    )


def check_openai_architecture(config: CLIPConfig, *, source: str) -> None:
    """Raise CheckpointError if a CLIP cannot be rebuilt from its state dict alone.

    The official layouts contain no configuration, so heads, activation and end-of-text token must be OpenAI's.
    """
    problems = []
    for name, encoder in (("text", config.text_config), ("vision", config.vision_config)):
        heads = max(1, encoder.hidden_size // HEAD_WIDTH)
        if encoder.num_attention_heads != heads:
            problems.append(f"{name} encoder has {encoder.num_attention_heads} heads, not {heads}")
        if encoder.hidden_act != "quick_gelu":
            problems.append(f"{name} encoder uses {encoder.hidden_act}, not quick_gelu")
        if encoder.layer_norm_eps != 1e-5:
            problems.append(f"{name} encoder has layer_norm_eps {encoder.layer_norm_eps}, not 1e-05")
    if config.text_config.eos_token_id not in (2, config.text_config.vocab_size - 1):
        problems.append(f"end-of-text token {config.text_config.eos_token_id} is not the highest id")
    if problems:
        raise CheckpointError(f"{source}: the official layout cannot store this CLIP: {'; '.join(problems)}")


def clip_options(config: CLIPConfig, *, source: str) -> dict[str, Any]:
    """Return what a teacher's checkpoint must contain besides its weights to rebuild the CLIP in it.

    Empty for an architecture of OpenAI, which the shapes determine; else `clip_config` in plain numbers, strings and
    lists.
    """
    try:
        check_openai_architecture(config, source=source)
    except CheckpointError as error:
        log.info("%s; its configuration is saved with the weights", error)
        return {"clip_config": _plain(config.to_dict())}
    return {}


def _plain(value: Any) -> Any:
    """Convert a configuration to numbers, strings, lists and dicts, which load without running code."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries under `prefix`, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def to_official_types(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict with CLIP's linear weights in float16, as the official runs save them."""
    return {
        key: tensor.half() if key.startswith(CLIP) and any(mark in key for mark in _HALF) else tensor
        for key, tensor in state.items()
    }
