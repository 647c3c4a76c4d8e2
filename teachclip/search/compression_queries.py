"""Read a user's queries for `teachclip compress`: texts, and perhaps which video each should find."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from teachclip.data.formats.own_tables import COLUMNS, SEPARATORS, role_of
from teachclip.data.formats.own_text import own_lines, read_own_text
from teachclip.errors import DataError
from teachclip.search.columns import FileNames
from teachclip.search.index import VideoIndex
from teachclip.store.files import read_json

TABLES = (".csv", ".tsv")


class Queries(NamedTuple):
    """texts: of the queries. videos: the id of the video that each should find; None if the file does not say."""

    texts: list[str]
    videos: list[str] | None


def read_queries(path: Path, index: VideoIndex, most: int) -> Queries:
    """Return at most `most` queries of a file, spread evenly over it.

    A `.csv` or `.tsv` has a header with a column of texts and perhaps one of videos, called as in tables of captions;
    any other file has one query per line. Raises DataError for a file without queries, and for a video that the index
    does not have.
    """
    rows = _table(path) if path.suffix.lower() in TABLES else [(*line, "") for line in own_lines(path)[0]]
    if not rows:
        raise DataError(f"{path}: has no queries")
    if len(rows) > most:
        rows = [rows[place * len(rows) // most] for place in range(most)]
    texts = [text for _, text, _ in rows]
    if not any(video for _, _, video in rows):
        return Queries(texts, None)
    names = FileNames(index)
    ids: dict[str, str] = {path: video.id for video in names.videos for path in video.paths}
    found, missing = [], []
    for where, _, name in rows:
        matches = sorted({ids[file] for file in names.matches(name)})
        if len(matches) > 1:
            raise DataError(f"{where}: {name!r} names {len(matches)} videos of the index; give more of the path")
        found += matches
        missing += [] if matches else [f"{where}: {name!r}"]
    if missing:
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is no video of {index.path}{more} of {len(rows):,} queries")
    return Queries(texts, found)


def trained_prefixes(model: str) -> list[int]:
    """Return the prefixes that a student was trained for, `student.matryoshka` of its recipe.

    `model`: its folder. Empty for a hub id and if it is not there: queries may not need it.
    """
    try:
        content = read_json(Path(model) / "config.json")
        return [int(width) for width in content.get("matryoshka") or []]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _table(path: Path) -> list[tuple[str, str, str]]:
    """Return of each row where it is, the query and the name of the video, "" without such a column."""
    text = read_own_text(path).text
    header = next(line for line in text.splitlines() if line.strip())
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=header.count))
    columns = [name for name in lines.fieldnames or [] if name]
    chosen = {role_of(name): name for name in reversed(columns)}
    if "caption" not in chosen:
        known = ", ".join(COLUMNS["caption"])
        raise DataError(f"{path}: has no column of queries ({known}); found: {', '.join(columns):.200}")
    rows = []
    for row in lines:
        values = [str(row.get(chosen.get(role, "")) or "").strip() for role in ("caption", "video")]
        if values[0]:
            rows.append((f"{path}: line {lines.line_num}", values[0], values[1]))
    return rows
