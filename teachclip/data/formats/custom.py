"""One's own data: one table of `video,caption` and optionally `start`, `end` and `split`.

- `csv`: a table of text with a header, .csv or .tsv; `xlsx`: a workbook of Excel (needs openpyxl); `jsonl`: one JSON
  object per line; `parquet`: a Parquet file (needs pyarrow). `own_tables.COLUMNS` lists the names that columns may
  have.
- `video` is the name of a file, with or without its extension, or its path below the video folder. A video may have
  any number of rows.
- `start`, `end`: the segment of the file that the caption describes, as seconds or as a time such as 1:02:03.5,
  0 <= start < end; where one is empty the segment begins or ends with the file. Each segment is a video of its own,
  called `name[start-end]`.
- `split` is train, validation or test; without it, and where it is empty, a row is for training.

All problems of a file are in one DataError, and what was understood of it is in `Annotations.understood`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from teachclip.data.annotations.records import Annotations, Caption, Segment, Understood
from teachclip.data.formats.own_tables import (
    COLUMNS,
    REQUIRED,
    OwnTable,
    Record,
    assign_columns,
    describe_columns,
    read_separated,
    read_workbook,
)
from teachclip.data.formats.own_text import own_lines
from teachclip.data.formats.own_values import (
    SHOWN_ROWS,
    SPLITS,
    has_decimal_commas,
    seconds,
    shown_number,
    split_of,
    video_name,
)
from teachclip.data.formats.problems import Problems
from teachclip.data.formats.tables import kind_of, parse_json, require_regular
from teachclip.errors import DataError


def read_csv(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read a table of text, such as CSV. Caption ids are `video:index`. Raises DataError, naming lines."""
    _refuse_lists(annotations, (train, validation, test))
    problems = Problems()
    return collect(annotations, read_separated(annotations, problems), problems)


def read_xlsx(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read a workbook of Excel. Caption ids are `video:index`. Raises DataError, naming sheet, rows and columns."""
    _refuse_lists(annotations, (train, validation, test))
    table = read_workbook(annotations)
    for record in table.rows:
        for role in REQUIRED:
            record.values[role] = _as_text(record.values.get(role))
    return collect(annotations, table, Problems())


def read_jsonl(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read one JSON object per line. Caption ids are `video:index`. Raises DataError, naming lines and fields."""
    _refuse_lists(annotations, (train, validation, test))
    problems, records = Problems(), []
    lines, source = own_lines(annotations)
    for where, text in lines:
        with problems.collected():
            value = parse_json(text, where)
            if not isinstance(value, dict):
                raise DataError(f"{where} must hold a JSON object, found {kind_of(value)}")
            records.append(Record(where, value))
    if not records:
        problems.raise_all()
    names = list(dict.fromkeys(name for record in records for name in record.values))
    chosen: dict[str, str] = {}
    with problems.collected():
        chosen = assign_columns(str(annotations), names)
    if not chosen:
        problems.raise_all()
    facts, doubts = describe_columns(str(annotations), names, chosen)
    rows = [Record(where, _renamed(values, chosen)) for where, values in records]
    table = OwnTable(rows, chosen, [source.encoding, *facts], [*source.doubts, *doubts])
    return collect(annotations, table, problems)


def read_parquet(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read a Parquet file. Caption ids are `video:index`. Raises DataError, naming rows and columns."""
    _refuse_lists(annotations, (train, validation, test))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{annotations}: Parquet needs pyarrow: pip install 'teachclip[parquet]'") from error
    require_regular(annotations)
    try:
        with parquet.ParquetFile(annotations) as file:
            columns = file.schema_arrow.names
            chosen = assign_columns(str(annotations), columns)
            content = file.read(list(chosen.values())).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(f"{annotations} cannot be read as Parquet: {what}") from error
    facts, doubts = describe_columns(str(annotations), columns, chosen)
    rows = [Record(f"{annotations}: row {number}", _renamed(row, chosen)) for number, row in enumerate(content, 1)]
    return collect(annotations, OwnTable(rows, chosen, facts, doubts), Problems())


def _renamed(values: dict[str, Any], chosen: dict[str, str]) -> dict[str, Any]:
    """Return the values of a row by the names of `COLUMNS`."""
    return {role: values[name] for role, name in chosen.items() if name in values}


def _refuse_lists(annotations: Path, lists: Iterable[Path | None]) -> None:
    if any(path is not None for path in lists):
        raise DataError(f"{annotations}: this format does not take lists of videos; add a column 'split'")


def collect(path: Path, table: OwnTable, problems: Problems) -> Annotations:
    """Check the rows of a table and assign them to splits.

    Raises one DataError with all problems of the rows and those that are in `problems` already.
    """
    rows = _Rows(path)
    commas = has_decimal_commas(record.values.get(name) for record in table.rows for name in ("start", "end"))
    for record in table.rows:
        rows.add(record, problems, decimal_commas=commas)
    problems.raise_all()
    if not table.rows:
        raise DataError(f"{path} has a header but no rows")
    return Annotations(
        rows.captions["train"],
        rows.captions["validation"] or None,
        rows.captions["test"] or None,
        {video: segment for video, segment in rows.segments.items() if video != segment.file},
        understood=_understood(path, table, rows),
        tolerant_names=True,
    )


class _Rows:
    """The rows of a table that are in order, as captions of each split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captions: dict[str, list[Caption]] = {split: [] for split in SPLITS}
        self.segments: dict[str, Segment] = {}
        self.without_split = 0
        self.first: list[dict[str, str]] = []
        self._numbers: Counter[str] = Counter()
        self._split_of: dict[str, str] = {}

    def add(self, record: Record, problems: Problems, *, decimal_commas: bool) -> None:
        """Add a row; what is wrong with it goes to `problems`."""
        try:
            parts = {name: parse(record, decimal_commas) for name, parse in _CELLS.items()}
            self._add(record, **parts)
        except DataError as error:
            wrong = [*_wrong_cells(record, decimal_commas)]
            for problem in wrong or [str(error)]:
                problems.add(problem)

    def _add(
        self, record: Record, *, video: str, caption: str, start: float | None, end: float | None, split: str
    ) -> None:
        """Add the values of a row. Raises DataError if they contradict each other or a row above."""
        where = record.where
        start = start or None  # 0 is the beginning
        if start is not None and end is not None and start >= end:
            raise DataError(f"{where}: 'start' is {start:g}, which is not before 'end', {end:g}")
        segment = Segment(video, start, end)
        name = video if start is end is None else f"{video}[{shown_number(start or 0.0)}-{shown_number(end)}]"
        if self._split_of.setdefault(name, split) != split:
            raise DataError(f"{where}: video {name!r} is in split {split}, but in {self._split_of[name]} above")
        if self.segments.setdefault(name, segment) != segment:
            raise DataError(f"{where}: video {name!r} is also a segment of another file above; rename one file")
        try:
            self.captions[split].append(Caption(f"{name}:{self._numbers[name]}", name, caption))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        self._numbers[name] += 1
        self.without_split += not str(record.values.get("split") or "").strip()
        if len(self.first) < SHOWN_ROWS:
            shown = {"start": shown_number(start), "end": shown_number(end)}
            self.first.append({"video": video, "caption": caption, **shown, "split": split})


_CELLS: dict[str, Callable[[Record, bool], Any]] = {
    "video": lambda record, commas: _text(record, "video"),
    "caption": lambda record, commas: _text(record, "caption"),
    "start": lambda record, commas: seconds(record.values.get("start"), record.where, "start", decimal_commas=commas),
    "end": lambda record, commas: seconds(record.values.get("end"), record.where, "end", decimal_commas=commas),
    "split": lambda record, commas: split_of(record.values.get("split"), record.where),
}
"""What each cell of a row means, given whether commas are decimal; raises DataError."""


def _wrong_cells(record: Record, decimal_commas: bool) -> Iterator[str]:
    """Yield the problem of each cell of a row that has one."""
    for parse in _CELLS.values():
        try:
            parse(record, decimal_commas)
        except DataError as error:
            yield str(error)


def _understood(path: Path, table: OwnTable, rows: _Rows) -> Understood:
    """Return how a table was understood, with its first rows."""
    counts = [f"{split} {len(captions):,}" for split, captions in rows.captions.items() if captions]
    facts = [*table.facts, f"rows: {', '.join(counts)}"]
    if rows.without_split and "split" in table.headings:
        facts.append(f"without split: {rows.without_split:,}, for training")
    names = {"start": "start, seconds", "end": "end, seconds"}
    header = tuple(
        f"{names.get(role, role)}" + (f" ({table.headings[role]})" if table.headings[role] != role else "")
        for role in COLUMNS
        if role in table.headings
    )
    shown = tuple(tuple(row[role] for role in COLUMNS if role in table.headings) for row in rows.first)
    return Understood(f"{path.name}, as it was understood: {'; '.join(facts)}", header, shown, tuple(table.doubts))


def _as_text(value: Any) -> Any:
    """Return the text of a cell that holds a number: 7.0 is the file 7."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, float)) else value


def _text(record: Record, key: str) -> str:
    """Return a text. Raises DataError if it is absent or empty."""
    value = record.values.get(key)
    if value is None and key in record.values:
        value = ""
    if not isinstance(value, str):
        problem = f"must be text, found {kind_of(value)}" if key in record.values else "is missing"
        raise DataError(f"{record.where}: {key!r} {problem}")
    value = video_name(value) if key == "video" else value.strip()
    if not value:
        beside = next((other for other in record.values.values() if isinstance(other, str) and other.strip()), "")
        raise DataError(f"{record.where}: {key!r} is empty" + (f" (beside {beside!r:.60})" if beside else ""))
    return value
