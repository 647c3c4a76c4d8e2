"""Custom data: one table of `video,caption` and optionally `start`, `end` and `split`.

- `csv`: a CSV file with a header; `jsonl`: one JSON object per line; `parquet`: a Parquet file (needs pyarrow).
- `video` is the name of a file, with or without its extension, or its path below the video folder. A video may have
  any number of rows.
- `start`, `end`: the segment of the file that the caption describes, in seconds, 0 <= start < end; where one is empty
  the segment begins or ends with the file. Each segment is a video of its own, called `name[start-end]`.
- `split` is train, validation or test; without it every row is for training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from teachclip.data.annotations.records import Annotations, Caption, Segment
from teachclip.data.formats.tables import kind_of, parse_json, read_lines, read_table
from teachclip.errors import DataError
from teachclip.registry import closest

SPLITS = ("train", "validation", "test")
REQUIRED, OPTIONAL = ("video", "caption"), ("start", "end", "split")


class Record(NamedTuple):
    """One row of the file; `where` is "file: line 7" for messages."""

    where: str
    values: dict[str, Any]


def read_csv(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read a CSV file. Caption ids are `video:index`. Raises DataError, naming file, line and column."""
    _refuse_lists(annotations, (train, validation, test))
    rows = read_table(annotations, REQUIRED, OPTIONAL)
    return _collect(annotations, (Record(row.where, dict(row.values)) for row in rows), text=True)


def read_jsonl(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read one JSON object per line. Caption ids are `video:index`. Raises DataError, naming file, line and field."""
    _refuse_lists(annotations, (train, validation, test))
    records = []
    for where, text in read_lines(annotations):
        value = parse_json(text, where)
        if not isinstance(value, dict):
            raise DataError(f"{where} must hold a JSON object, found {kind_of(value)}")
        records.append(Record(where, value))
    return _collect(annotations, records)


def read_parquet(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read a Parquet file. Caption ids are `video:index`. Raises DataError, naming file, row and column."""
    _refuse_lists(annotations, (train, validation, test))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{annotations}: Parquet needs pyarrow: pip install 'teachclip[parquet]'") from error
    try:
        with parquet.ParquetFile(annotations) as file:
            columns = file.schema_arrow.names
            for name in (*REQUIRED, *OPTIONAL):
                if columns.count(name) > 1:
                    raise DataError(f"{annotations} has column {name!r} twice")
                if name in REQUIRED and name not in columns:
                    raise DataError(
                        f"{annotations} has no column {name!r}; found: {', '.join(columns)}{closest(name, columns)}"
                    )
            rows = file.read([name for name in (*REQUIRED, *OPTIONAL) if name in columns]).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(f"{annotations} cannot be read as Parquet: {what}") from error
    if not rows:
        raise DataError(f"{annotations} has no rows")
    return _collect(annotations, (Record(f"{annotations}: row {number}", row) for number, row in enumerate(rows, 1)))


def _refuse_lists(annotations: Path, lists: Iterable[Path | None]) -> None:
    if any(path is not None for path in lists):
        raise DataError(f"{annotations}: this format does not take lists of videos; add a column 'split'")


def _collect(path: Path, records: Iterable[Record], *, text: bool = False) -> Annotations:
    """Check the rows and assign them to splits. `text`: numbers are text, and empty means absent."""
    captions: dict[str, list[Caption]] = {split: [] for split in SPLITS}
    numbers: Counter[str] = Counter()
    split_of: dict[str, str] = {}
    segments: dict[str, Segment] = {}
    for record in records:
        where, values = record
        name, caption = (_text(record, key) for key in REQUIRED)
        start, end = (_seconds(record, key, text) for key in ("start", "end"))
        start = start or None  # 0 is the beginning
        if start is not None and end is not None and start >= end:
            raise DataError(f"{where}: 'start' is {start:g}, which is not before 'end', {end:g}")
        segment = Segment(name, start, end)
        video = name if start is end is None else f"{name}[{_number(start or 0.0)}-{_number(end)}]"
        split = values.get("split", "train") if text or values.get("split") is not None else "train"
        if split not in SPLITS:
            raise DataError(f"{where}: 'split' is {kind_of(split)}; allowed: {', '.join(SPLITS)}")
        if split_of.setdefault(video, split) != split:
            raise DataError(f"{where}: video {video!r} is in split {split}, but in {split_of[video]} above")
        if segments.setdefault(video, segment) != segment:
            raise DataError(f"{where}: video {video!r} is also a segment of another file above; rename one file")
        captions[split].append(Caption(f"{video}:{numbers[video]}", video, caption))
        numbers[video] += 1
    if not captions["train"]:
        raise DataError(f"{path}: no row is in split train")
    segments = {video: segment for video, segment in segments.items() if video != segment.file}
    return Annotations(captions["train"], captions["validation"] or None, captions["test"] or None, segments)


def _text(record: Record, key: str) -> str:
    """Return a text. Raises DataError if it is absent or empty."""
    value = record.values.get(key)
    if not isinstance(value, str):
        problem = f"must be text, found {kind_of(value)}" if key in record.values else "is missing"
        raise DataError(f"{record.where}: {key!r} {problem}")
    if not value.strip():
        raise DataError(f"{record.where}: {key!r} is empty")
    return value.strip()


def _seconds(record: Record, key: str, text: bool) -> float | None:
    """Return a number of seconds, or None if absent. Raises DataError for anything else."""
    value = record.values.get(key)
    if value is None or (text and value == ""):
        return None
    try:
        number = float(value) if isinstance(value, (int, float) if not text else str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not 0 <= number < math.inf:
        raise DataError(f"{record.where}: {key!r} must be a number of seconds, 0 or more, found {kind_of(value)}")
    if key == "end" and number == 0:
        raise DataError(f"{record.where}: 'end' must be above 0")
    return number


def _number(value: float | None) -> str:
    """Return seconds as the shortest exact text; "" for None, the end of the file."""
    return "" if value is None else repr(value).removesuffix(".0")
