"""Measure ways to search in LanceDB: time, memory, bytes, and how many of the true nearest rows are found."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from teachclip.console import log
from teachclip.data.video.pool import start_context
from teachclip.search.engines import Rows
from teachclip.search.engines.lance import STRUCTURES, LanceEngine

NEAREST = 10
ROWS_PER_ADD = 50_000


class Answers(NamedTuple):
    """What a process that only searches found and took: row ids per query, milliseconds, bytes of memory."""

    found: list[list[str]]
    ms: list[float]
    memory: int


def measure(
    vectors: np.ndarray, queries: np.ndarray, folder: Path, structures: Sequence[str] = tuple(STRUCTURES)
) -> list[dict[str, Any]]:
    """Return a row of measurements for each structure on `vectors` (rows, dim) and `queries` (queries, dim).

    `ms` is the median time of a query, alone, in a process that does nothing else; `memory` what this process took
    for it, above what it has with LanceDB loaded; `recall` the share of the true nearest `NEAREST` rows it found;
    `bytes` what the table takes with the structure, `build_s` the seconds that making it took.
    """
    engine = LanceEngine(folder, dim=vectors.shape[1], collection="")
    for start in range(0, len(vectors), ROWS_PER_ADD):
        part = vectors[start : start + ROWS_PER_ADD]
        names = [f"{start + row:016x}" for row in range(len(part))]
        engine.add(Rows([f"{name}-0" for name in names], names, part))
    engine.table.optimize()
    truth = [nearest_of(vectors, query) for query in queries]
    rows = []
    for name in structures:
        started = time.monotonic()
        engine.restructure(name)
        built = time.monotonic() - started
        size = sum(file.stat().st_size for file in _files(engine, folder))
        answers = _in_a_fresh_process(folder, vectors.shape[1], queries)
        hits = [{int(row.partition("-")[0], 16) for row in found} for found in answers.found]
        recall = sum(len(own & set(true)) for own, true in zip(hits, truth, strict=True)) / (NEAREST * len(queries))
        rows.append(
            {
                "rows": len(vectors),
                "dim": vectors.shape[1],
                "structure": name,
                "ms": statistics.median(answers.ms),
                "memory": answers.memory,
                "recall": recall,
                "bytes": size,
                "build_s": built,
            }
        )
        log(describe(rows[-1]))
    engine.close()
    return rows


def describe(row: dict[str, Any]) -> str:
    """Return a row of measurements in one line."""
    return (
        f"{row['rows']:>9,} rows of {row['dim']}  {row['structure']:12} {row['ms']:8.1f} ms  "
        f"R@{NEAREST} {100 * row['recall']:5.1f}  {row['bytes'] / 1e6:6.0f} MB on disk  "
        f"{row['memory'] / 1e6:5.0f} MB of memory  built in {row['build_s']:.0f} s"
    )


def nearest_of(vectors: np.ndarray, query: np.ndarray) -> list[int]:
    """Return the places of the `NEAREST` rows of `vectors` (rows, dim) with the largest cosine."""
    cosines = vectors @ query
    best = np.argpartition(-cosines, min(NEAREST, len(cosines) - 1))[:NEAREST]
    return [int(place) for place in best[np.argsort(-cosines[best])]]


def _in_a_fresh_process(folder: Path, dim: int, queries: np.ndarray) -> Answers:
    with ProcessPoolExecutor(1, mp_context=start_context(__name__)) as executor:
        return executor.submit(ask, folder, dim, queries).result()


def ask(folder: Path, dim: int, queries: np.ndarray) -> Answers:
    """Search a table for each query, with the structure that it has; the first query is asked twice."""
    engine, process = LanceEngine(folder, dim=dim, collection=""), psutil.Process()
    before = process.memory_info().rss
    engine.find_structure()
    engine.search(queries[0], NEAREST)
    found, times, memory = [], [], 0
    for query in queries:
        started = time.perf_counter()
        hits = engine.search(query, NEAREST)
        times.append(1000 * (time.perf_counter() - started))
        memory = max(memory, process.memory_info().rss - before)
        found.append([row for row, _ in hits])
    return Answers(found, times, memory)


def _files(engine: LanceEngine, folder: Path) -> list[Path]:
    """Return the files of the table, without those of former structures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that other processes would miss them: there are none
        engine.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]
