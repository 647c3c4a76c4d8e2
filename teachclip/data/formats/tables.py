"""Read CSV and JSON files; every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from teachclip.errors import DataError
from teachclip.registry import closest


class Row(NamedTuple):
    """One row of a table: `where` is "file: line 7" for messages."""

    where: str
    values: dict[str, str]


class Line(NamedTuple):
    """One line of a list: `where` is "file: line 7" for messages."""

    where: str
    text: str


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, with or without byte order mark. Raises DataError."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise DataError(f"{path}: line {line} is not UTF-8 (byte {byte:#04x}); save it as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises DataError if it is no regular file or cannot be read."""
    require_regular(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def require_regular(path: Path) -> None:
    """Raise DataError unless there is a file or folder; a pipe or a device may wait for ever when it is read."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{path} is a pipe or a device; give a regular file")


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Read a CSV file with a header. Columns that are not named here are ignored; blank lines are skipped.

    Values are stripped of outer spaces; a required one must not be empty. Raises DataError for a missing or repeated
    column, a row of another length, an empty value and broken quotes.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for fields in lines:
            values = [value.strip() for value in fields]
            if not any(values):
                continue
            if not header:
                header = _checked_header(f"{path}: line {lines.line_num}", values, required, optional)
                continue
            row = Row(f"{path}: line {lines.line_num}", dict(zip(header, values, strict=False)))
            _check_row(row, len(values), header, required)
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num}: {error}") from error
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return [Row(row.where, {key: row.values[key] for key in header if key in (*required, *optional)}) for row in rows]


def _checked_header(where: str, header: list[str], required: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Return the header if it has all required columns, and each named one once."""
    columns = ", ".join(header)
    for name in required:
        if name not in header:
            hint = "; columns must be separated by commas" if len(header) == 1 and len(required) > 1 else ""
            raise DataError(f"{where} has no column {name!r}; found: {columns}{hint or closest(name, header)}")
    for name in (*required, *optional):
        if header.count(name) > 1:
            raise DataError(f"{where} has column {name!r} twice")
    return header


def _check_row(row: Row, length: int, header: Sequence[str], required: Sequence[str]) -> None:
    """Raise DataError for a row that does not fit the header or lacks a value."""
    if length != len(header):
        hint = '; put a value with commas between double quotes (")' if length > len(header) else ""
        raise DataError(f"{row.where} has {length} values, the header has {len(header)}{hint}")
    for name in required:
        if not row.values[name]:
            beside = next((value for value in row.values.values() if value), "")
            raise DataError(f"{row.where}: {name!r} is empty (beside {beside!r})")


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a text file that are not blank, without their ends. Raises DataError."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return [Line(f"{path}: line {number}", text) for number, text in enumerate(lines, 1) if text.strip()]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises DataError for broken JSON or a duplicated key."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: Path | str) -> Any:
    """Return the value of a JSON text: of a file, or of one line that `where` names. Raises DataError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise DataError(f"{where}: key {repeated([key for key, _ in pairs])!r} is duplicated in one object")
        return content

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if isinstance(where, Path) else ""
        raise DataError(f"{where}: {line}column {error.colno}: broken JSON: {error.msg}") from error
    except RecursionError as error:
        raise DataError(f"{where}: broken JSON: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{where}: broken JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises DataError if it is broken or not an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def repeated(names: Iterable[str]) -> str | None:
    """Return the first duplicated name, or None."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def kind_of(value: Any) -> str:
    """Return a description of a value for messages: the kind of a container, else the value, shortened."""
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else "nothing" if value is None else f"{value!r:.60}"


def read_entries(path: Path, content: dict[str, Any], key: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return `content[key]`, a list of objects that have text in `fields`. Raises DataError, naming the entry."""
    if not isinstance(content.get(key), list):
        raise DataError(f"{path}: {key!r} must be a list of objects{'' if key in content else ', but is missing'}")
    return check_entries(f"{path}: {key}", content[key], fields)


def check_entries(where: str, entries: list[Any], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return a list of objects that have text in `fields`. Raises DataError, naming the entry."""
    for number, entry in enumerate(entries):
        for name in fields:
            value = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(value, str):
                raise DataError(f"{where}[{number}] has no text field {name!r}: {json.dumps(entry)[:120]}")
    return entries
