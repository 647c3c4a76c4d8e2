"""Measure ways to search in LanceDB: time, bytes, and how many of the true nearest rows are found."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.console import log
from teachclip.search.engines import Rows
from teachclip.search.engines.lance import STRUCTURES, LanceEngine

NEAREST = 10
ROWS_PER_ADD = 50_000


def multiplied(vectors: np.ndarray, count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return `count` vectors (count, dim) made from fewer real ones (rows, width), L2-normalised, float32.

    Each is between two real vectors, one of them among the 8 nearest of the other, with noise of a tenth of their
    distance. A random rotation, the same for one `seed`, writes vectors of `width` into `dim`; it keeps every cosine.
    """
    state = np.random.RandomState(seed)
    rotated = vectors @ rotation(vectors.shape[1], dim)
    made = np.empty((count, dim), np.float32)
    for start in range(0, count, ROWS_PER_ADD):
        size = min(ROWS_PER_ADD, count - start)
        first = state.randint(0, len(vectors), size)
        pool = state.randint(0, len(vectors), (size, 64))
        near = np.empty(size, int)
        for part in range(0, size, 5000):
            some = slice(part, part + 5000)
            cosines = np.einsum("nd,nkd->nk", vectors[first[some]], vectors[pool[some]])
            order = np.argsort(-cosines, axis=1)[:, :8]
            chosen = order[np.arange(len(order)), state.randint(0, 8, len(order))]
            near[some] = pool[some][np.arange(len(order)), chosen]
        share = state.random((size, 1)).astype(np.float32)
        between = rotated[first] * share + rotated[near] * (1 - share)
        distance = np.linalg.norm(rotated[first] - rotated[near], axis=1, keepdims=True)
        noise = state.standard_normal((size, dim)).astype(np.float32) * distance / (10 * np.sqrt(dim))
        made[start : start + size] = between + noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def rotation(width: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return a matrix (width, dim), float32, that keeps the cosines of what it is multiplied with."""
    square = np.random.RandomState(seed).standard_normal((dim, width))
    return np.linalg.qr(square)[0].T.astype(np.float32)


def measure(
    vectors: np.ndarray, queries: np.ndarray, folder: Path, structures: Sequence[str] = tuple(STRUCTURES)
) -> list[dict[str, Any]]:
    """Return a row of measurements for each structure on `vectors` (rows, dim) and `queries` (queries, dim).

    `ms` is the median time of a query, alone; `recall` the share of the true nearest `NEAREST` rows that is found;
    `bytes` what the table takes with the structure, `build_s` the seconds that making it took.
    """
    engine = LanceEngine(folder, dim=vectors.shape[1], collection="")
    for start in range(0, len(vectors), ROWS_PER_ADD):
        part = vectors[start : start + ROWS_PER_ADD]
        names = [f"{start + row:016x}" for row in range(len(part))]
        engine.add(Rows([f"{name}-0" for name in names], names, part))
    engine.table.optimize()
    truth = [set(np.argsort(-(vectors @ query))[:NEAREST].tolist()) for query in queries]
    rows = []
    for name in structures:
        started = time.monotonic()
        engine.restructure(name)
        built = time.monotonic() - started
        engine.search(queries[0], NEAREST)
        found, times = 0, []
        for query, nearest in zip(queries, truth, strict=True):
            started = time.perf_counter()
            hits = engine.search(query, NEAREST)
            times.append(1000 * (time.perf_counter() - started))
            found += len(nearest & {int(row.partition("-")[0], 16) for row, _ in hits})
        size = sum(file.stat().st_size for file in _files(engine, folder))
        recall = found / (NEAREST * len(queries))
        rows.append(
            {
                "rows": len(vectors),
                "structure": name,
                "ms": statistics.median(times),
                "recall": recall,
                "bytes": size,
                "build_s": built,
            }
        )
        shown = f"{rows[-1]['ms']:.1f} ms, R@{NEAREST} {100 * recall:.1f}, {size / 1e6:.0f} MB"
        log(f"{len(vectors):,} rows, {name}: {shown}")
    engine.close()
    return rows


def _files(engine: LanceEngine, folder: Path) -> list[Path]:
    """Return the files of the table, without those of former structures."""
    from datetime import timedelta

    engine.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]
