"""Conditions on files, such as `length>=60` or `folder=holiday`, as SQL on the state of an index."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from teachclip.errors import DataError
from teachclip.registry import closest

OWN = {"path": "path", "date": "date", "length": "length", "bytes": "bytes", "folder": "path"}
"""Columns that every index has, and what they are in the state."""

_CONDITION = re.compile(r"\s*([^<>=!~]+?)\s*(>=|<=|!=|=|>|<|~)\s*(.*?)\s*", re.DOTALL)


def where(filters: Sequence[str], columns: Sequence[str], folders: Sequence[str]) -> tuple[str, list[Any]]:
    """Return SQL on `files JOIN videos`, and its values, for files that fulfil all `filters`.

    A filter is a column, one of =, !=, <, <=, >, >=, ~ (contains, in any case), and a value. Columns: `path`;
    `folder`, which is true of all files below it, absolute or below one of `folders`; `date` of the last change, UTC,
    of which = compares the beginning (`date=2026-01`); `length` in seconds; `bytes`; and `columns`, those of a table.
    Raises DataError for others.
    """
    conditions, values = ["files.video IS NOT NULL"], []
    for text in filters:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise DataError(f"filter {text!r} is not understood; expected for example length>=60 or folder=holiday")
        column, operator, value = match.groups()
        if column not in OWN and column not in columns:
            names = [*OWN, *columns]
            raise DataError(
                f"filter {text!r}: unknown column {column!r}{closest(column, names)}; there are: {', '.join(names)}"
            )
        condition, own = _condition(column, operator, value, folders)
        conditions.append(condition)
        values += own
    return " AND ".join(conditions), values


def _condition(column: str, operator: str, value: str, folders: Sequence[str]) -> tuple[str, list[Any]]:
    if column == "folder":
        return _below(value, operator, folders)
    values: list[Any] = []
    name = OWN.get(column)
    if name is None:
        name = "json_extract(files.columns, ?)"
        values = [f'$."{column}"']
    if operator == "~":
        return f"instr(lower({name}), lower(?)) > 0", [*values, value]
    if column == "date" and operator in ("=", "!="):
        return f"substr(date, 1, ?) {operator} ?", [len(value), value]
    try:
        number = float(value)
    except ValueError:
        if column in ("length", "bytes"):
            unit = "seconds" if column == "length" else "bytes"
            raise DataError(f"filter {column}{operator}{value}: expected a number of {unit}") from None
        return f"{name} {operator} ?", [*values, value]
    if column in ("length", "bytes"):
        return f"{name} {operator} ?", [number]
    # SQLite orders all numbers before all texts, so a number is compared with the numbers of a column alone
    both = f"CASE WHEN typeof({name}) IN ('integer', 'real') THEN {name} {operator} ? ELSE {name} {operator} ? END"
    return both, [*values, *values, number, *values, value] if values else [number, value]


def _below(folder: str, operator: str, folders: Sequence[str]) -> tuple[str, list[Any]]:
    if operator not in ("=", "!="):
        raise DataError(f"filter folder{operator}{folder}: a folder takes = or !=")
    places = {os.path.abspath(folder), *(os.path.join(root, folder) for root in folders)}
    starts = [f"{os.path.normpath(place).rstrip(os.sep)}{os.sep}" for place in sorted(places)]
    inside = " OR ".join("substr(path, 1, ?) = ?" for _ in starts)
    values = [value for start in starts for value in (len(start), start)]
    return f"{'NOT ' if operator == '!=' else ''}({inside})", values
