"""Measure the rungs of an index on queries: what is found, bytes, time; as a table, JSON and a picture."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import DataError
from teachclip.reports.figures import NO_FIGURES, can_draw, draw_compression
from teachclip.reports.tables import Table, markdown_table
from teachclip.search.compressed import CompressedEngine, sorted_rows
from teachclip.search.compression import UNCOMPRESSED, Rung, encode, rungs
from teachclip.search.engines import Engine
from teachclip.search.index import VideoIndex, growing, video_of
from teachclip.store.files import make_folder, write_atomic

NEAREST = 10
RECALLS = (1, 5, 10)
NAME = "compression"


def measure_index(
    index: VideoIndex, texts: Sequence[str], videos: Sequence[str] | None, prefixes: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the measurements of all rungs of an index for queries; see `measure` for a row.

    `videos`: the id of the video that each query should find, or None. `prefixes`: see `rungs`. Raises DataError for
    an empty index.
    """
    vectors = index.queries().texts(texts)
    generation = index.generation
    engine = generation.engine()
    try:
        ids, rows = sorted_rows(generation, engine)
        if not len(ids):
            raise DataError(f"{index.path}: has no vectors to compress")
        measured = measure(engine, ids, rows, vectors, videos, prefixes)
    finally:
        engine.close()
    return {
        "rows": len(ids),
        "videos": len({row.partition(b"-")[0] for row in ids.tolist()}),
        "dims": int(rows.shape[1]),
        "queries": len(texts),
        "named": videos is not None,
        "measured": measured,
    }


def measure(
    engine: Engine,
    ids: np.ndarray,
    rows: np.ndarray,
    queries: np.ndarray,
    videos: Sequence[str] | None,
    prefixes: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Return the measurements of each rung: a dict of numbers, and the ids of the videos found for each query.

    `ids`, `rows`: of the engine, as `sorted_rows` gives them. `queries`: float32 (queries, dim). The uncompressed
    rung is the engine itself. Every query is asked of all rungs in turn, the first rung being another one each time,
    so that other work on the machine slows all of them. `ms` is the median until the best `NEAREST` videos are known;
    `same` the share of the best `NEAREST` videos of a comparison of all float32 vectors that is found, in percent;
    `recall_at_K` the share of queries, in percent, whose video is among the first K.
    """
    exact = CompressedEngine(engine, ids, encode(Rung("exact", rows.shape[1]), rows))
    forms = rungs(rows.shape[1], prefixes)
    searched: list[Engine | CompressedEngine] = [
        engine if rung.name == UNCOMPRESSED else CompressedEngine(engine, ids, encode(rung, rows)) for rung in forms
    ]
    for each in searched:
        found_videos(each, queries[0])
    found: list[list[list[str]]] = [[] for _ in forms]
    times: list[list[float]] = [[] for _ in forms]
    same = np.zeros(len(forms))
    for number, query in enumerate(queries):
        truth = set(found_videos(exact, query))
        for turn in range(len(forms)):
            place = (turn + number) % len(forms)
            started = time.perf_counter()
            best = found_videos(searched[place], query)
            times[place].append(1000 * (time.perf_counter() - started))
            found[place].append(best)
            same[place] += len(truth & set(best)) / len(truth)
    measured = []
    for place, (rung, each) in enumerate(zip(forms, searched, strict=True)):
        row: dict[str, Any] = {
            "rung": rung.name,
            "dims": rung.dims,
            "bytes_per_row": each.codes.bytes_per_row if isinstance(each, CompressedEngine) else 4 * rung.dims,
            "same": 100 * same[place] / len(queries),
            "ms": statistics.median(times[place]),
            "found": found[place],
        }
        if videos is not None:
            pairs = list(zip(found[place], videos, strict=True))
            row |= {f"recall_at_{k}": 100 * sum(v in best[:k] for best, v in pairs) / len(pairs) for k in RECALLS}
        measured.append(row)
    return measured


def found_videos(engine: Engine | CompressedEngine, query: np.ndarray, limit: int = NEAREST) -> list[str]:
    """Return the ids of the best `limit` videos, as `VideoIndex.nearest` finds them."""
    best: list[str] = []
    for hits in growing(engine, query, None, limit):
        best = list(dict.fromkeys(video_of(row) for row, _ in hits))
        if len(best) >= limit:
            break
    return best[:limit]


def table(report: dict[str, Any]) -> Table:
    """Return the measurements as a table."""
    recalls = [f"recall_at_{k}" for k in RECALLS] if report["named"] else []
    names = [f"R@{k}" for k in RECALLS] if report["named"] else []
    header = ("rung", "dims", "bytes per row", *names, f"same top {NEAREST}, %", "ms per query")
    rows = [
        (
            row["rung"],
            str(row["dims"]),
            str(row["bytes_per_row"]),
            *(f"{row[name]:.1f}" for name in [*recalls, "same"]),
            f"{row['ms']:.2f}",
        )
        for row in report["measured"]
    ]
    return Table("", header, rows)


def page(report: dict[str, Any]) -> str:
    """Return the table in Markdown, with what its columns mean."""
    unnamed = "" if report["named"] else " R@k is not measured: the queries do not name the right video."
    lines = [
        f"{report['rows']:,} rows of {report['videos']:,} videos, {report['dims']} numbers each; "
        f"{report['queries']:,} queries.",
        "",
        markdown_table(table(report)),
        "",
        f"- Same top {NEAREST}: agreement with an exact search of the float32 vectors, the share of its best "
        f"{NEAREST} videos that is found.{unnamed}",
        f"- One query of {report['queries']:,} is {100 / report['queries']:.2g} %.",
        "- bytes per row: what every search reads; ids of rows, of which it reads those it finds, are not counted.",
        "- ms per query: median of one run in which the rungs took turns.",
        "- float32 is the engine's own search. The engine keeps the whole vectors; rungs with +40 and +100 compare "
        "so many of the best rows by them.",
    ]
    return "\n".join(lines) + "\n"


def write_report(report: dict[str, Any], folder: Path) -> list[str]:
    """Write the table, JSON and, if matplotlib is there, the picture to a folder; return lines that say where."""
    make_folder(folder)
    measured = [{key: value for key, value in row.items() if key != "found"} for row in report["measured"]]
    write_atomic(folder / f"{NAME}.md", page(report).encode())
    write_atomic(folder / f"{NAME}.json", json.dumps({**report, "measured": measured}, indent=1).encode())
    if not can_draw():
        return [f"{folder / NAME}.md, .json", NO_FIGURES]
    draw_compression(report, folder / f"{NAME}.png")
    return [f"{folder / NAME}.md, .json, .png"]
