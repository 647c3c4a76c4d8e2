"""Files of scores, read in pieces: `.csv`, `.parquet` and `.npy`. Nothing here grows by a Python object per pair.

A `.csv` (UTF-8, commas, a header) or `.parquet` has a line per pair: the two ids and `score`, in any order; other
columns are ignored. A `.npy` is the whole matrix, of float16, float32 or float64. Its rows are in the order of the
ids in `NAME.captions.txt` beside it (UTF-8, one id a line), its columns in that of `NAME.videos.txt`; where there is
no such file, in the order of the split, all of it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from teachclip.errors import DataError
from teachers.score_tables import UNKNOWN, Axis, Chunk, csv_chunks, parquet_chunks, read_lines

ENDINGS = (".csv", ".npy", ".parquet")
IN_MEMORY = 1 << 26
"""Bytes of a matrix that is put together in memory; a larger one is mapped from a file without a name."""

_NAN = np.float32(np.nan).view(np.uint32)


class Matrix(Protocol):
    """Scores of all pairs of two axes."""

    def rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return some rows, (rows, columns) float32, NaN for a pair that the file does not list."""


def read_scores(path: Path, rows: Axis, columns: Axis, *, scratch: Path | None = None) -> Matrix:
    """Read a file of scores. `scratch`: folder for what does not fit into memory.

    Raises DataError, naming file and line, for another ending, an empty or damaged file, wrong columns, another
    encoding than UTF-8, unknown ids, pairs that stand twice, and scores that are not finite numbers.
    """
    if path.suffix not in ENDINGS:
        raise DataError(f"{path} is none of {', '.join(ENDINGS)}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        if path.suffix == ".npy":
            return _Whole(path, rows, columns)
        chunks = csv_chunks if path.suffix == ".csv" else parquet_chunks
        scattered = _Scattered(path, (len(rows.ids), len(columns.ids)), scratch)
        for chunk in chunks(path, rows, columns):
            scattered.add(chunk, rows, columns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not scattered.pairs:
        raise DataError(f"{path} has a header but no rows")
    return scattered


def ids_beside(path: Path, axis: Axis) -> Path | None:
    """Return the text file beside a `.npy` that lists the ids of an axis, if it exists."""
    file = path.with_suffix(f".{axis.beside}.txt")
    return file if axis.beside and path.suffix == ".npy" and file.exists() else None


class _Scattered:
    """A matrix put together from pairs in any order."""

    def __init__(self, path: Path, shape: tuple[int, int], scratch: Path | None):
        self.path, self.pairs = path, 0
        size = 4 * shape[0] * shape[1]
        if size <= IN_MEMORY:
            self.bits = np.zeros(shape, np.uint32)
            return
        try:
            with tempfile.TemporaryFile(dir=scratch) as file:  # only the map leads to it from here on
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not in the map
                else:
                    file.truncate(size)
                self.bits = np.memmap(file, np.uint32, "r+", shape=shape)
        except OSError as error:
            need = f"{size / 1e9:.1f} GB in {scratch or tempfile.gettempdir()}"
            raise DataError(f"{path}: putting its scores together needs {need}: {error.strerror or error}") from error

    def add(self, chunk: Chunk, rows: Axis, columns: Axis) -> None:
        """Put some pairs in. Bits are kept changed so that the zeros of a fresh file mean NaN, not listed."""
        self.pairs += len(chunk.scores)
        for axis, places, side in ((rows, chunk.rows, 0), (columns, chunk.columns, 1)):
            if (wrong := places == UNKNOWN).any():
                first = int(np.argmax(wrong))
                raise axis.unknown(chunk.where(first), chunk.names(first)[side])
        if (wrong := ~np.isfinite(chunk.scores)).any():
            first = int(np.argmax(wrong))
            raise DataError(
                f"{chunk.where(first)}: score is {chunk.scores[first]}; allowed: finite numbers (float32)"
            )
        kept = np.flatnonzero((chunk.rows >= 0) & (chunk.columns >= 0))
        flat = chunk.rows[kept] * self.bits.shape[1] + chunk.columns[kept]
        order = np.argsort(flat, kind="stable")
        twice = self.bits.reshape(-1)[flat] != 0
        twice[order[1:]] |= flat[order[1:]] == flat[order[:-1]]
        if twice.any():
            first = int(kept[np.argmax(twice)])
            raise DataError(f"{chunk.where(first)}: the pair {', '.join(chunk.names(first))} is duplicated")
        self.bits.reshape(-1)[flat] = chunk.scores[kept].view(np.uint32) ^ _NAN

    def rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Matrix`."""
        return (self.bits[rows] ^ _NAN).view(np.float32)


class _Whole:
    """A matrix in a `.npy` file, mapped; ids that are not wanted are skipped."""

    def __init__(self, path: Path, rows: Axis, columns: Axis):
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if self.array.ndim != 2 or self.array.dtype.kind != "f":
            got = f"{self.array.dtype} {self.array.shape}"
            raise DataError(f"{path} must be a matrix of floating-point scores, got {got}")
        self.path, self.axes = path, (rows, columns)
        self.places = [self._places(axis, size) for axis, size in zip(self.axes, self.array.shape, strict=True)]

    def _places(self, axis: Axis, size: int) -> np.ndarray:
        """Return where each id of an axis stands in the file, -1 if it does not."""
        file = ids_beside(self.path, axis)
        if file is None:
            if size != len(axis.ids):
                hint = f"; list them in {self.path.with_suffix(f'.{axis.beside}.txt')}" if axis.beside else ""
                raise DataError(f"{self.path} has {size} of {axis.column}, expected {len(axis.ids)}{hint}")
            return np.arange(size)
        names = read_lines(file)
        if len(names) != size:
            raise DataError(f"{file} has {len(names)} lines, but {self.path} has {size} of them")
        known, found = axis.positions(), np.full(len(axis.ids), -1)
        for line, name in enumerate(names):
            place = known.get(name, UNKNOWN)
            if place == UNKNOWN:
                raise axis.unknown(f"{file}: line {line + 1}", name)
            if place >= 0:
                if found[place] >= 0:
                    raise DataError(f"{file}: line {line + 1}: {name!r} is duplicated")
                found[place] = line
        return found

    def rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `Matrix`."""
        places, columns = self.places[0][rows], self.places[1]
        with np.errstate(over="ignore"):
            block = self.array[np.maximum(places, 0)].astype(np.float32)[:, np.maximum(columns, 0)]
        if (wrong := ~np.isfinite(block) & (places >= 0)[:, None] & (columns >= 0)).any():
            row, column = np.argwhere(wrong)[0]
            row = int(np.arange(len(self.places[0]))[rows][row])
            pair = f"{self.axes[0].ids[row]}, {self.axes[1].ids[column]}"
            raise DataError(
                f"{self.path}: the score of {pair} is {block[wrong][0]}; allowed: finite numbers (float32)"
            )
        block[places < 0] = np.nan
        block[:, columns < 0] = np.nan
        return block
