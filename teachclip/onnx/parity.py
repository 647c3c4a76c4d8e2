"""How far an ONNX folder's vectors are from those of the student that it was written from, on seeded inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.errors import CheckpointError
from teachclip.models.modeling import StudentModel
from teachclip.onnx.folder import VIDEO
from teachclip.onnx.query import TextEncoder, TextTokenizer, open_session
from teachclip.onnx.towers import TextTower, VideoTower

TOLERANCE = 1e-5
"""The largest difference of a number of a vector that a float32 export may have."""

SEED, TEXTS, VIDEOS = 0, 16, 6

STRINGS = (
    "a man plays the drum",
    "  A   MAN\tplays\nthe drum!  ",
    "don't you're it's 3.14 1,000,000 #tag @name a_b-c/d",
    "Zoë naïve café \u0065\u0301 Straße \ufb01ne \u2163 \uff21\uff22",
    "犬が走る собака бежит كلب يجري कुत्ता 🐕🏽‍🦺",
    "\u200bzero\u00a0width\ufeff \x00\x07 \ufffd",
    "<|endoftext|> <|startoftext|> [CLS] [SEP] [PAD] <s> </s> <pad> <unk> [MASK]",
    "&amp; &lt;b&gt; http://example.org/?q=1&r=2",
    "word " * 200,
    "x" * 500,
)
"""Texts in which tokenizers differ: case, spaces, scripts, marks, special tokens as text, more than a model reads."""


def check_tokens(student: StudentModel, tokenizer: TextTokenizer) -> int:
    """Compare the tokens of `STRINGS` with those of the student's processor. Returns how many were compared.

    Raises CheckpointError for the first text that the two cut into other tokens.
    """
    processor: Any = student.processor
    limit = {"truncation": True, "max_length": processor.max_tokens}
    for text in STRINGS:
        expected = processor.tokenizer([text], **limit, verbose=False)["input_ids"][0]
        if list(expected) != list(tokenizer.backend.encode(text).ids):
            raise CheckpointError(
                f"the text {text[:40]!r} has other tokens in tokenizer.json than in the student's tokenizer, which "
                "works in Python; this student cannot be exported to ONNX"
            )
    return len(STRINGS)


def example_texts(student: StudentModel, *, count: int = TEXTS) -> tuple[Tensor, Tensor]:
    """Return seeded `input_ids` and `attention_mask` (texts, tokens): random tokens between the special ones.

    Lengths go from the shortest to the longest that the student reads.
    """
    processor: Any = student.processor
    tokenizer, longest = processor.tokenizer, processor.max_tokens
    special = set(tokenizer.all_special_ids)
    usual = [token for token in range(len(tokenizer)) if token not in special]
    rng = np.random.default_rng(SEED)
    rows = []
    for length in np.linspace(min(3, longest), longest, count).astype(int):
        ids = tokenizer("a " * longest, truncation=True, max_length=int(length))["input_ids"]
        rows.append([token if token in special else int(rng.choice(usual)) for token in ids])
    width = processor.pad_to or max(map(len, rows))
    ids, mask = (np.full((count, width), value, dtype=np.int64) for value in (processor.pad_id, 0))
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def example_videos(student: StudentModel, *, count: int = VIDEOS) -> tuple[Tensor, Tensor]:
    """Return seeded frames, uint8 (videos, frames, 3, size, size), coarse to fine, and their mask (videos, frames).

    The first video has all of its frames, the others fewer and fewer.
    """
    processor: Any = student.processor
    frames, size = processor.sampling.count, processor.size
    rng = np.random.default_rng(SEED)
    mask = np.arange(frames) < np.linspace(frames, 1, count).astype(int)[:, None]
    videos = np.empty((count, frames, 3, size, size), dtype=np.uint8)
    for number in range(count):
        cells = min(size, 2 ** (number + 1))
        block = -(-size // cells)
        coarse = rng.integers(0, 256, (frames, 3, cells, cells), dtype=np.uint8)
        videos[number] = coarse.repeat(block, axis=2).repeat(block, axis=3)[..., :size, :size]
    videos[~mask] = 0
    return torch.from_numpy(videos), torch.from_numpy(mask)


@torch.no_grad()
def measure_text(tower: TextTower, folder: Path) -> dict[str, Any]:
    """Return the difference between the text tower of a folder and its module, for `parity.json`."""
    ids, mask = example_texts(tower.student)
    encoder = TextEncoder(folder)
    expected = tower(*(ids, mask)[: len(tower.input_names)])
    return {
        "seed": SEED,
        "texts": len(ids),
        **difference(expected.numpy(), encoder.run(ids.numpy(), mask.numpy())),
    }


@torch.no_grad()
def measure_video(tower: VideoTower, folder: Path) -> dict[str, Any]:
    """Return the difference between the video tower of a folder and its module, for `parity.json`."""
    frames, mask = example_videos(tower.student)
    session = open_session(folder / VIDEO)
    found, weights = session.run(None, {"frames": frames.numpy(), "frame_mask": mask.numpy()})
    expected, frame_weights = tower(frames, mask)
    worst = float(np.abs(weights - frame_weights.numpy()).max())
    measured = difference(expected.numpy(), found)
    return {"seed": SEED, "videos": len(frames), **measured, "frame_weights_max_abs": worst}


def difference(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return the largest difference of a number and the smallest cosine, of rows that are L2-normalised.

    Raises CheckpointError for numbers that are not finite.
    """
    if not np.isfinite(found).all():
        raise CheckpointError("the exported student gives numbers that are not finite")
    return {
        "max_abs": float(np.abs(expected - found).max()),
        "min_cosine": float((expected.astype(np.float64) * found).sum(axis=1).min()),
    }


def check_parity(file: str, measured: dict[str, Any], precision: str) -> dict[str, Any]:
    """Return what was measured on a file. Raises CheckpointError if a float32 one is further off than `TOLERANCE`."""
    worst = measured["max_abs"]
    if precision == "float32" and not worst <= TOLERANCE:
        raise CheckpointError(
            f"{file} differs from the student by {worst:.1e} on seeded inputs, allowed: {TOLERANCE:g}; nothing was "
            "written"
        )
    return measured
