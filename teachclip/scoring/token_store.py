"""Compute once, keep on disk: tokens of texts and videos, and the teachers' relevance.

Each function is resumable, may run in several processes at once, and refuses a store made under other provenance.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from teachclip.processes import Processes
from teachclip.scorer import Scorer, Tokens
from teachclip.scoring.inputs import Inputs, encode_text_batch, encode_video_batch, prefetch, to_device
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.files import occupied_folder
from teachclip.store.fingerprint import fingerprint_of

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
    provenance: Mapping[str, Any],
    batch_size: int,
    rows_per_shard: int,
    processes: Processes,
    label: str,
    ahead: Callable[[Iterable[np.ndarray]], AbstractContextManager[None]] | None = None,
) -> ArrayStore:
    """Encode items 0 to items - 1 into a store with one array per token name. Returns the complete store.

    `ahead`, as `prefetch`, gets the rows that `encode` will be asked for. Raises StoreError if the store at `path`
    was made under other provenance.
    """
    with _store_to_make(path, provenance, processes) as done:
        if done is not None:
            return done
        sample = encode(np.arange(1))
        arrays = {
            name: ArraySpec(str(tensor.numpy(force=True).dtype), tuple(tensor.shape[1:]))
            for name, tensor in sample.items()
        }
        store = ArrayStore.open_or_create(
            path, provenance=provenance, arrays=arrays, rows=items, rows_per_shard=rows_per_shard
        )
        missing = store.missing_shards(processes.index, processes.count)
        batches = {shard: _batches(store.shard_rows(shard), batch_size) for shard in missing}
        with ahead(itertools.chain.from_iterable(batches.values())) if ahead else nullcontext():
            for shard in _bar(missing, label, processes):
                parts = [encode(rows) for rows in batches[shard]]
                joined = {name: np.concatenate([part[name].numpy(force=True) for part in parts]) for name in arrays}
                store.write_shard(shard, joined)
    return ArrayStore.open(path, provenance=provenance)


def _batches(rows: range, size: int) -> list[np.ndarray]:
    return [np.asarray(rows[start : start + size]) for start in range(0, len(rows), size)]


@torch.no_grad()
def store_scorer_tokens(
    folder: Path,
    scorer: Scorer,
    inputs: Inputs,
    *,
    provenance: Mapping[str, Any],
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
        provenance={**provenance, "of": "texts"},
        batch_size=8 * batch_size,
        rows_per_shard=TEXTS_PER_SHARD,
        processes=processes,
        label=f"{label}: texts",
    )
    videos = store_tokens(
        folder / "videos",
        items=inputs.video_count,
        encode=encode_videos,
        provenance={**provenance, "of": "videos"},
        batch_size=batch_size,
        rows_per_shard=VIDEOS_PER_SHARD,
        processes=processes,
        label=f"{label}: videos",
        ahead=functools.partial(prefetch, inputs),
    )
    return texts, videos


def read_tokens(store: ArrayStore, rows: slice | np.ndarray, device: torch.device | str) -> Tokens:
    """Read the tokens of some items from a token store."""
    return {name: torch.from_numpy(np.array(store.read(name, rows))).to(device) for name in store.arrays}


def store_relevance(
    path: Path,
    compute: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    *,
    captions: int,
    videos: int,
    provenance: Mapping[str, Any],
    precision: str,
    processes: Processes,
    label: str,
) -> ArrayStore:
    """Store a teacher's relevance: `video_text` (captions, videos) logits; if given, `frame_text` (captions, frames).

    `compute` returns both of some captions by name, as `relevance_rows` does; not called if the store is complete. A
    row holds all videos: a shard is as many captions as fit into about 64 MB. Raises StoreError on other
    provenance, or if a logit does not fit into `precision`.
    """
    provenance = {**provenance, "precision": precision}
    with _store_to_make(path, provenance, processes) as done:
        if done is not None:
            return done
        arrays = {name: ArraySpec(precision, tuple(array.shape[1:])) for name, array in compute(np.arange(1)).items()}
        row_bytes = videos * np.dtype(precision).itemsize
        rows_per_shard = int(np.clip(2**26 // row_bytes, 1, RELEVANCE_PER_SHARD))
        store = ArrayStore.open_or_create(
            path, provenance=provenance, arrays=arrays, rows=captions, rows_per_shard=rows_per_shard
        )
        for shard in _bar(store.missing_shards(processes.index, processes.count), label, processes):
            tokens = compute(np.asarray(store.shard_rows(shard)))
            store.write_shard(shard, {name: array.astype(precision) for name, array in tokens.items()})
    return ArrayStore.open(path, provenance=provenance)


@contextmanager
def _store_to_make(path: Path, provenance: Mapping[str, Any], processes: Processes) -> Iterator[ArrayStore | None]:
    """Give the store at `path` if it is complete, or else None and hold its folder: other runs wait and find it made.

    All processes enter and leave together.
    """
    done = complete_store(path, provenance, processes)
    if done is not None:
        yield done
        return
    with ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(occupied_folder(path, wait=True))
        processes.wait()
        yield complete_store(path, provenance, processes)
        processes.wait()


def complete_store(path: Path, provenance: Mapping[str, Any], processes: Processes) -> ArrayStore | None:
    """Return the store at `path` if it is complete and was made under `provenance`; None if it is still to make.

    All processes get the same answer: each looks before any of them goes on to write. Raises StoreError if the store
    was made under other provenance.
    """
    opened = None
    if (path / "manifest.json").exists():
        store = ArrayStore.open(path, provenance=provenance, complete=False)
        opened = store if store.complete else None
    return opened if all(processes.gather(opened is not None)) else None


def _bar(shards: list[int], label: str, processes: Processes) -> Any:
    return tqdm(shards, desc=label, unit="shard", disable=not processes.is_main)
