"""Find out how a table of one's own is written: which column is what, the separator, the sheet of a workbook."""

from __future__ import annotations

import csv
import datetime
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from teachclip.data.formats.own_text import read_own_text
from teachclip.data.formats.problems import Problems
from teachclip.data.formats.tables import require_regular
from teachclip.errors import DataError
from teachclip.registry import closest

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "video": (
        *("video", "videos", "video id", "video name", "video file", "video path"),
        *("file", "file name", "file path", "path", "clip", "clip id", "clip name"),
    ),
    "caption": ("caption", "captions", "text", "sentence", "sentences", "description", "query"),
    "start": ("start", "start time", "start s", "start sec", "start seconds", "begin"),
    "end": ("end", "end time", "end s", "end sec", "end seconds", "stop"),
    "split": ("split", "subset", "partition"),
}
"""The columns of a table and the names that a header may give them, in any case; blanks, _, - and () do not count.
The first name of a column is preferred where a table has several of them."""

REQUIRED = ("video", "caption")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
MAX_UNPACKED = 2**30
"""Bytes that a workbook may unpack to."""


class Record(NamedTuple):
    """One row of a table by the names of `COLUMNS`; `where` is "file: line 7" for messages."""

    where: str
    values: dict[str, Any]


@dataclass
class OwnTable:
    """The rows of a table and how it was understood.

    `headings`: what the table calls each column. `facts`: encoding, separator and the like. `doubts`: what a person
    should confirm.
    """

    rows: list[Record]
    headings: dict[str, str]
    facts: list[str]
    doubts: list[str]


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-()\[\].]+", "", name).casefold()


_ROLES = {_plain(name): role for role, names in COLUMNS.items() for name in names}


def role_of(heading: str) -> str | None:
    """Return which of `COLUMNS` the heading of a column names, None for none."""
    return _ROLES.get(_plain(heading))


def assign_columns(where: str, names: Sequence[str]) -> dict[str, str]:
    """Return the column of a table for each name of `COLUMNS` that it has.

    Raises DataError if a required one is missing, if one is there twice or if several may be meant.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if role := _ROLES.get(_plain(name)):
            found.setdefault(role, []).append(name)
    problems = Problems()
    chosen: dict[str, str] = {}
    for role, columns in found.items():
        exact = [name for name in columns if _plain(name) == role]
        if len(exact) > 1 or len(set(columns)) < len(columns) == 2:
            problems.add(f"{where} has column {(exact or columns)[0]!r} twice")
        elif len(columns) > 1 and not exact:
            both = " and ".join(map(repr, columns))
            problems.add(f"{where}: columns {both} may both be the {role}; call the right one {role!r}")
        else:
            chosen[role] = (exact or columns)[0]
    missing = [role for role in REQUIRED if role not in found]
    if missing == [*REQUIRED]:
        problems.add(
            f"{where} has no columns 'video' and 'caption'; found: {_some(names)}; a first line must name them"
        )
    elif missing:
        (role,) = missing
        hint = closest(role, names) or f"; known names: {', '.join(COLUMNS[role])}"
        problems.add(f"{where} has no column {role!r}; found: {_some(names)}{hint}")
    problems.raise_all()
    return chosen


def _some(names: Sequence[str]) -> str:
    """Return the names of a header, shortened: it may be no header."""
    return f"{', '.join(names):.200}"


def describe_columns(where: str, names: Sequence[str], chosen: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return which columns are ignored, as facts, and which of these look like times, as doubts."""
    ignored = [name for name in names if name and name not in chosen.values()]
    facts = [f"ignored columns: {_some(ignored)}"] if ignored else []
    doubts = [
        f"{where}: column {name!r} is ignored; times are read from columns 'start' and 'end', in seconds"
        for name in ignored
        if _plain(name).startswith(("start", "end", "begin", "stop", "time", "duration"))
    ]
    return facts, doubts


# Text with separators


def read_separated(path: Path, problems: Problems) -> OwnTable:
    """Read a table of text with a header: separated by comma, semicolon, tab or pipe, as the header shows.

    A first line `sep=;` decides. Wrong rows are added to `problems`. Raises DataError if there is no usable header.
    """
    source = read_own_text(path)
    text, told = _take_separator(path, source.text)
    separator = told or _separator(path, text)
    lines = _lines(path, text, separator, Problems())
    where, header = next((line for line in lines if any(line[1])), (f"{path}: line 1", []))
    chosen = assign_columns(where, header)
    places = {role: header.index(name) for role, name in chosen.items()}
    rows: list[Record] = []
    long_rows: list[str] = []
    lines = _lines(path, text, separator, problems)
    for _, values in lines:
        if any(values):
            break  # the header, whose own problems are raised above
    for where, values in lines:
        if not any(values):
            continue
        extra = next((at for at in range(len(values), len(header), -1) if values[at - 1]), len(header))
        if extra > len(header) or len(values) < len(header):
            count = min(extra, len(values))
            hint = (
                f'; put a value with a {SEPARATORS[separator]} between double quotes (")'
                if extra > len(header)
                else ""
            )
            problems.add(f"{where} has {count} values, the header has {len(header)}{hint}")
            continue
        joined = "".join(values)
        if "\n" in joined or "\r" in joined:
            long_rows.append(where)
        rows.append(Record(where, {role: values[place] for role, place in places.items()}))
    facts, doubts = describe_columns(where, header, chosen)
    if long_rows:  # a double quote too many would take the rows up to the next one for one value
        which = "1 row goes" if len(long_rows) == 1 else f"{len(long_rows):,} rows go"
        doubts.append(
            f"{long_rows[0]}: {which} over several lines; check that their double quotes close where they should"
        )
    facts = [source.encoding, f"separated by {SEPARATORS[separator]}", *facts]
    return OwnTable(rows, chosen, facts, [*source.doubts, *doubts])


def _take_separator(path: Path, text: str) -> tuple[str, str]:
    """Return the text, in which a first line `sep=;` is blank, and its separator, "" if there is no such line."""
    if not (match := re.match(r'"?sep=(.)"?[ ,;|]*(?=[\r\n]|$)', text, re.IGNORECASE)):
        return text, ""
    if match[1] not in SEPARATORS:
        raise DataError(f"{path}: line 1: sep={match[1]}; allowed: {', '.join(SEPARATORS.values())}")
    return text[match.end() :], match[1]


def _separator(path: Path, text: str) -> str:
    """Return the one separator by which the header has the required columns; else the one that splits it most."""
    fitting, best = [], (0, 0, ",")
    for separator in SEPARATORS:
        lines = _lines(path, text[: 2**16], separator, Problems())
        _, header = next((line for line in lines if any(line[1])), ("", []))
        roles = {_ROLES.get(_plain(name)) for name in header}
        if roles.issuperset(REQUIRED):
            fitting.append(separator)
        best = max(best, (len(roles - {None}), len(header), separator), key=lambda item: item[:2])
    if len(fitting) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in fitting)
        raise DataError(f"{path}: its header may be separated by {names}; say which in a first line such as sep=;")
    return fitting[0] if fitting else best[2]


def _lines(path: Path, text: str, separator: str, problems: Problems) -> Iterator[tuple[str, list[str]]]:
    """Yield place and stripped values of each line; what csv refuses is added to `problems`."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        where = f"{path}: line {lines.line_num + 1}"
        try:
            yield where, [value.strip() for value in next(lines)]
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                problems.add(f'{where}: a double quote (") opens in this row and is never closed')
            else:
                problems.add(f"{where}: {error}")


# Workbooks


def read_workbook(path: Path) -> OwnTable:
    """Read the sheet of an .xlsx workbook that has the columns. Cells give what the workbook shows.

    Raises DataError for a damaged file, and if no sheet or several sheets have the columns.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(f"{path}: workbooks need openpyxl: pip install 'teachclip[xlsx]'") from error
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_UNPACKED:
            raise DataError(f"{path} unpacks to {size:,} bytes; allowed: {MAX_UNPACKED:,}; save it as CSV")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = {name: [*_cells(book[name])] for name in book.sheetnames if hasattr(book[name], "iter_rows")}
        finally:
            book.close()
    except DataError:
        raise
    except Exception as error:  # openpyxl raises whatever its parsers meet in a damaged file
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an .xlsx workbook: {what:.200}") from error
    return _choose_sheet(path, sheets)


def _choose_sheet(path: Path, sheets: Mapping[str, list[tuple[int, list[Any]]]]) -> OwnTable:
    filled = {name: rows for name, rows in sheets.items() if rows}
    usable, problems = [], Problems()
    for name, rows in filled.items():
        number, header = rows[0]
        with problems.collected():
            titles = ["" if value is None else str(value).strip() for value in header]
            usable.append((name, titles, assign_columns(f"{path}: sheet {name!r}, row {number}", titles)))
    if not filled:
        raise DataError(f"{path} is empty")
    if len(usable) > 1:
        names = " and ".join(repr(name) for name, *_ in usable)
        raise DataError(f"{path}: sheets {names} have the columns; keep one, or save it as CSV")
    if not usable:
        problems.raise_all()
    sheet, titles, chosen = usable[0]
    where, places = f"{path}: sheet {sheet!r}", {role: titles.index(title) for role, title in chosen.items()}
    records = [
        Record(f"{where}, row {number}", {role: cells[place] for role, place in places.items() if place < len(cells)})
        for number, cells in filled[sheet][1:]
    ]
    facts, doubts = describe_columns(where, titles, chosen)
    others = [other for other in sheets if other != sheet]
    facts = [f"sheet {sheet!r}", *([f"ignored sheets: {_some(others)}"] if others else []), *facts]
    if any(cell.doubtful for _, cells in filled[sheet] for cell in cells if isinstance(cell, _ShownTime)):
        doubts.append(
            f"{where}: times shown as 0:45 are read as minutes and seconds, though Excel takes it for hours"
        )
    return OwnTable(records, chosen, facts, doubts)


class _ShownTime(str):
    """A time of day as the sheet shows it. `doubtful`: whether Excel counts hours and minutes."""

    doubtful = False


def _cells(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield number and values of each row of a sheet that is not blank."""
    sheet.reset_dimensions()  # a workbook may claim a million rows
    for number, row in enumerate(sheet.iter_rows(), 1):
        values = [_cell(cell) for cell in row]
        if any(value is not None and value != "" for value in values):
            yield number, values


def _cell(cell: Any) -> Any:
    """Return text, a number, or a time as the sheet shows it."""
    value = cell.value
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, datetime.time):
        value = datetime.timedelta(
            hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
        )
    if isinstance(value, datetime.timedelta):
        total = round(value.total_seconds(), 3)
        if "s" in (cell.number_format or "s").lower():
            return total
        shown = _ShownTime(f"{int(total // 3600)}:{int(total // 60 % 60):02}")
        shown.doubtful = True
        return shown
    return value.strip() if isinstance(value, str) else value
