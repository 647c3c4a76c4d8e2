"""Teachers' relevance, computed once and kept on disk.

Relevance has a row for each caption and a column for each video. A row is keyed by its caption and video, so other
captions add rows to the store, as to any. Other videos change all rows: then a store is made beside the one that is
there, under a name of its own, and takes over from it every number that both have. Computing is resumable, may run in
several processes at once, and refuses a store made under other provenance.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from teachclip.background import done_behind
from teachclip.processes import Processes
from teachclip.scoring.token_store import ItemsOfShards, shard_bar, to_make
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.manifest import MANIFEST
from teachclip.store.scratch import blocks, scratch_array
from teachclip.store.stored_items import StoredItems

log = logging.getLogger(__name__)

ROWS_PER_SHARD, SHARD_BYTES = 512, 2**26
"""The most rows and bytes of a shard, and so the most that a crash loses."""

ROWS_AT_ONCE = 16
"""Rows that are held in memory while they are taken over from another store, or rounded."""


class Compute(Protocol):
    """Computes relevance: `video_text` (captions, videos) and, if wanted and there is any, `frame_text`."""

    def __call__(
        self, captions: np.ndarray, videos: np.ndarray | None = None, *, with_frames: bool = True
    ) -> Mapping[str, np.ndarray]:
        """Return the arrays, by name, of some captions; `videos`: of which columns, None: of all."""


class _Held(NamedTuple):
    """A store of relevance that is there: `columns[i]` is the column of video i in it, -1 where it has none."""

    store: ArrayStore
    columns: np.ndarray


def store_relevance(
    path: Path,
    compute: Compute,
    *,
    captions: np.ndarray,
    videos: np.ndarray,
    provenance: Mapping[str, Any],
    precision: str,
    processes: Processes,
    label: str,
) -> StoredItems:
    """Store a teacher's relevance: `video_text` (captions, videos) logits; if given, `frame_text` (captions, frames).

    `captions` and `videos`, uint8 (n, 16), are the keys of the rows and columns: of a caption with its video, of a
    video. `provenance`: what relevance depends on besides them. `compute` is not called for what is stored already.
    A row holds all videos: a shard is as many captions as fit into about 64 MB. Raises StoreError on other
    provenance, or if a logit does not fit into `precision`.
    """
    provenance = {**provenance, "precision": precision}

    look = functools.partial(_complete, path, captions, videos, provenance)
    with to_make(path, look, processes) as done:
        if done is not None:
            return done
        names = {"videos": [bytes(key).hex() for key in videos]}
        folder = path / fingerprint_of(names)[:12]
        others = [held for held in _held_stores(path, videos, provenance) if held.store.path != folder]
        arrays = _arrays(folder, compute, precision)
        row_bytes = len(videos) * np.dtype(precision).itemsize
        store = processes.main_first(
            lambda: ArrayStore.open_or_create(
                folder,
                provenance={**provenance, **names},
                arrays=arrays,
                keys=captions,
                rows_per_shard=int(np.clip(SHARD_BYTES // row_bytes, 1, ROWS_PER_SHARD)),
                what="captions",
            )
        )
        if others and processes.is_main:
            log.info("%s: %s", folder, _describe(others, videos))
        missing = store.missing_shards(processes.index, processes.count)
        items = ItemsOfShards(store, captions)

        def write(shard: int, values: Mapping[str, np.ndarray]) -> None:
            store.write_shard(shard, {name: _rounded(array, precision) for name, array in values.items()})

        with done_behind() as behind:
            for shard in shard_bar(missing, label, processes):
                behind(write, shard, _values(compute, items[shard], captions, arrays, others))
        if others and processes.is_main:  # another run may be reading it
            log.info("%s: not needed for these videos any more; you may delete it", others[0].store.path)
        processes.wait()  # and then open it before another run may plan rows of its own
        found = look()
        assert found is not None
        return found


def _complete(
    path: Path, captions: np.ndarray, videos: np.ndarray, provenance: Mapping[str, Any]
) -> StoredItems | None:
    """Return the relevance of all captions and videos if a store has it."""
    for store, columns in _held_stores(path, videos, provenance):
        if (columns >= 0).all() and store.complete and store.holds(captions).all():
            every = np.array_equal(columns, np.arange(store.arrays["video_text"].shape[0]))
            return StoredItems.of(store, captions, {} if every else {"video_text": columns})
    return None


def _rounded(array: np.ndarray, precision: str) -> np.ndarray:
    """Return an array in a precision, block by block: a shard is not held twice in memory."""
    if array.dtype == precision:
        return array
    rounded = scratch_array(array.shape, precision)
    for rows in blocks(len(array), ROWS_AT_ONCE):
        rounded[rows] = array[rows]
    return rounded


def _arrays(folder: Path, compute: Compute, precision: str) -> dict[str, ArraySpec]:
    """Return the arrays of the store in `folder`; of a new one as `compute` gives them."""
    if (folder / MANIFEST).exists():
        return dict(ArrayStore.open(folder, complete=False).arrays)
    sample = compute(np.arange(1)).items()
    return {name: ArraySpec(precision, tuple(array.shape[1:])) for name, array in sample}


def _held_stores(path: Path, videos: np.ndarray, provenance: Mapping[str, Any]) -> list[_Held]:
    """Return the stores of this relevance, those with most of the videos first. Raises StoreError on provenance."""
    found = []
    for manifest in sorted(path.glob(f"*/{MANIFEST}")):
        store = ArrayStore.open(manifest.parent, complete=False)
        names = store.provenance.get("videos", [])
        store = ArrayStore.open(manifest.parent, provenance={**provenance, "videos": names}, complete=False)
        place = {name: column for column, name in enumerate(names)}
        found.append(_Held(store, np.array([place.get(bytes(key).hex(), -1) for key in videos], dtype=np.int64)))
    return sorted(found, key=lambda held: (-int((held.columns >= 0).sum()), held.store.arrays["video_text"].shape))


def _describe(others: list[_Held], videos: np.ndarray) -> str:
    """Say how many videos are new, and how many of an existing store left or are kept."""
    store, columns = others[0]
    kept = int((columns >= 0).sum())
    return (
        f"{len(videos) - kept:,} videos are new, {store.arrays['video_text'].shape[0] - kept:,} left, {kept:,} kept"
    )


def _values(
    compute: Compute, items: np.ndarray, captions: np.ndarray, arrays: Mapping[str, ArraySpec], others: list[_Held]
) -> dict[str, np.ndarray]:
    """Return the arrays of some captions: taken from another store where it has them, and computed elsewhere."""
    for store, columns in others:
        held = store.holds(captions[items])
        if not held.any() or store.arrays.keys() != arrays.keys():
            continue
        values = {name: scratch_array((len(items), *spec.shape), np.float32) for name, spec in arrays.items()}
        rows, places, new = store.rows_of(captions[items[held]]), np.flatnonzero(held), np.flatnonzero(columns < 0)
        computed = compute(items[held], new, with_frames=False)["video_text"] if len(new) else None
        for some in blocks(len(rows), ROWS_AT_ONCE):
            for name in arrays:
                taken = store.read(name, rows[some])
                if name == "video_text":
                    taken = taken[:, columns]  # of new ones anything, which is replaced
                    if computed is not None:
                        taken[:, new] = computed[some]
                values[name][places[some]] = taken
        if not held.all():
            for name, array in compute(items[~held]).items():
                values[name][~held] = array
        return values
    return dict(compute(items))
