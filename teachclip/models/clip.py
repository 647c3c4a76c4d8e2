"""CLIP: load it from any source and encode texts and frames.

Inside the toolkit a CLIP is always a `transformers.CLIPModel`, whatever the layout of its weights file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import (
    check_finite,
    check_state,
    first_line,
    load_tensors,
    to_float32,
    unwrap_state,
)
from teachclip.models.layouts import (
    CLIP,
    is_openai,
    openai_to_transformers,
    read_clip_config,
    transformers_to_openai,
    under,
)

__all__ = [
    "check_loading_info",
    "check_pixel_values",
    "check_token_ids",
    "clip_from_state",
    "frame_features",
    "load_clip",
    "load_tensors",
    "openai_to_transformers",
    "quiet_loading",
    "sentence_and_words",
    "text_features",
    "transformers_to_openai",
]


def clip_from_state(
    state: Mapping[str, Tensor], *, source: str, prefix: str = "", config: CLIPConfig | None = None
) -> CLIPModel:
    """Build a CLIP from a state dict under OpenAI's or transformers' names, in float32 and evaluation mode.

    `config`: the architecture, if it is not determined by the shapes. `prefix`: put before names in errors.
    Raises CheckpointError if names or shapes do not fit, or if weights are NaN or infinite.
    """
    config = config or read_clip_config(state, source=source, prefix=prefix)
    with torch.device("meta"):
        reference = CLIPModel(config).state_dict()
    expected = transformers_to_openai(reference) if is_openai(state) else reference
    check_state(
        {prefix + key: tensor for key, tensor in state.items()},
        {prefix + key: tensor for key, tensor in expected.items()},
        source=source,
    )
    check_finite(state, source=source)
    converted = openai_to_transformers(state) if is_openai(state) else state
    with quiet_loading():
        return CLIPModel.from_pretrained(None, config=config, state_dict=to_float32(converted), dtype=torch.float32)


def load_clip(source: str | os.PathLike[str] | Mapping[str, Any]) -> CLIPModel:
    """Load a CLIP in float32 and evaluation mode.

    `source`: a folder or hub id of a transformers CLIP, or an OpenAI (or transformers) state dict as a file or a
    mapping, whose shapes determine the sizes. Raises CheckpointError if it cannot be loaded completely.
    """
    if isinstance(source, Mapping):
        return clip_from_state(unwrap_state(source, source="CLIP state dict"), source="CLIP state dict")
    path = Path(source)
    if path.is_file():
        return clip_from_state(load_tensors(path), source=str(path))
    try:
        with quiet_loading():
            model, info = CLIPModel.from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a CLIP: {first_line(error)}") from error
    check_loading_info(info, source=str(source), allow_unexpected=True)
    check_finite(model.state_dict(), source=str(source))
    return model.eval()


def check_loading_info(info: Mapping[str, Any], *, source: str, allow_unexpected: bool = False) -> None:
    """Raise CheckpointError if weights of a model were not loaded: transformers would silently initialise them."""
    problems = [("missing", sorted(info["missing_keys"]))]
    problems.append(("of another shape", sorted(entry[0] for entry in info["mismatched_keys"])))
    if not allow_unexpected:
        problems.append(("unexpected", sorted(info["unexpected_keys"])))
    messages = [
        f"{len(keys)} weight{'s' * (len(keys) > 1)} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for word, keys in problems
        if keys
    ]
    if messages:
        raise CheckpointError(f"{source}: {'; '.join(messages)}")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bar and the loading report of transformers; the callers check what was loaded."""
    had_bar, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bar:
            transformers_logging.enable_progress_bar()


def text_features(clip: CLIPModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return projected text features at the end-of-text token (texts, dim), not normalised.

    `input_ids`, `attention_mask`: (texts, tokens). The mask is not used: attention is causal and padding follows the
    end-of-text token, which is the only one read; without a mask the fast attention kernels apply. Raises DataError
    for ids outside the vocabulary (checked on the CPU only, where it needs no synchronisation) and too many tokens.
    """
    _check_input_ids(clip, input_ids)
    return clip.get_text_features(input_ids=input_ids).pooler_output


def sentence_and_words(clip: CLIPModel, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return projected features of the text (texts, dim) and of every token (texts, tokens, dim), not normalised.

    The first equals `text_features`; the second includes padding, which official models read (X-CLIP, CLIP2Video).
    Raises what `text_features` does.
    """
    _check_input_ids(clip, input_ids)
    output = clip.text_model(input_ids=input_ids)
    return clip.text_projection(output.pooler_output), clip.text_projection(output.last_hidden_state)


def _check_input_ids(clip: CLIPModel, input_ids: Tensor) -> None:
    config = clip.config.text_config
    if input_ids.ndim != 2 or input_ids.shape[1] > config.max_position_embeddings:
        shape = tuple(input_ids.shape)
        raise DataError(f"input_ids has shape {shape}, expected (texts, at most {config.max_position_embeddings})")
    if input_ids.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        check_token_ids(input_ids, vocabulary=config.vocab_size)


def check_token_ids(input_ids: Tensor, *, vocabulary: int) -> None:
    """Raise DataError if there are no ids, or ids outside 0..vocabulary-1."""
    if input_ids.numel() == 0:
        raise DataError(
            f"input_ids has shape {tuple(input_ids.shape)}; expected (texts, tokens), at least one of each"
        )
    low, high = (int(value) for value in torch.aminmax(input_ids))
    if low < 0 or high >= vocabulary:
        invalid = low if low < 0 else high
        raise DataError(f"token id {invalid} is outside the vocabulary of the model (0 to {vocabulary - 1})")


def frame_features(clip: CLIPModel, pixel_values: Tensor) -> Tensor:
    """Return projected features of every frame (videos, frames, dim), not normalised.

    `pixel_values`: (videos, frames, 3, height, width), normalised. Raises DataError for another shape.
    """
    check_pixel_values(clip, pixel_values)
    features = clip.get_image_features(pixel_values=pixel_values.flatten(0, 1)).pooler_output
    return features.unflatten(0, pixel_values.shape[:2])


def check_pixel_values(clip: CLIPModel, pixel_values: Tensor) -> None:
    """Raise DataError unless pixels have the shape (videos, frames, 3, height, width) of the vision encoder."""
    config = clip.config.vision_config
    wanted = (config.num_channels, config.image_size, config.image_size)
    if pixel_values.ndim != 5 or tuple(pixel_values.shape[2:]) != wanted:
        expected = f"(videos, frames, {', '.join(map(str, wanted))})"
        raise DataError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected {expected}")
    if not pixel_values.numel():
        raise DataError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected at least one video and frame")


def clip_of_teacher(state: Mapping[str, Tensor], clip_config: Mapping[str, Any] | None, *, source: str) -> CLIPModel:
    """Build the CLIP under `clip.` of a teacher's state dict, in float32 and evaluation mode.

    `clip_config`: its configuration, if it is not an architecture of OpenAI; see `clip_options`. Raises
    CheckpointError if names or shapes do not fit.
    """
    config = None if clip_config is None else CLIPConfig(**clip_config)
    return clip_from_state(under(state, CLIP), source=source, prefix=CLIP, config=config)
