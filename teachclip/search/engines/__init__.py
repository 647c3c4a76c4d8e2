"""Engines, which keep vectors and find the nearest ones; what an engine must do, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from teachclip.errors import DataError
from teachclip.registry import closest

ENGINES = {
    "lance": "teachclip.search.engines.lance:LanceEngine",
    "milvus": "teachclip.search.engines.milvus:MilvusEngine",
}
"""Name of each engine and its class; a third one is one module and one line here."""


class Rows(NamedTuple):
    """Rows of an engine: one per part of a video.

    ids: unique texts of at most 32 characters. videos: the id of the video of each, 16 characters. vectors: float32
    (rows, dim), L2-normalised.
    """

    ids: list[str]
    videos: list[str]
    vectors: np.ndarray


class Engine(Protocol):
    """Keeps rows and finds the nearest ones. It knows nothing of files: what is shown is decided by `state`."""

    def add(self, rows: Rows) -> None:
        """Append rows. When this returns they are on disk and queries see them; `state` hides them until then."""

    def delete(self, videos: Sequence[str] | None) -> None:
        """Delete all rows of these videos; None: the table itself. Videos without rows are no error."""

    def search(self, vector: np.ndarray, limit: int, videos: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """Return the ids of the `limit` rows nearest to `vector` (dim,) and their cosines, nearest first.

        `videos`: search rows of these alone.
        """

    def read(self, videos: Sequence[str] | None = None) -> Iterator[Rows]:
        """Yield all rows, or those of some videos, in batches and in any order."""

    def take(self, ids: Sequence[str]) -> Rows:
        """Return the rows of these ids, in any order; ids without rows are left out."""

    def tune(self) -> str:
        """Tidy up after changes, make or extend a search structure that fits the number of rows, and describe it."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_engine(name: str, place: Path, *, dim: int, collection: str, uri: str | None = None) -> Engine:
    """Open an engine, or make its table if there is none.

    `place`: the folder of an embedded engine. `dim`: of the vectors. `collection`: the name of the table on a server
    at `uri`. Raises DataError for an unknown engine, and with the command that installs it if a package is missing.
    """
    if name not in ENGINES:
        raise DataError(f"engine {name!r} is unknown{closest(name, ENGINES)}; there are: {', '.join(ENGINES)}")
    module, _, kind = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), kind)(place, dim=dim, collection=collection, uri=uri)
    return engine
