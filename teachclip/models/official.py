"""The official layouts of TeachCLIP and CLIP4Clip students: flat, CLIP under `clip.` with OpenAI's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import (
    CLIP4CLIP_MEAN,
    CLIP4CLIP_SEQUENTIAL,
    TEACHCLIP_STUDENT,
    count_layers,
    describe_checkpoint,
    tensor_of,
)
from teachclip.models.clip import clip_from_state
from teachclip.models.configuration import StudentConfig
from teachclip.models.layouts import openai_to_transformers, read_clip_config, transformers_to_openai
from teachclip.models.temporal import OFFICIAL_NAMES, rename_blocks

CLIP, BACKBONE = "clip.", "backbone."
BLOCKS = "transformerClip.resblocks."
POSITIONS = "frame_position_embeddings.weight"
_HEAD = {
    "frameLinear.weight": "aggregation.hidden.weight",
    "frameLinear.bias": "aggregation.hidden.bias",
    "frameLinear2.weight": "aggregation.score.weight",
    "frameLinear2.bias": "aggregation.score.bias",
}


POOLINGS = {TEACHCLIP_STUDENT: "attention", CLIP4CLIP_SEQUENTIAL: "mean", CLIP4CLIP_MEAN: "mean"}
"""The official checkpoints that are students, by how they pool their frames."""

_HALF = (".attn.", ".mlp.", "clip.visual.conv1.", "clip.text_projection", "clip.visual.proj")
"""Marks of the names under `clip.` that the official files store in float16."""


def clip_of_teacher(state: Mapping[str, Tensor], clip_config: Mapping[str, Any] | None, *, source: str) -> CLIPModel:
    """Build the CLIP under `clip.` of a teacher's state dict; `clip_config`: of one that is not as OpenAI's.

    Raises CheckpointError if names or shapes do not fit.
    """
    config = None if clip_config is None else CLIPConfig(**clip_config)
    return clip_from_state(under(state, CLIP), source=source, prefix=CLIP, config=config)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries under `prefix`, without it."""
    return {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}


def read_student_config(state: Mapping[str, Tensor], *, source: str, mask_padding: bool) -> StudentConfig:
    """Read all sizes of a student off an official state dict.

    Raises CheckpointError if it is another model's, which is named, or if a tensor that tells a size is missing.
    """
    found = describe_checkpoint(state)
    if found not in POOLINGS:
        raise CheckpointError(
            f"{source}: expected a TeachCLIP or CLIP4Clip (meanP, seqTransf) student, this looks like {found}"
        )
    config = read_clip_config(under(state, CLIP), source=source, prefix=CLIP)
    layers = count_layers(state, BLOCKS)
    max_frames = tensor_of(state, POSITIONS, source=source, dimensions=2).shape[0] if layers else None
    return StudentConfig(config, layers, max_frames=max_frames, pooling=POOLINGS[found], mask_padding=mask_padding)


def from_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official student state dict to the names of `StudentModel`."""
    result = {BACKBONE + key: tensor for key, tensor in openai_to_transformers(under(state, CLIP)).items()}
    result |= {f"temporal.{key}": tensor for key, tensor in rename_blocks(state, prefix=BLOCKS).items()}
    result |= {new: state[old] for old, new in {POSITIONS: POSITIONS, **_HEAD}.items() if old in state}
    return result


def to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a `StudentModel` to the official names; the inverse of `from_official_names`."""
    result = {CLIP + key: tensor for key, tensor in transformers_to_openai(under(state, BACKBONE)).items()}
    blocks = {new: old for old, new in OFFICIAL_NAMES.items()}
    for key, tensor in under(state, "temporal.layers.").items():
        number, _, rest = key.partition(".")
        result[f"{BLOCKS}{number}.{blocks[rest]}"] = tensor
    result |= {old: state[new] for old, new in {POSITIONS: POSITIONS, **_HEAD}.items() if new in state}
    return result


def to_official_types(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict with CLIP's linear weights in float16, as the official runs save them."""
    return {
        key: tensor.half() if key.startswith(CLIP) and any(mark in key for mark in _HALF) else tensor
        for key, tensor in state.items()
    }
