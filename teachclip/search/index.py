"""The index of some folders of videos: searching it, and reading what is in it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import DataError
from teachclip.search.compressed import CompressedEngine, open_compressed, stamp_of
from teachclip.search.engines import Engine
from teachclip.search.filters import OWN, where
from teachclip.search.generations import INDEX_FILE, Generation, Settings, current_generation
from teachclip.search.queries import QueryEncoder, check_fingerprint, load_queries, queries_of
from teachclip.search.results import Found, Part, Video, without_overlaps
from teachclip.search.update import Report, Wanted, problems_of, update_index

PER_QUERY = 400
"""Values in one SQL statement."""

TRIES = 5
"""How often a search is done anew because a run wrote meanwhile; the last time, a changed video may be missing."""

MOST_ROWS = 100_000
"""Rows that a search looks at to find enough different videos."""


_FILES = "FROM files JOIN videos ON videos.id = files.video"


class VideoIndex:
    """The index in a folder that `teachclip index` or `VideoIndex.build` made.

    It may be used by several threads, and while another process brings it up to date: every call sees whole videos as
    of the last write.
    """

    def __init__(self, path: str | os.PathLike[str], queries: QueryEncoder | None = None, device: str | None = None):
        self.path = Path(path)
        self._given, self._device = queries, device
        self._queries: QueryEncoder | None = None
        self._checked = ""
        self._lock = threading.RLock()
        self._opened: tuple[tuple[int, int], Generation, Engine | None] | None = None
        self._compressed: tuple[Any, CompressedEngine | None] = (None, None)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        queries: QueryEncoder | None = None,
        model: str | None = None,
        device: str | None = None,
    ) -> VideoIndex:
        """Open an index.

        `queries`: what encodes queries; without it the student of the index, or the one at `model`, is loaded for the
        first query, on `device` (None: a GPU if there is one). Raises DataError if there is no index.
        """
        index = cls(path, queries or (load_queries(model, device) if model else None), device)
        _ = index.generation
        return index

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        folders: Sequence[str | os.PathLike[str]] = (),
        *,
        model: str | None = None,
        parts: str | None = None,
        window: float | None = None,
        stride: float | None = None,
        engine: str | None = None,
        uri: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        keyframes: bool | None = None,
        **options: Any,
    ) -> tuple[VideoIndex, Report]:
        """Make an index of folders, or bring it up to date, and return it with a report.

        See `update_index` for `options` and the errors, and `teachclip index --help` for the others; None means as
        before.
        """
        wanted = Wanted(model, parts, window, stride, engine, uri, device, precision, keyframes)
        report = update_index(path, folders, wanted, **options)
        return cls.open(path, device=device), report

    # What is searched

    @property
    def generation(self) -> Generation:
        """The generation that answers now. Raises DataError if there is no index."""
        return self._open()[0]

    @property
    def settings(self) -> Settings:
        """What the vectors were made by."""
        return self.generation.settings

    def _open(self, engine: bool = False) -> tuple[Generation, Any]:
        """Return the current generation, and its engine if it is needed."""
        with self._lock:
            try:
                status = os.stat(self.path / INDEX_FILE)
            except OSError as error:
                hint = "make it: teachclip index FOLDER --model STUDENT --index"
                raise DataError(f"{self.path}: there is no index here; {hint} {self.path}") from error
            stamp = (status.st_mtime_ns, status.st_ino)
            if self._opened is None or self._opened[0] != stamp:
                generation = current_generation(self.path)
                assert generation is not None
                if self._opened is not None and self._opened[1] == generation:
                    self._opened = (stamp, *self._opened[1:])
                else:
                    self._opened = (stamp, generation, None)
            if engine and self._opened[2] is None:
                self._opened = (*self._opened[:2], self._opened[1].engine())
            return self._opened[1], self._opened[2]

    def _searched(self) -> tuple[Generation, Engine | CompressedEngine]:
        """Return the current generation and what is searched: its engine, in the form of the chosen rung."""
        with self._lock:
            generation, engine = self._open(engine=True)
            stamp = stamp_of(generation)
            if stamp is None:
                self._compressed = (None, None)
            elif self._compressed[0] != (engine, stamp):
                self._compressed = ((engine, stamp), open_compressed(generation, engine))
            return generation, self._compressed[1] or engine

    def close(self) -> None:
        """Let go of the engine. The index opens it again when it is needed."""
        with self._lock:
            self._compressed = (None, None)
            if self._opened is not None:
                self._opened[1].state.close()
                if self._opened[2] is not None:
                    self._opened[2].close()
            self._opened = None

    def __enter__(self) -> VideoIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def queries(self) -> QueryEncoder:
        """Return the query encoder; load it at the first call. Raises DataError for another student."""
        with self._lock:
            settings = self.settings
            if self._queries is None or self._checked != settings.fingerprint:  # another student took over
                self._queries = self._given or queries_of(self.generation.folder, settings.model, self._device)
                check_fingerprint(self.path, dict(settings.provenance), settings.model, self._queries)
                self._checked = settings.fingerprint
            return self._queries

    # Searching

    def search(
        self,
        text: str | None = None,
        *,
        like: Any = None,
        minus: str | None = None,
        filters: Sequence[str] = (),
        within: str | None = None,
        limit: int = 10,
        parts: int | None = 5,
    ) -> list[Found]:
        """Return the videos nearest to a query, nearest first; at most `limit`, each with at most `parts` parts.

        `text`: what is searched. `like`: an example, see `vector_of`; with a text, both together. `minus`: a text to
        turn away from. `filters`: see `teachclip.search.filters.where`. `within`: the id or path of a video, whose
        parts alone are searched. Raises DataError for a query that cannot be understood, an unknown filter, and if
        the query's student is another than the index's.
        """
        if limit < 1:
            raise DataError(f"limit is {limit}, expected at least 1")
        vector = self.query_vector(text, like=like, minus=minus)
        if within is None and not filters:
            return self.nearest(vector, limit=limit, parts=parts)
        found: list[Found] = []
        for _ in range(TRIES):
            state = self.generation.state
            before = state.revision()
            chosen = self.ids(filters) if within is None else [self.video(within).id]
            found = self.nearest(vector, limit=limit, videos=chosen, parts=parts, filters=filters)
            if state.revision() == before:  # else a run wrote meanwhile, and the filters may have chosen other videos
                break
        return found

    def query_vector(self, text: str | None = None, *, like: Any = None, minus: str | None = None) -> np.ndarray:
        """Return the vector of a query, float32 (dim,), L2-normalised; see `search`."""
        from teachclip.search.examples import vector_of

        if text is None and like is None:
            raise DataError("nothing to search: give a text or an example")
        parts = [] if text is None else [self.queries().texts([text])[0]]
        if like is not None:
            parts.append(vector_of(self, like))
        vector = np.sum(parts, axis=0)
        if minus is not None:
            vector = vector / np.linalg.norm(vector) - self.queries().texts([minus])[0]
        length = float(np.linalg.norm(vector))
        if length < 1e-6:
            raise DataError("the query and what is subtracted are the same; nothing is left to search")
        return np.asarray(vector / length, np.float32)

    def nearest(
        self,
        vector: np.ndarray,
        *,
        limit: int = 10,
        videos: Sequence[str] | None = None,
        parts: int | None = 5,
        filters: Sequence[str] = (),
    ) -> list[Found]:
        """Return the videos nearest to a vector (dim,), as `search` does; `videos`: of these ids alone."""
        generation, engine = self._searched()
        one = videos is not None and len(videos) == 1
        with generation.state.reading() as database:
            for _ in range(TRIES):
                before = generation.state.revision()
                rows: dict[str, list[sqlite3.Row]] = {}
                scores: dict[str, float] = {}
                for hits in growing(engine, vector, 1000 if one else None, limit, videos):
                    scores = dict(hits)
                    rows = _rows_of_videos(database, list(scores))
                    if one or len(rows) >= limit:
                        break
                best = [video for video in dict.fromkeys(map(video_of, scores)) if video in rows][:limit]
                known = {video.id: video for video in self._videos(generation, filters, best)}
                if generation.state.revision() == before:
                    break  # else a run wrote in between: rows of before and names of after do not fit together
        found = []
        for video in (known[video] for video in best if video in known):
            own = without_overlaps([_part(row, scores) for row in rows[video.id]], parts)
            found.append(Found(video, float(own[0].score or 0.0), own))
        return found

    # Reading

    @property
    def columns(self) -> list[str]:
        """The columns that filters may name: those of every index, and those of tables."""
        return [*OWN, *self._own_columns(self.generation)]

    def _own_columns(self, generation: Generation) -> list[str]:
        with generation.state.reading() as database:
            rows = database.execute("SELECT DISTINCT key FROM files, json_each(files.columns) ORDER BY key")
            return [row[0] for row in rows]

    def ids(self, filters: Sequence[str] = (), *, limit: int | None = None, offset: int = 0) -> list[str]:
        """Return the ids of the videos that `videos` would give, in the same order.

        Costs a small part of `videos`: no more files are read than that takes.
        """
        generation = self.generation
        condition, values = self._where(generation, filters)
        found: dict[str, None] = {}
        with generation.state.reading() as database, contextlib.closing(database.cursor()) as cursor:
            cursor.execute(f"SELECT video {_FILES} WHERE {condition} ORDER BY path", values)
            for row in cursor:
                found[row[0]] = None
                if limit is not None and len(found) >= offset + limit:
                    break
        return list(found)[offset : None if limit is None else offset + limit]

    def videos(self, filters: Sequence[str] = (), *, limit: int | None = None, offset: int = 0) -> list[Video]:
        """Return the videos that fulfil all `filters`, by path; `limit` of them from the place `offset` on."""
        some = None if limit is None and not offset else self.ids(filters, limit=limit, offset=offset)
        return self._videos(self.generation, filters, some)

    def _where(self, generation: Generation, filters: Sequence[str]) -> tuple[str, list[Any]]:
        if not filters:
            return where((), (), ())
        return where(filters, self._own_columns(generation), generation.state.folders())

    def _videos(self, generation: Generation, filters: Sequence[str], ids: Sequence[str] | None) -> list[Video]:
        """Return the videos that fulfil all `filters`, of these ids alone, by path."""
        condition, values = self._where(generation, filters)
        found: dict[str, list[sqlite3.Row]] = {}
        with generation.state.reading() as database:
            for some in [None] if ids is None else _batches(ids):
                chosen = "" if some is None else f" AND videos.id IN ({', '.join('?' for _ in some)})"
                rows = database.execute(
                    "SELECT videos.id, path, length, date, bytes, files.columns, videos.error, "
                    "(SELECT count(DISTINCT start) FROM parts WHERE parts.video = videos.id) AS parts "
                    f"{_FILES} WHERE {condition}{chosen} ORDER BY path",
                    [*values, *(some or ())],
                )
                for row in rows:
                    found.setdefault(row["id"], []).append(row)
        return [_video(rows) for rows in found.values()]

    def video(self, name: str | os.PathLike[str]) -> Video:
        """Return a video by its id, or by the path of its file or the end of it. Raises DataError."""
        name = str(name)
        with self.generation.state.reading() as database:
            row = database.execute("SELECT id FROM videos WHERE id = ?", (name,)).fetchone()
            paths = []
            if row is None:
                path = os.path.abspath(os.path.expanduser(name))
                end = f"/{name.lstrip('/')}"
                paths = database.execute(
                    "SELECT video, path FROM files WHERE video IS NOT NULL AND (path = ? OR substr(path, ?) = ?) "
                    "ORDER BY path != ?, path",
                    (path, -len(end), end, path),
                ).fetchall()
        if row is None:
            if not paths:
                raise DataError(f"{self.path}: has no video {name!r}; give an id, or the path of a file in the index")
            if paths[0]["path"] != path and len({found["video"] for found in paths}) > 1:
                raise DataError(f"{name!r} may be {paths[0]['path']} or {paths[1]['path']}; give more of the path")
        videos = self._videos(self.generation, (), [row["id"] if row else paths[0]["video"]])
        if not videos:
            raise DataError(f"{self.path}: has no video {name!r}")
        return videos[0]

    def parts(self, video: str) -> list[Part]:
        """Return the rows of a video's parts, by its id or path, in the order of time. Raises DataError."""
        entry = self.video(video)
        return self.parts_of([entry.id])[entry.id]

    def parts_of(self, videos: Sequence[str]) -> dict[str, list[Part]]:
        """Return the rows of the parts of videos, by id, in the order of time. Unknown ids are absent."""
        found: dict[str, list[Part]] = {}
        with self.generation.state.reading() as database:
            for some in _batches(videos):
                marks = ", ".join("?" for _ in some)
                rows = database.execute(f"SELECT * FROM parts WHERE video IN ({marks}) ORDER BY video, number", some)
                for row in rows:
                    found.setdefault(row["video"], []).append(_part(row))
        return found

    def part(self, row: str) -> Part:
        """Return the row of an id. Raises DataError if there is none."""
        video, _, number = row.partition("-")
        for part in self.parts(video):
            if str(part.number) == number:
                return part
        raise DataError(f"{self.path}: has no row {row!r}")

    def vectors(self, videos: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Return the vectors, float32 (dim,), by row id, of some videos by id, or of all."""
        generation, engine = self._open(engine=True)
        asked = None if videos is None else list(videos)
        ids = generation.state.video_ids(asked)
        wanted = None if asked is None else [video for video in asked if video in ids]
        return {
            row: vector
            for rows in engine.read(wanted)
            for row, video, vector in zip(rows.ids, rows.videos, rows.vectors, strict=True)
            if video in ids
        }

    def problems(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the files that cannot be read, and those of which some parts cannot be, and why, by path."""
        return problems_of(self.generation.state)


def growing(
    engine: Engine | CompressedEngine,
    vector: np.ndarray,
    rows: int | None,
    limit: int,
    videos: Sequence[str] | None = None,
) -> Iterator[list[tuple[str, float]]]:
    """Yield the rows nearest to a vector and their scores, `rows` of them, then four times as many, as long as there
    are more. `rows` is None: as many as `limit` videos may need.
    """
    if rows is None:
        usual = min(MOST_ROWS, max(50, 5 * limit))
        rows = max(limit, engine.first_rows(usual)) if isinstance(engine, CompressedEngine) else usual
    while True:
        hits = engine.search(vector, rows, videos)
        yield hits
        if len(hits) < rows or rows >= MOST_ROWS:
            return
        rows = min(MOST_ROWS, 4 * rows)


def _rows_of_videos(database: sqlite3.Connection, ids: Sequence[str]) -> dict[str, list[sqlite3.Row]]:
    """Return the rows of the state of rows that the engine found, by video, without those that it does not know."""
    found: dict[str, list[sqlite3.Row]] = {}
    for some in _batches(ids):
        marks = ", ".join("(?, ?)" for _ in some)
        values = [value for row in some for value in _video_and_number(row)]
        rows = database.execute(  # as a join: `IN (VALUES ...)` would read all parts of the index
            f"WITH wanted (one, place) AS (VALUES {marks}) "
            "SELECT parts.* FROM wanted CROSS JOIN parts ON video = one AND number = place",
            values,
        )
        for row in rows:
            found.setdefault(row["video"], []).append(row)
    return found


def _video_and_number(row: str) -> tuple[str, int]:
    video, _, number = row.partition("-")
    return video, int(number)


def video_of(row: str) -> str:
    """Return the id of the video of a row."""
    return row.partition("-")[0]


def _batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + PER_QUERY] for start in range(0, len(ids), PER_QUERY)]


def _part(row: sqlite3.Row, scores: dict[str, float] | None = None) -> Part:
    name = f"{row['video']}-{row['number']}"
    times, weights = (list(struct.unpack(f"<{len(row[key]) // 4}f", row[key])) for key in ("times", "weights"))
    score = None if scores is None else float(scores[name])
    return Part(name, row["number"], row["start"], row["end"], row["best"], times, weights, score)


def _video(rows: Sequence[sqlite3.Row]) -> Video:
    """Return a video from the rows of its files."""
    first = rows[0]
    paths, columns = [row["path"] for row in rows], json.loads(first["columns"])
    values = (first["length"], first["date"], first["bytes"], first["parts"], first["error"])
    return Video(first["id"], paths[0], paths, *values, columns)
