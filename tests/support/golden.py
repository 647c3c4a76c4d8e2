"""Read the recorded numbers of the official implementations and make their inputs and weights by rule."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parents[1] / "goldens"


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the JSON and the arrays of one golden."""
    info = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    path = GOLDENS / f"{name}.npz"
    if not path.exists():
        return info, {}
    with np.load(path, allow_pickle=False) as arrays:
        return info, {key: arrays[key] for key in arrays.files}


def golden_weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return the deterministic weight that the goldens were recorded with."""
    if key.endswith("logit_scale"):
        return np.full(shape, 2.6593, dtype=np.float32)
    state = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    noise = state.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if key.endswith("weight"):
        return 1 + np.float32(0.1) * noise
    return np.float32(0.1) * noise


def golden_texts(
    state: np.random.RandomState, batch: int, tokens: int, *, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids and attention mask (batch, tokens) of texts of 5 to `most` words, in the recorded order."""
    ids = np.zeros((batch, tokens), dtype=np.int64)
    attention = np.zeros((batch, tokens), dtype=np.int64)
    for row in range(batch):
        length = int(state.randint(5, most + 1))
        ids[row, : length + 2] = [49406, *state.randint(1000, 40000, length), 49407]
        attention[row, : length + 2] = 1
    return ids, attention


def golden_inputs(
    seed: int, *, batch: int, frames: int, size: int, tokens: int, n_valid: list[int] | None = None
) -> dict[str, np.ndarray]:
    """Return pixel values, frame mask, ids and attention mask of one golden batch, drawn in the recorded order."""
    state = np.random.RandomState(seed)
    pixels = state.standard_normal((batch, frames, 3, size, size)).astype(np.float32)
    ids, attention = golden_texts(state, batch, tokens, most=tokens - 2)
    mask = np.ones((batch, frames), dtype=bool)
    for row, valid in enumerate(n_valid or []):
        pixels[row, valid:] = 0
        mask[row, valid:] = False
    return {"pixel_values": pixels, "frame_mask": mask, "input_ids": ids, "attention_mask": attention}
