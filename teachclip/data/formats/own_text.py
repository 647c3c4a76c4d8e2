"""Read text files as people have them: UTF-8, UTF-16 with a byte order mark, any line ends."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NamedTuple

from teachclip.data.formats.tables import Line, read_bytes
from teachclip.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_OTHER_SCRIPT = re.compile(rb"[\x80-\xff]{4}")
"""Western words have no four accented letters in a row; words of other scripts have, in their code pages."""


class OwnText(NamedTuple):
    """The content of a text file, the name of its encoding, and what a person should confirm."""

    text: str
    encoding: str
    doubts: tuple[str, ...] = ()


def read_own_text(path: Path) -> OwnText:
    """Return the content of a text file, which is not blank.

    Without a byte order mark it is UTF-8. Where it is not, and nothing speaks against Windows-1252, it is read as
    that, with a doubt. Raises DataError for other encodings and damage.
    """
    data = read_bytes(path)
    found = _decode(path, data)
    if not found.text.strip():
        raise DataError(f"{path} is empty")
    return found


def _decode(path: Path, data: bytes) -> OwnText:
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            try:
                return OwnText(data.decode(codec), name)
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is damaged: its mark says {name}, byte {error.start:,} is not") from error
    if data.count(0) > len(data) // 4:
        raise DataError(f"{path} has zero bytes, as UTF-16 without a byte order mark; save it as UTF-8")
    try:
        return OwnText(data.decode(), "UTF-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        where = f"{path}: line {line} is not UTF-8 (byte {data[error.start]:#04x})"
    if _UTF8_LETTER.search(data) or _OTHER_SCRIPT.search(data):
        raise DataError(f"{where}; save it as UTF-8")
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}; save it as UTF-8") from error
    doubt = f"{where}, so the file is read as Windows-1252; check its accented letters, or save it as UTF-8"
    return OwnText(text, "Windows-1252", (doubt,))


def own_lines(path: Path) -> tuple[list[Line], OwnText]:
    """Return the lines of a text file that are not blank, stripped, and the whole of it. Raises DataError."""
    found = read_own_text(path)
    lines = split_lines(found.text)
    return [
        Line(f"{path}: line {number}", text.strip()) for number, text in enumerate(lines, 1) if text.strip()
    ], found


def split_lines(text: str) -> list[str]:
    """Return the lines of a text, whose ends are those of Unix, Windows or old Macs."""
    return re.split(r"\r\n|\r|\n", text)
