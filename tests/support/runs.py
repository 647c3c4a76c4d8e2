"""What runs wrote: the losses of their logs, and their stores of relevance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from teachclip.store.array_store import ArrayStore

TERMS = ("loss", "video_text", "frame_text")


def logged_losses(folder: Path, names: tuple[str, ...] = TERMS) -> np.ndarray:
    """Return the losses of every logged step of the run in `folder`: steps x names."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in names] for line in lines if "loss" in line])


def assert_same_losses(one: np.ndarray, other: np.ndarray, steps: int) -> None:
    """Compare what two ways of computing the same run logged.

    The first step starts from equal weights, so only float32's rounding is between them. Adam then makes a whole
    step of a gradient that is nothing but rounding, and how float32 rounds depends on the processor: later steps
    may differ a little more.
    """
    assert len(one) == len(other) == steps
    np.testing.assert_allclose(other[0], one[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other[1:], one[1:], rtol=2e-4, atol=2e-4)


def relevance_store(stores: Path, name: str) -> ArrayStore:
    """Open the only store of a teacher's relevance below the folder `stores`."""
    (manifest,) = (stores / f"relevance-{name}").glob("*/manifest.json")
    return ArrayStore.open(manifest.parent)
