"""Compute once, keep on disk: tokens of texts and videos, and the teachers' relevance.

Each function is resumable, may run in several processes at once, and refuses a store made under other circumstances.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from teachclip.fingerprint import fingerprint_of
from teachclip.inputs import Inputs, encode_text_batch, encode_video_batch, to_device
from teachclip.processes import Processes
from teachclip.scorer import Scorer, Teacher, Tokens, gives_frame_relevance, select_tokens
from teachclip.store import ArraySpec, ArrayStore

Encode = Callable[[np.ndarray], Tokens]


def weights_hash(module: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_hash(module: nn.Module) -> str:
    """Return the sha256 of what the weights do not tell: the parts' types and their plain settings (heads, masks)."""
    parts = []
    for name, part in module.named_modules():
        values = {
            key: value
            for key, value in sorted(vars(part).items())
            if key != "training" and not key.startswith("_") and isinstance(value, (bool, int, float, str))
        }
        parts.append([name, type(part).__name__, values])
    return fingerprint_of({"parts": parts})


TEXTS_PER_SHARD, VIDEOS_PER_SHARD, RELEVANCE_PER_SHARD = 4096, 128, 512
"""The most rows of a shard, and so the most that a crash loses."""


def store_tokens(
    path: Path,
    *,
    items: int,
    encode: Encode,
    circumstances: Mapping[str, Any],
    batch_size: int,
    rows_per_shard: int,
    processes: Processes,
    label: str,
) -> ArrayStore:
    """Encode items 0 to items - 1 into a store with one array per token name. Returns the complete store.

    Raises StoreError if the store at `path` was made under other circumstances.
    """
    done = complete_store(path, circumstances, processes)
    if done is not None:
        return done
    sample = encode(np.arange(1))
    arrays = {
        name: ArraySpec(str(tensor.numpy(force=True).dtype), tuple(tensor.shape[1:]))
        for name, tensor in sample.items()
    }
    store = ArrayStore.open_or_create(
        path, circumstances=circumstances, arrays=arrays, rows=items, rows_per_shard=rows_per_shard
    )
    for shard in _bar(store.missing_shards(processes.index, processes.count), label, processes):
        rows = np.asarray(store.shard_rows(shard))
        parts = [encode(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        joined = {name: np.concatenate([part[name].numpy(force=True) for part in parts]) for name in arrays}
        store.write_shard(shard, joined)
    processes.wait()
    return ArrayStore.open(path, circumstances=circumstances)


@torch.no_grad()
def store_scorer_tokens(
    folder: Path,
    scorer: Scorer,
    inputs: Inputs,
    *,
    circumstances: Mapping[str, Any],
    batch_size: int,
    device: torch.device | str,
    processes: Processes,
    label: str,
) -> tuple[ArrayStore, ArrayStore]:
    """Store a scorer's tokens of all texts and videos of `inputs` in `folder/texts` and `folder/videos`."""

    def encode_texts(rows: np.ndarray) -> Tokens:
        return encode_text_batch(scorer, to_device(inputs.texts(rows), device))

    def encode_videos(rows: np.ndarray) -> Tokens:
        return encode_video_batch(scorer, to_device(inputs.videos(rows), device))

    texts = store_tokens(
        folder / "texts",
        items=inputs.text_count,
        encode=encode_texts,
        circumstances={**circumstances, "of": "texts"},
        batch_size=8 * batch_size,
        rows_per_shard=TEXTS_PER_SHARD,
        processes=processes,
        label=f"{label}: texts",
    )
    videos = store_tokens(
        folder / "videos",
        items=inputs.video_count,
        encode=encode_videos,
        circumstances={**circumstances, "of": "videos"},
        batch_size=batch_size,
        rows_per_shard=VIDEOS_PER_SHARD,
        processes=processes,
        label=f"{label}: videos",
    )
    return texts, videos


def read_tokens(store: ArrayStore, rows: slice | np.ndarray, device: torch.device | str) -> Tokens:
    """Read the tokens of some items from a token store."""
    return {name: torch.from_numpy(np.array(store.read(name, rows))).to(device) for name in store.arrays}


@torch.no_grad()
def relevance_rows(
    teacher: Teacher,
    texts: ArrayStore,
    videos: ArrayStore,
    caption_videos: np.ndarray,
    rows: np.ndarray,
    *,
    video_block: int = 1024,
    device: torch.device | str,
) -> dict[str, np.ndarray]:
    """Return `video_text` (rows, videos) of some captions and, if it is given, `frame_text` (rows, frames), float32.

    `texts` and `videos` are the teacher's token stores.
    """
    text_tokens = read_tokens(texts, rows, device)
    blocks = []
    for start in range(0, videos.rows, video_block):
        block = read_tokens(videos, slice(start, min(start + video_block, videos.rows)), device)
        blocks.append(teacher.score(text_tokens, block).float().cpu())
    found = {"video_text": torch.cat(blocks, dim=1).numpy()}
    if gives_frame_relevance(teacher):
        own = read_tokens(videos, caption_videos[rows], device)
        found["frame_text"] = teacher.frame_relevance(text_tokens, own).float().cpu().numpy()
    return found


def store_relevance(
    path: Path,
    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    *,
    captions: int,
    videos: int,
    circumstances: Mapping[str, Any],
    precision: str,
    processes: Processes,
    label: str,
) -> ArrayStore:
    """Store a teacher's relevance: `video_text` (captions, videos) logits; if given, `frame_text` (captions, frames).

    `compute` returns both of some captions by name, as `relevance_rows` does; not called if the store is complete. A
    row holds all videos: a shard is as many captions as fit into about 64 MB. Raises StoreError on other
    circumstances, or if a logit does not fit into `precision`.
    """
    circumstances = {**circumstances, "precision": precision}
    done = complete_store(path, circumstances, processes)
    if done is not None:
        return done
    arrays = {name: ArraySpec(precision, tuple(array.shape[1:])) for name, array in compute(np.arange(1)).items()}
    row_bytes = videos * np.dtype(precision).itemsize
    rows_per_shard = int(np.clip(2**26 // row_bytes, 1, RELEVANCE_PER_SHARD))
    store = ArrayStore.open_or_create(
        path, circumstances=circumstances, arrays=arrays, rows=captions, rows_per_shard=rows_per_shard
    )
    for shard in _bar(store.missing_shards(processes.index, processes.count), label, processes):
        found = compute(np.asarray(store.shard_rows(shard)))
        store.write_shard(shard, {name: array.astype(precision) for name, array in found.items()})
    processes.wait()
    return ArrayStore.open(path, circumstances=circumstances)


@torch.no_grad()
def recompute(
    teacher: Teacher,
    inputs: Inputs,
    caption_videos: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    device: torch.device | str,
) -> dict[str, np.ndarray]:
    """Compute relevance from pixels and token ids: of captions `rows` with videos `columns` (ascending)."""
    texts = encode_text_batch(teacher, to_device(inputs.texts(rows), device))
    videos = encode_video_batch(teacher, to_device(inputs.videos(columns), device))
    again = {"video_text": teacher.score(texts, videos).float().cpu().numpy()}
    if gives_frame_relevance(teacher):
        own = select_tokens(videos, torch.from_numpy(np.searchsorted(columns, caption_videos[rows])).to(device))
        again["frame_text"] = teacher.frame_relevance(texts, own).float().cpu().numpy()
    return again


def verify_relevance(
    store: ArrayStore, again: Mapping[str, np.ndarray], rows: np.ndarray, columns: np.ndarray, *, label: str
) -> list[str]:
    """Compare stored relevance of captions `rows` and videos `columns` with `again`. Returns a line per difference.

    The tolerance is a float16 rounding (2^-10 relative) where the store is float16, and 1e-4 otherwise.
    """
    half = store.arrays["video_text"].dtype == "float16"
    problems = []
    for name, values in again.items():
        kept = np.asarray(store.read(name, rows), dtype=np.float32)
        kept = kept[:, columns] if name == "video_text" else kept
        allowed = 1e-4 + (2.0**-10 if half else 1e-5) * np.abs(values)
        worst = float(np.max(np.abs(kept - values) - allowed))
        if worst > 0:
            problems.append(f"{store.path}: {label} {name}: stored and recomputed differ by {worst:.2e} too much")
    return problems


def complete_store(path: Path, circumstances: Mapping[str, Any], processes: Processes) -> ArrayStore | None:
    """Return the store at `path` if it is complete and was made under `circumstances`; None if it is still to make.

    All processes get the same answer: each looks before any of them goes on to write. Raises StoreError if the store
    was made under other circumstances.
    """
    found = None
    if (path / "manifest.json").exists():
        store = ArrayStore.open(path, circumstances=circumstances, complete=False)
        found = store if store.complete else None
    return found if all(processes.gather(found is not None)) else None


def _bar(shards: list[int], label: str, processes: Processes) -> Any:
    return tqdm(shards, desc=label, unit="shard", disable=not processes.is_main)
