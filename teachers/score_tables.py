"""Tables of scores, `.csv` and `.parquet`, read in chunks of pairs; every mistake is named with its line or row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.errors import DataError
from teachclip.registry import closest

CHUNK = 1 << 18
"""Pairs read at once."""

UNKNOWN, OTHER = -2, -1
"""Positions of an id that is none, and of one that is known but not asked for."""


@dataclass(frozen=True)
class Axis:
    """The ids along one side of a matrix: where they stand, and what they are called in files and messages."""

    column: str
    ids: Sequence[str]
    others: frozenset[str] = frozenset()
    """Ids that are known but not asked for, such as those of other splits: they are skipped."""
    kind: str = "id"
    beside: str = ""
    """Middle part of the name of the text file beside a `.npy` that lists the ids; none if empty."""

    def positions(self) -> dict[str, int]:
        """Return the position of every id, `OTHER` for those that are skipped."""
        return {**dict.fromkeys(self.others, OTHER), **{name: place for place, name in enumerate(self.ids)}}

    def unknown(self, where: str, name: str) -> DataError:
        """Return the error that `name` is none of the ids."""
        near = closest(name, self.ids) if len(self.ids) < 50_000 else ""
        return DataError(f"{where}: {self.column} {name!r} is no {self.kind}{near or f'; such as {self.ids[0]!r}'}")


class Chunk(NamedTuple):
    """Some pairs of a file: positions on both axes, scores, and the place of pair i in words."""

    rows: np.ndarray
    columns: np.ndarray
    scores: np.ndarray
    where: Callable[[int], str]
    names: Callable[[int], tuple[str, str]]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file. Raises DataError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> DataError:
    """Return the error of a file that is not UTF-8, with the first line that is not."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                return DataError(f"{path}: line {number} is not UTF-8 (byte {byte:#04x}); save it as UTF-8")
    return DataError(f"{path} is not UTF-8")


def check_columns(where: str, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raise DataError unless all needed columns are there, once."""
    for name in needed:
        if name not in found:
            hint = "; columns must be separated by commas" if len(found) == 1 else closest(name, found)
            raise DataError(f"{where} has no column {name!r}; found: {', '.join(found)}{hint}")
        if list(found).count(name) > 1:
            raise DataError(f"{where} has column {name!r} twice")


def csv_chunks(path: Path, rows: Axis, columns: Axis) -> Iterator[Chunk]:
    """Read a `.csv` with a header. Raises DataError, naming the line."""
    needed = (rows.column, columns.column, "score")
    places = rows.positions(), columns.positions()
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(lines, [])]
            check_columns(f"{path}: line 1", header, needed)
            take = [header.index(name) for name in needed]
            parts: list[tuple[int, str, str, str]] = []
            for fields in lines:
                if len(fields) != len(header):
                    if not any(fields):
                        continue
                    raise DataError(
                        f"{path}: line {lines.line_num} has {len(fields)} values, the header has {len(header)}"
                    )
                parts.append((lines.line_num, *(fields[place].strip() for place in take)))  # type: ignore[arg-type]
                if len(parts) == CHUNK:
                    yield _csv_chunk(path, parts, places)
                    parts = []
            if parts:
                yield _csv_chunk(path, parts, places)
        except csv.Error as error:
            raise DataError(f"{path}: line {lines.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _csv_chunk(path: Path, parts: list[tuple[int, str, str, str]], places: tuple[Mapping[str, int], ...]) -> Chunk:
    scores = np.empty(len(parts), np.float64)
    for index, (line, *_, text) in enumerate(parts):
        try:
            scores[index] = float(text)
        except ValueError as error:
            raise DataError(f"{path}: line {line}: score is {text!r}; allowed: a number") from error
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    return Chunk(
        np.array([places[0].get(part[1], UNKNOWN) for part in parts], np.int64),
        np.array([places[1].get(part[2], UNKNOWN) for part in parts], np.int64),
        narrow,
        lambda index: f"{path}: line {parts[index][0]}",
        lambda index: (parts[index][1], parts[index][2]),
    )


def parquet_chunks(path: Path, rows: Axis, columns: Axis) -> Iterator[Chunk]:
    """Read a `.parquet`; ids are text or whole numbers. Raises DataError, naming the row, or without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet needs pyarrow (pip install 'teachclip[parquet]'), or write .csv") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        needed = [rows.column, columns.column, "score"]
        check_columns(str(path), file.schema_arrow.names, needed)
        start, places = 0, (rows.positions(), columns.positions())
        for batch in file.iter_batches(CHUNK, columns=needed):
            yield _parquet_chunk(path, batch, start, needed[:2], places)
            start += batch.num_rows
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error


def _parquet_chunk(
    path: Path, batch: Any, start: int, ids: Sequence[str], places: Sequence[Mapping[str, int]]
) -> Chunk:
    import pyarrow

    found, texts = [], []
    for id_column, known in zip(ids, places, strict=True):
        column = batch.column(id_column)
        if pyarrow.types.is_integer(column.type):
            column = column.cast(pyarrow.string())
        if not pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        if not _is_text(pyarrow, column.type.value_type) or column.null_count:
            got = "empty values" if column.null_count else str(column.type.value_type)
            raise DataError(f"{path}: column {id_column!r} holds {got}; allowed: text in every row")
        table = np.array([known.get(name, UNKNOWN) for name in column.dictionary.to_pylist()], np.int64)
        found.append(table[column.indices.to_numpy(zero_copy_only=False)])
        texts.append(column)
    column = batch.column("score")
    if not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
        raise DataError(f"{path}: column 'score' holds {column.type}; allowed: numbers")
    scores = column.cast(pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)  # empty becomes NaN
    return Chunk(
        found[0],
        found[1],
        np.ascontiguousarray(scores),
        lambda index: f"{path}: row {start + index + 1}",
        lambda index: (texts[0][index].as_py(), texts[1][index].as_py()),
    )


def _is_text(pyarrow: Any, kind: Any) -> bool:
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))
