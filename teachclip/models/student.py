"""Load a student from any layout, convert it to the official layouts, and register it in transformers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig

from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import CheckpointError
from teachclip.models.backbone import load_backbone
from teachclip.models.checkpoints import (
    CLIP4CLIP_MEAN,
    CLIP4CLIP_SEQUENTIAL,
    TEACHCLIP_STUDENT,
    check_finite,
    check_state,
    count_layers,
    describe_checkpoint,
    explained_loading,
    load_tensors,
    tensor_of,
    to_float32,
    unwrap_state,
)
from teachclip.models.clip import quiet_loading
from teachclip.models.configuration import StudentConfig
from teachclip.models.families import FAMILIES
from teachclip.models.hub import require_reachable
from teachclip.models.layouts import (
    BLOCKS,
    CLIP,
    HEAD_WIDTH,
    POSITIONS,
    check_openai_architecture,
    openai_to_transformers,
    read_clip_config,
    transformers_to_openai,
    under,
)
from teachclip.models.modeling import StudentModel, StudentOutput
from teachclip.models.processing import StudentProcessor
from teachclip.models.student_folder import HUB_ARGUMENTS
from teachclip.models.temporal import OFFICIAL_NAMES, rename_blocks
from teachclip.registry import closest

__all__ = [
    "StudentConfig",
    "StudentModel",
    "StudentOutput",
    "StudentProcessor",
    "load_student",
    "student_to_official",
]

OFFICIAL: Mapping[str, Any] = {
    "vectors": 1,
    "attention": "softmax",
    "attention_input": "after",
    "attention_rescale": False,
    "adapters": [],
}
"""Options that the official layouts cannot express, and their values in these layouts."""

AutoConfig.register("teachclip", StudentConfig, exist_ok=True)
AutoModel.register(StudentConfig, StudentModel, exist_ok=True)
AutoProcessor.register(StudentConfig, StudentProcessor, exist_ok=True)


def load_student(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    mask_padding: bool | None = None,
    trust_remote_code: bool = False,
    **hub: Any,
) -> StudentModel:
    """Load a student in float32 and evaluation mode.

    `source`: an exported folder or hub id; a plain dual encoder's, which gives the zero-shot student that averages
    its frames; or an official TeachCLIP or CLIP4Clip (meanP, seqTransf) state dict as a file or a mapping, whose
    shapes determine the sizes. `mask_padding`: False gives padded frames weight, like the official code; None: True,
    or the value of an exported folder. `trust_remote_code`: run the Python code that its tokenizer brings, if any.
    `hub`: where in a hub repository, as in transformers: `revision`, `subfolder`, `cache_dir`, `token`,
    `local_files_only`. Raises CheckpointError if it cannot be loaded completely, with the missing weights or the
    model that the checkpoint belongs to, and for weights that are NaN or infinite.
    """
    if mask_padding is not None and not isinstance(mask_padding, bool):
        raise CheckpointError(f"mask_padding is {mask_padding!r}, expected True, False or None")
    if unknown := [name for name in hub if name not in HUB_ARGUMENTS]:
        known = ("mask_padding", "trust_remote_code", *HUB_ARGUMENTS)
        raise TypeError(f"load_student has no argument {unknown[0]!r}{closest(unknown[0], known)}")
    if isinstance(source, Mapping):
        return _from_official(unwrap_state(source, source="student state dict"), "student state dict", mask_padding)
    source = os.path.expanduser(source)
    path = Path(source)
    if path.is_file():
        return _from_official(load_tensors(path), str(path), mask_padding)
    if not path.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise CheckpointError(f"{path}: no such folder or checkpoint file")
    hub = {name: value for name, value in hub.items() if value is not None}
    require_reachable(source, **hub)
    kind = _model_type(source, hub)
    if kind not in (None, StudentConfig.model_type, *FAMILIES):
        types = ", ".join((StudentConfig.model_type, *FAMILIES))
        raise CheckpointError(f"{source}: model type {kind!r} cannot be loaded as a student; known: {types}")
    if kind in FAMILIES:
        model = _zero_shot(source, trust_remote_code, hub)
    else:
        with explained_loading(source, "a student"):
            model = StudentModel.from_pretrained(
                str(source), dtype=torch.float32, trust_remote_code=trust_remote_code, **hub
            )
    if mask_padding is not None:
        model.config.mask_padding = mask_padding
    return model


def _model_type(source: str | os.PathLike[str], hub: Mapping[str, Any]) -> str | None:
    """Return the model type that a folder's or repository's configuration names, or None if it cannot be read."""
    try:
        content, _ = PreTrainedConfig.get_config_dict(str(source), **hub)
        kind = content.get("model_type")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None  # the student's own loading says what is wrong
    return kind if isinstance(kind, str) else None


def _zero_shot(source: str | os.PathLike[str], trust_remote_code: bool, hub: Mapping[str, Any]) -> StudentModel:
    """Return a student without new parameters from a dual encoder; without a tokenizer it has no processor."""
    backbone = load_backbone(source, random_weights=False, **hub)
    student = StudentModel.from_backbone(backbone, temporal_layers=0, pooling="mean")
    sampling = FrameSampling("per_second", 12)
    student.processor = StudentProcessor.from_backbone(
        source, backbone.config, sampling=sampling, trust_remote_code=trust_remote_code, **hub
    )
    return student


def _from_official(state: Mapping[str, Tensor], source: str, mask_padding: bool | None) -> StudentModel:
    config = read_student_config(state, source=source, mask_padding=mask_padding is not False)
    with torch.device("meta"):
        reference = StudentModel(config).state_dict()
    check_state(state, to_official_names(reference), source=source)
    check_finite(state, source=source)
    with quiet_loading():
        weights = to_float32(from_official_names(state))
        return StudentModel.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)


def student_to_official(model: StudentModel) -> dict[str, Tensor]:
    """Return the weights of a student as an official state dict, in float32; `load_student` loads it.

    The layout is TeachCLIP's, or CLIP4Clip's for mean pooling. Raises CheckpointError if the official layout cannot
    express the student, for example with another number of heads.
    """
    kind = model.config.backbone_config.model_type
    if kind != "clip":
        raise CheckpointError(
            f"student: the official layouts need a CLIP backbone, this student has a {kind} backbone"
        )
    check_openai_architecture(model.config.backbone_config, source="student")
    heads = max(1, model.config.width // HEAD_WIDTH)
    if model.config.temporal_layers and model.config.temporal_heads != heads:
        raise CheckpointError(
            f"student: has {model.config.temporal_heads} temporal heads, the official layout has {heads}"
        )
    for key, official in OFFICIAL.items():
        if (value := getattr(model.config, key)) != official:
            raise CheckpointError(f"student: {key} is {value}, the official layouts only support {official}")
    if model.config.pooling == "attention":
        if not model.config.temporal_layers:
            raise CheckpointError("student: TeachCLIP's layout has a temporal transformer, this student has none")
        if model.config.pooling_temperature != 0.1:
            temperature = model.config.pooling_temperature
            raise CheckpointError(f"student: TeachCLIP's pooling temperature is 0.1, this student's is {temperature}")
    return to_official_names(to_float32(model.state_dict()))


BACKBONE = "backbone."
_ATTENTION = {
    "frameLinear.weight": "aggregation.hidden.weight",
    "frameLinear.bias": "aggregation.hidden.bias",
    "frameLinear2.weight": "aggregation.score.weight",
    "frameLinear2.bias": "aggregation.score.bias",
}

POOLINGS = {TEACHCLIP_STUDENT: "attention", CLIP4CLIP_SEQUENTIAL: "mean", CLIP4CLIP_MEAN: "mean"}
"""The pooling of the official checkpoints that are students."""


def read_student_config(state: Mapping[str, Tensor], *, source: str, mask_padding: bool) -> StudentConfig:
    """Return the configuration of a student from the shapes of an official state dict.

    Raises CheckpointError if it belongs to another model, which is named, or if a required tensor is missing.
    """
    kind = describe_checkpoint(state)
    if kind not in POOLINGS:
        raise CheckpointError(
            f"{source}: expected a TeachCLIP or CLIP4Clip (meanP, seqTransf) student, this looks like {kind}"
        )
    config = read_clip_config(under(state, CLIP), source=source, prefix=CLIP)
    layers = count_layers(state, BLOCKS)
    max_frames = tensor_of(state, POSITIONS, source=source, dimensions=2).shape[0] if layers else None
    return StudentConfig(config, layers, max_frames=max_frames, pooling=POOLINGS[kind], mask_padding=mask_padding)


def from_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official student state dict to the names of `StudentModel`."""
    result = {BACKBONE + key: tensor for key, tensor in openai_to_transformers(under(state, CLIP)).items()}
    result |= {f"temporal.{key}": tensor for key, tensor in rename_blocks(state, prefix=BLOCKS).items()}
    result |= {new: state[old] for old, new in {POSITIONS: POSITIONS, **_ATTENTION}.items() if old in state}
    return result


def to_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a `StudentModel` to the official names; the inverse of `from_official_names`."""
    result = {CLIP + key: tensor for key, tensor in transformers_to_openai(under(state, BACKBONE)).items()}
    blocks = {new: old for old, new in OFFICIAL_NAMES.items()}
    for key, tensor in under(state, "temporal.layers.").items():
        number, _, rest = key.partition(".")
        result[f"{BLOCKS}{number}.{blocks[rest]}"] = tensor
    result |= {old: state[new] for old, new in {POSITIONS: POSITIONS, **_ATTENTION}.items() if new in state}
    return result
