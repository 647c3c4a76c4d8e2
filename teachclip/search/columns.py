"""What a table says about files: columns that filters may name."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from teachclip.data.formats.own_tables import COLUMNS
from teachclip.data.formats.tables import read_text
from teachclip.errors import DataError
from teachclip.search.filters import OWN
from teachclip.search.index import VideoIndex

NAMES = COLUMNS["video"]
"""What the column of the files may be called."""

Value = str | float


class FileNames:
    """The files of an index by the names that a table may give them."""

    def __init__(self, index: VideoIndex):
        self.videos = index.videos()
        self._folders = index.generation.state.folders()
        self._by_name: dict[str, list[str]] = {}
        for path in (path for video in self.videos for path in video.paths):
            for name in {path, os.path.basename(path), os.path.splitext(os.path.basename(path))[0]}:
                self._by_name.setdefault(name, []).append(path)

    def matches(self, name: str) -> list[str]:
        """Return the paths that a name may mean: below a folder of the index, else any file of that name."""
        places = [os.path.normpath(os.path.join(folder, name)) for folder in self._folders]
        return [place for place in places if place in self._by_name] or self._by_name.get(name, [])


def set_columns(index: VideoIndex, table: Path) -> int:
    """Give the files of an index the values of a CSV table, and return how many files have some.

    The table has a header and a column with the names of files: paths, or file names with or without extension, as in
    tables of captions. Values that are numbers compare as numbers. Raises DataError for a table without such a
    column, a name that several files have, and if no file is named.
    """
    rows = read_columns(table)
    names = FileNames(index)
    found: dict[str, dict[str, Value]] = {}
    for where, name, values in rows:
        matches = names.matches(name)
        if len(set(matches)) > 1:
            raise DataError(f"{where}: {name!r} may be {matches[0]} or {matches[1]}; give more of the path")
        if matches:
            found[matches[0]] = values
    if not found:
        raise DataError(
            f"{table}: none of its {len(rows):,} names is a file of {index.path}, the first is {rows[0][1]!r}"
        )
    index.generation.state.set_columns(found)
    return len(found)


def read_columns(table: Path) -> list[tuple[str, str, dict[str, Value]]]:
    """Return of each row where it is, the name of the file, and the other values. Raises DataError."""
    text = read_text(table)
    header = text.lstrip("\ufeff").splitlines()[0]
    separator = max(",;\t|", key=header.count)
    lines = csv.DictReader(text.splitlines(), delimiter=separator)
    lines.fieldnames = [name.strip() for name in lines.fieldnames or []]
    names = [name for name in lines.fieldnames if name]
    key = next((name for name in names if name.casefold() in NAMES), None)
    if key is None:
        raise DataError(f"{table}: has no column of files ({', '.join(NAMES)}); found: {', '.join(names)}")
    for name in names:
        if name != key and (name in OWN or re.search(r'[<>=!~"]', name)):
            raise DataError(f"{table}: column {name!r} cannot be used: rename it; taken: {', '.join(OWN)}")
    rows = []
    for row in lines:
        values = {name: _value(row[name]) for name in names if name != key and (row[name] or "").strip()}
        if (row[key] or "").strip():
            rows.append((f"{table}: line {lines.line_num}", row[key].strip(), values))
    if not rows:
        raise DataError(f"{table}: has a header but no rows")
    return rows


def _value(text: str) -> Value:
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return number if abs(number) < float("inf") else text.strip()
