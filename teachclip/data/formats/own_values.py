"""What the cells of one's own tables mean: names of videos, times, splits."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Iterable
from typing import Any

from teachclip.data.formats.tables import kind_of
from teachclip.errors import DataError

SHOWN_ROWS = 3
"""Rows that show how a file was understood."""

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Word for a split, in any case -> the split."""

_CLOCK = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2}(?:[.,][0-9]{1,9})?)")
_NUMBER = re.compile(r"[0-9]{1,12}(?:[.,][0-9]{0,18})?(?:[eE][+-]?[0-9]{1,3})?|[.,][0-9]{1,18}")
_THOUSANDS_OR_DECIMALS = re.compile(r"[1-9][0-9]{0,2},[0-9]{3}")
_DECIMALS = re.compile(r"[0-9]*,(?:[0-9]{1,2}|[0-9]{4,})|(?:0|[0-9]{4,}),[0-9]*")


def has_decimal_commas(values: Iterable[Any]) -> bool:
    """Return whether a value shows that the commas of a file are decimal: 20,5 and 0,333 do, 1,500 does not."""
    return any(isinstance(value, str) and _DECIMALS.fullmatch(value.strip()) for value in values)


def seconds(value: Any, where: str, name: str, *, decimal_commas: bool) -> float | None:
    """Return the seconds of a time, or None if the cell is empty.

    Times are numbers, `20.5`, `20,5`, `0:45`, `1:02:03.5`, or durations. `decimal_commas`: whether other times of the
    file show that a comma is a decimal one; without that, `1,500` is refused. Raises DataError.
    """
    number = math.nan
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        text = value.strip()
        if _THOUSANDS_OR_DECIMALS.fullmatch(text) and not decimal_commas:
            plain = text.replace(",", "")
            raise DataError(
                f"{where}: {name!r} is {text!r}, which may be {text.replace(',', '.')} or {plain}; write {plain} or "
                f"{text.replace(',', '.')}"
            )
        number = _parse(text)
    elif isinstance(value, datetime.timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.nan
    if not 0 <= number < math.inf:
        raise DataError(
            f"{where}: {name!r} must be a number of seconds, 0 or more, found {kind_of(value)}; "
            "times such as 0:45 and 1:02:03.5 are read too"
        )
    if name == "end" and number == 0:
        raise DataError(f"{where}: 'end' must be above 0")
    return number


def _parse(text: str) -> float:
    """Return the seconds of a written time, NaN if it is none."""
    if _NUMBER.fullmatch(text):
        return float(text.replace(",", "."))
    if not (clock := _CLOCK.fullmatch(text)):
        return math.nan
    hours, minutes, rest = clock.groups()
    last = float(rest.replace(",", "."))
    if last >= 60 or (hours is not None and int(minutes) >= 60):
        return math.nan
    # in whole numbers first, so that 1:02.3 is the same as 62.3
    whole = 3600 * int(hours or 0) + 60 * int(minutes) + int(last)
    fraction = re.split("[.,]", rest)[1:]
    return float(f"{whole}.{fraction[0]}") if fraction else float(whole)


def split_of(value: Any, where: str) -> str:
    """Return the split that a cell names; an empty one means train. Raises DataError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "train"
    split = SPLIT_WORDS.get(value.strip().casefold()) if isinstance(value, str) else None
    if split is None:
        raise DataError(f"{where}: 'split' is {kind_of(value)}; allowed: {', '.join(SPLITS)}")
    return split


def video_name(text: str) -> str:
    """Return the name or path of a video with / between folders, as Windows writes \\, and without a leading ./."""
    name = text.strip().replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def shown_number(value: float | None) -> str:
    """Return seconds as the shortest exact text; "" for None, the beginning or end of the file."""
    return "" if value is None else repr(value).removesuffix(".0")
