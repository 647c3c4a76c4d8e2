"""Results of each query, on disk as Parquet: what a comparison of two models needs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.data.annotations.records import Split
from teachclip.errors import DataError
from teachclip.evaluation.retrieval import Ranks
from teachclip.store.files import write_atomic

COLUMNS = ("direction", "query", "video", "text", "rank", "score")


@dataclass(frozen=True)
class PerQuery:
    """What a model did on each query, text to video first. All (queries,).

    `direction`: t2v or v2t. `query`: the id of a caption, or of a video. `video`: the id of the video that it is
    about. `text`: of a caption, "" for a video. `rank`: of the match, from 1. `score`: of the match.
    """

    direction: list[str]
    query: list[str]
    video: list[str]
    text: list[str]
    rank: list[int]
    score: list[float]

    def of(self, direction: str) -> dict[str, tuple[str, int]]:
        """Return the video and the rank of each query of a direction, by the query's id."""
        rows = zip(self.direction, self.query, self.video, self.rank, strict=True)
        return {query: (video, rank) for found, query, video, rank in rows if found == direction}


def per_query(ranks: Ranks, split: Split) -> PerQuery:
    """Return the results of each query of a split, from its ranks."""
    captions, videos = split.captions, [video.id for video in split.videos]
    return PerQuery(
        direction=["t2v"] * len(captions) + ["v2t"] * len(videos),
        query=[caption.id for caption in captions] + videos,
        video=[caption.video_id for caption in captions] + videos,
        text=[caption.text for caption in captions] + [""] * len(videos),
        rank=np.concatenate([ranks.t2v, ranks.v2t]).tolist(),
        score=np.concatenate([ranks.t2v_scores, ranks.v2t_scores]).tolist(),
    )


def check_writing(path: Path) -> None:
    """Say before the work that `write_per_query` cannot be. Raises DataError where pyarrow is missing."""
    _arrow(path)


def write_per_query(path: Path, results: PerQuery) -> None:
    """Write results as Parquet. Raises DataError where pyarrow is missing."""
    pa, parquet = _arrow(path)
    buffer = io.BytesIO()
    parquet.write_table(pa.table({name: getattr(results, name) for name in COLUMNS}), buffer)
    write_atomic(path, buffer.getvalue())


def read_per_query(path: Path) -> PerQuery:
    """Read what `write_per_query` wrote. Raises DataError, with the path in front, for any other file."""
    pa, parquet = _arrow(path)
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}; expected a file that evaluate --out wrote")
    columns = {name: table[name].to_pylist() for name in COLUMNS}
    ranks = columns["rank"]
    if not ranks or not all(isinstance(rank, int) and rank >= 1 for rank in ranks):
        raise DataError(f"{path}: column rank must hold at least one rank, and whole numbers from 1 alone")
    return PerQuery(**columns)


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: results of each query need pyarrow: pip install 'teachclip[parquet]'") from error
    return pyarrow, parquet
