"""The rung that an index is searched by: chosen, kept beside the engine's table, rebuilt when the index changes.

A generation has `compression.json`, which names the rung, a folder of its arrays, and which rows these are of. The
engine keeps the whole vectors. While an update runs, and after one that was killed, the rows are others than the
arrays'; then the engine answers alone, so that every video is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import DataError, StoreError
from teachclip.search.compression import UNCOMPRESSED, Codes, encode, nearest, rung_named
from teachclip.search.engines import Engine
from teachclip.search.generations import Generation, current_generation, make_current
from teachclip.search.state import FILE as STATE_FILE
from teachclip.store.files import map_npy, occupied_folder, read_json, write_atomic, write_npy
from teachclip.store.fingerprint import check_seal, seal

FILE, FOLDER = "compression.json", "compressed-"
IDS, ID_LENGTH = "ids", 32


class _RowsAreGone(Exception):
    """An update has deleted rows since the arrays were opened."""


class CompressedEngine:
    """Searches the rows of an engine in the form of a rung.

    `ids`: of the rows, bytes, sorted. `codes`: of the rows, in the same order.
    """

    def __init__(self, engine: Engine, ids: np.ndarray, codes: Codes):
        self.engine, self.ids, self.codes = engine, ids, codes

    def search(self, vector: np.ndarray, limit: int, videos: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """See `Engine.search`. Scores are cosines if the rung rescores, else near them."""
        places = None if videos is None else self._places(videos)
        try:
            found, scores = nearest(self.codes, vector, limit, self._whole, places)
        except _RowsAreGone:
            return self.engine.search(vector, limit, videos)
        return list(zip(self.ids[found].astype(str).tolist(), scores.tolist(), strict=True))

    def first_rows(self, default: int) -> int:
        """Return how many rows a search asks for first: those that the rung rescores."""
        return self.codes.rung.best or default

    def _places(self, videos: Sequence[str]) -> np.ndarray:
        """Return the places of the rows of some videos: they are beside each other."""
        names = np.array(sorted(set(videos)), f"S{ID_LENGTH}")
        first = np.searchsorted(self.ids, np.char.add(names, b"-"))
        after = np.searchsorted(self.ids, np.char.add(names, b"."))  # the next byte
        ranges = [np.arange(start, stop) for start, stop in zip(first, after, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *ranges])

    def _whole(self, places: np.ndarray) -> np.ndarray:
        wanted = self.ids[places].astype(str).tolist()
        videos = sorted({row.partition("-")[0] for row in wanted})
        found = {
            row: vector
            for rows in (self.engine.read(videos) if videos else ())
            for row, vector in zip(rows.ids, rows.vectors, strict=True)
        }
        if any(row not in found for row in wanted):
            raise _RowsAreGone
        return np.array([found[row] for row in wanted], np.float32).reshape(len(wanted), -1)


def sorted_rows(generation: Generation, engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all rows that the state knows, bytes, sorted, and their vectors, float32 (rows, dim)."""
    ids = np.array(sorted(_row_names(generation)), f"S{ID_LENGTH}")
    vectors, seen = np.empty((len(ids), generation.settings.dim), np.float32), np.zeros(len(ids), bool)
    for rows in engine.read():
        names = np.array(rows.ids, f"S{ID_LENGTH}")
        at = np.minimum(np.searchsorted(ids, names), max(0, len(ids) - 1))
        known = ids[at] == names if len(ids) else np.zeros(len(names), bool)
        vectors[at[known]] = rows.vectors[known]
        seen[at[known]] = True
    if not seen.all():
        row = ids[~seen][0].decode()
        raise StoreError(f"{generation.folder}: row {row} is not in the engine; bring the index up to date")
    return ids, vectors


def _row_names(generation: Generation) -> list[str]:
    with generation.state.reading() as database:
        return [f"{video}-{number}" for video, number in database.execute("SELECT video, number FROM parts")]


def rows_hash(generation: Generation) -> str:
    """Return a hash of which rows there are: parts of videos with their times, which decide the vectors."""
    digest = hashlib.sha256()
    with generation.state.reading() as database:
        for row in database.execute('SELECT video, number, start, "end" FROM parts ORDER BY video, number'):
            digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


def chosen_rung(generation: Generation) -> str:
    """Return the name of the rung that was chosen for a generation."""
    content = _read(generation)
    return UNCOMPRESSED if content is None else str(content["rung"])


def _read(generation: Generation) -> dict[str, Any] | None:
    file = generation.folder / FILE
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        check_seal(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return content


def use_rung(index: str | os.PathLike[str], name: str) -> None:
    """Let an index be searched in the form of a rung from now on; `UNCOMPRESSED`: by the engine.

    Raises DataError for an unknown rung and if there is no index or nothing in it, BusyError while another run works
    on the index.
    """
    place = Path(index).absolute()
    generation = current_generation(place)
    if generation is None:
        raise DataError(f"{place}: there is no index here")
    rung_named(name, generation.settings.dim)
    with occupied_folder(place, wait=False):
        if name == UNCOMPRESSED:
            (generation.folder / FILE).unlink(missing_ok=True)
            _remove_folders(generation, but=None)
        else:
            if not _row_names(generation):
                raise DataError(f"{place}: has no vectors to compress")
            _build(generation, name)
        make_current(place, generation)


def rebuild(generation: Generation) -> bool:
    """Make the arrays of the chosen rung anew if the rows are others than theirs; return whether that was so."""
    content = _read(generation)
    if content is None or content["rows"] == rows_hash(generation) or not _row_names(generation):
        return False
    _build(generation, str(content["rung"]))
    return True


def _build(generation: Generation, name: str) -> None:
    """Write the arrays of a rung, and then that they count. Nothing else may change the generation meanwhile."""
    rung = rung_named(name, generation.settings.dim)
    engine = generation.engine()
    with contextlib.closing(engine):
        ids, vectors = sorted_rows(generation, engine)
    folder = generation.folder / f"{FOLDER}{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        for key, array in {IDS: ids, **encode(rung, vectors).arrays}.items():
            temporary, _ = write_npy(folder / f"{key}.npy", array)
            temporary.replace(folder / f"{key}.npy")
        content = {"rung": name, "rows": rows_hash(generation), "folder": folder.name}
        write_atomic(generation.folder / FILE, json.dumps(seal(content)).encode())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"{folder}: cannot be written: {error.strerror or error}") from error
    _remove_folders(generation, but=folder.name)


def _remove_folders(generation: Generation, but: str | None) -> None:
    for folder in generation.folder.glob(f"{FOLDER}*"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def stamp_of(generation: Generation) -> tuple[Any, ...] | None:
    """Return what changes when the rung or the state may have changed; None if no rung was chosen."""
    try:
        files = [os.stat(generation.folder / name) for name in (FILE, STATE_FILE)]
    except FileNotFoundError:
        return None
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in files)


def open_compressed(generation: Generation, engine: Engine) -> CompressedEngine | None:
    """Return the engine in the form of the chosen rung; None if the engine itself is to be searched.

    That is so if no rung was chosen, or if the index has changed since. Raises StoreError for damaged files.
    """
    content = _read(generation)
    if content is None or content["rows"] != rows_hash(generation):
        return None
    folder = generation.folder / content["folder"]
    try:
        arrays = {file.stem: map_npy(file) for file in sorted(folder.glob("*.npy"))}
        ids = arrays.pop(IDS)
        codes = Codes.from_arrays(rung_named(content["rung"], generation.settings.dim), arrays)
        if len(ids) != len(codes.matrix):
            raise ValueError(f"{len(ids)} ids, {len(codes.matrix)} rows")
    except (KeyError, TypeError, ValueError) as error:
        if _read(generation) != content:  # another process chose a rung meanwhile
            return open_compressed(generation, engine)
        index, rung = generation.folder.parent, content["rung"]
        hint = f"make it anew: teachclip compress --index {index} --use {rung}"
        raise StoreError(f"{folder}: cannot be read ({error}); {hint}") from error
    return CompressedEngine(engine, ids, codes)
