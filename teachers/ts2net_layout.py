"""The two layouts of TS2-Net checkpoints: the original code's, and TeachCLIP's, whose copy lost the token shift.

The original wraps the attention of shifted layers, so that its names have `attn.net.` where others have `attn.`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import another_model, count_layers, tensor_of
from teachclip.models.clip import load_clip
from teachclip.models.layouts import CLIP, transformers_to_openai

LAYERS = f"{CLIP}visual.transformer.resblocks."
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
SELECTOR = "visual_token_selector."

_PREDICTOR, _PROMPT = "text_token_selector.score_predictor.", "visual_prompt_encoder."
UNUSED: Mapping[str, int] = {
    f"{_PREDICTOR}in_conv.0.weight": 1,
    f"{_PREDICTOR}in_conv.0.bias": 1,
    f"{_PREDICTOR}in_conv.1.weight": 2,
    f"{_PREDICTOR}in_conv.1.bias": 1,
    f"{_PREDICTOR}out_conv.0.weight": 2,
    f"{_PREDICTOR}out_conv.2.weight": 2,
    f"{_PROMPT}conv1.weight": 4,
    f"{_PROMPT}positional_embedding": 2,
    f"{_PROMPT}layer_norm.weight": 1,
    f"{_PROMPT}layer_norm.bias": 1,
}
"""Tensors in the official files that no forward pass reads, and their dimensions. They are not kept."""


@dataclass(frozen=True)
class Layout:
    """A state dict without `attn.net.` and unused tensors, and the vision layers whose tokens are shifted."""

    state: dict[str, Tensor]
    shift_layers: tuple[int, ...]


def read_layout(
    state: Mapping[str, Tensor],
    *,
    base_clip: str | os.PathLike[str] | Mapping[str, Any] | None,
    token_shift: bool | None,
    source: str,
) -> Layout:
    """Bring an official state dict into one form.

    `base_clip`: a CLIP by file, folder, hub id or state dict. With it, the file is read as TeachCLIP's loader reads
    it: `attn.net.` tensors are passed over, the attention that is then missing is the base CLIP's, and nothing is
    shifted (golden 03c). Raises CheckpointError for another model's checkpoint, for an unused tensor of another kind,
    and where the attention of whole layers is missing.
    """
    if not any(key.startswith(SELECTOR) or ".attn.net." in key for key in state):
        raise another_model(state, "a TS2-Net", source=source)
    if base_clip is not None and token_shift:
        raise CheckpointError(
            f"{source}: token_shift and base_clip exclude each other: TeachCLIP's loader does not shift"
        )
    for key in UNUSED.keys() & state.keys():
        tensor_of(state, key, source=source, dimensions=UNUSED[key])
    result: dict[str, Tensor] = {}
    shifted = set()
    for key, tensor in state.items():
        layer, is_shifted = _layer(key), key.startswith(LAYERS) and ".attn.net." in key
        if is_shifted and base_clip is None:
            shifted.add(layer)
            plain = key.replace(".attn.net.", ".attn.")
            if plain in state:
                raise CheckpointError(f"{source}: has both {plain} and {key}")
            result[plain] = tensor
        elif not is_shifted and key not in UNUSED:
            result[key] = tensor
    missing = _missing_attention(result)
    if missing and base_clip is not None:
        base = transformers_to_openai(load_clip(base_clip).state_dict())
        result |= {key: base[key.removeprefix(CLIP)] for key in missing if key.removeprefix(CLIP) in base}
    elif missing:
        layers = ", ".join(sorted({str(_layer(key)) for key in missing}, key=int))
        raise CheckpointError(
            f"{source}: {missing[0]} and {len(missing) - 1} more are missing: the attention of vision layers "
            f"{layers} is neither under attn. nor attn.net.; TeachCLIP's loader silently takes it from the original "
            "CLIP; give base_clip=CHECKPOINT to do so"
        )
    return Layout(result, () if token_shift is False else tuple(sorted(shifted)))


def _layer(key: str) -> int:
    """Return the number of the vision layer that an official name is of, or -1."""
    number = key.removeprefix(LAYERS).split(".", 1)[0] if key.startswith(LAYERS) else ""
    return int(number) if number.isdigit() else -1


def _missing_attention(state: Mapping[str, Tensor]) -> list[str]:
    """Return the attention names of vision layers that have none of theirs."""
    missing = []
    for layer in range(count_layers(state, LAYERS)):
        names = [f"{LAYERS}{layer}.attn.{part}" for part in ATTENTION]
        if not any(name in state for name in names):
            missing += names
    return missing


def to_shifted_names(state: Mapping[str, Tensor], layers: Iterable[int]) -> dict[str, Tensor]:
    """Rename the attention of some vision layers to `attn.net.`, as the original code saves it."""
    stems = tuple(f"{LAYERS}{layer}.attn." for layer in layers)
    return {
        key.replace(".attn.", ".attn.net.") if stems and key.startswith(stems) else key: tensor
        for key, tensor in state.items()
    }
