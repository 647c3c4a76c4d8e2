"""Measure a store of shortlists against one of all pairs, with made-up logits: `bench_pairs.py CAPTIONS VIDEOS K`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.processes import Processes
from teachclip.scoring.pair_store import best_columns, store_pairs
from teachclip.scoring.relevance_store import store_relevance
from teachclip.store.row_plan import row_keys
from teachclip.training.batches import RelevanceStore, StoredRelevance

BATCH, BATCHES = 120, 100


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def reading(store: RelevanceStore, own: np.ndarray) -> float:
    """Return the CPU milliseconds of reading the relevance of a batch, the files being in memory."""
    state, times = np.random.RandomState(0), []
    for _ in range(2):
        start = time.process_time()
        for _ in range(BATCHES):
            rows = state.randint(0, len(own), BATCH)
            StoredRelevance(store).batch(rows, own[rows])
        times.append((time.process_time() - start) / BATCHES * 1000)
    return times[-1]


def main(captions: int = 20_000, videos: int = 9_000, top: int = 50) -> None:
    """Print bytes, scored pairs and the reading time of both stores."""
    state = np.random.default_rng(0)
    left, right = (state.standard_normal((count, 32), dtype=np.float32) for count in (captions, videos))
    own, scored = np.arange(captions) % videos, 0

    def every(
        rows: np.ndarray, columns: np.ndarray | None = None, *, with_frames: bool = True
    ) -> Mapping[str, np.ndarray]:
        return {"video_text": left[rows] @ (right if columns is None else right[columns]).T}

    def score(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        nonlocal scored
        scored += len(rows)
        found: np.ndarray = np.einsum("pd,pd->p", left[rows], right[columns])
        return found

    keys = {"captions": row_keys(range(captions)), "videos": row_keys(range(videos))}
    options: dict[str, Any] = {"provenance": {}, "precision": "float16", "processes": Processes(), "label": "pairs"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense = store_relevance(folder / "dense", every, **keys, **options)
        sparse = store_pairs(
            folder / "sparse",
            lambda rows: best_columns(left[rows] @ right.T, own[rows], top),
            score,
            own=own,
            list_provenance={},
            **keys,
            **options,
        )
        print(f"{captions:,} captions x {videos:,} videos, float16, lists of {top}")
        for kind, store, pairs in (("all pairs", dense, captions * videos), ("shortlists", sparse, scored)):
            read = reading(store, own)
            print(f"{kind}: {pairs:,} pairs, {size(folder / store.path.parent.name):,} bytes, {read:.1f} ms a batch")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
