"""Weights and inputs of the CLIP2Video goldens, made by the rules in their JSON files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden import golden_texts
from golden_models import rule_state
from torch import Tensor


def clip2video_state(info: dict[str, Any]) -> dict[str, Tensor]:
    """The official state dict that a golden was recorded with."""
    return rule_state(info["manifest"], info["SEED"])


def clip2video_batch(info: dict[str, Any]) -> dict[str, Tensor]:
    """The recorded inputs; videos shorter than the batch end in zero frames."""
    config = info["config"]
    batch, frames, tokens, size = config["B"], config["F"], config["W"], config["image_resolution"]
    state = np.random.RandomState(info["input_seed"])
    pixels = state.standard_normal((batch, frames, 3, size, size)).astype(np.float32)
    ids, attention = golden_texts(state, batch, tokens, most=tokens - 3)
    of_video = state.standard_normal((batch, 1, 3, 1, 1)).astype(np.float32)
    of_frame = state.standard_normal((batch, frames, 3, 1, 1)).astype(np.float32)
    pixels = pixels + np.float32(2) * of_video + of_frame
    mask = np.ones((batch, frames), dtype=bool)
    for row, valid in enumerate(config["lengths"] or []):
        pixels[row, valid:] = 0
        mask[row, valid:] = False
    arrays = {"pixel_values": pixels, "frame_mask": mask, "input_ids": ids, "attention_mask": attention}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}
