"""Tables of text: cells, Markdown, and the results of evaluations."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from teachclip.console import visible
from teachclip.evaluation.certainty import FEW_VIDEOS
from teachclip.evaluation.comparison import Difference
from teachclip.evaluation.intervals import spread

COLUMNS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "median_rank": "MedR",
    "mean_rank": "MeanR",
}
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
SPREAD = " ± "
"""Between a mean and its standard deviation in a cell."""
_NUMERIC = "+-0123456789["


class Table(NamedTuple):
    """A table of text: its title, the header and the rows, all of the same number of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def has_spread(self) -> list[bool]:
        """Whether a cell of the column holds a standard deviation, per column."""
        return [any(SPREAD in cell for cell in column) for column in zip(*self.rows, strict=True)]

    @property
    def is_numeric(self) -> list[bool]:
        """Whether all cells of the column are empty or begin like numbers, per column; the first column never is."""
        columns = list(zip(*self.rows, strict=True))
        return [index > 0 and all(cell[:1] in _NUMERIC for cell in cells) for index, cells in enumerate(columns)]


def mean_cell(values: Sequence[float]) -> str:
    """Return the mean of some values, with their standard deviation where there are several."""
    deviation = spread(values)
    return f"{statistics.fmean(values):.1f}" + ("" if deviation is None else f"{SPREAD}{deviation:.1f}")


def interval_cell(item: Mapping[str, Any]) -> str:
    """Return the interval of a difference, whose ends are `low` and `high`; "none" where there is none."""
    return "none" if item["low"] is None else f"[{item['low']:+.1f}, {item['high']:+.1f}]"


def difference_cell(item: Mapping[str, Any]) -> str:
    """Return a paired difference: `mean`, interval, and of how many `values` the `wins` are above zero.

    Behind it, where it is known, the interval over `videos`.
    """
    wins = f"{item['wins']}/{len(item['values'])}"
    if item.get("videos") is not None:
        low, high = item["videos"]
        wins += f"; videos [{low:+.1f}, {high:+.1f}]"
    if item["low"] is None:
        return f"{item['mean']:+.1f} ({wins})"
    return f"{item['mean']:+.1f} {interval_cell(item)} {wins}"


def markdown_table(table: Table) -> str:
    """Return an aligned Markdown table: first column to the left, the others to the right where they hold numbers."""
    columns = [_align([*map(_cell, column)]) for column in zip(table.header, *table.rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    right = table.is_numeric or [index > 0 for index in range(len(columns))]  # without rows as with numbers

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    header, *rows = zip(*columns, strict=True)
    return "\n".join([line(header), rule, *map(line, rows)])


def _align(column: Sequence[str]) -> list[str]:
    """Pad means without a spread so that they line up with those that have one."""
    room = max((len(cell) - cell.find(SPREAD) for cell in column if SPREAD in cell), default=0)
    return [cell if SPREAD in cell or index == 0 else cell + " " * room for index, cell in enumerate(column)]


_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|#!&~$:@]|(?<=www)\.")  # colon, @ and www. would make links


def markdown_text(text: str) -> str:
    """Return a text from outside, such as a name, that Markdown shows as it is, on one line, also in a table."""
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(text))


def code_text(text: str) -> str:
    """Return a text from outside as code in Markdown, on one line."""
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _cell(text: str) -> str:
    """Return a text that stays one cell of a table, in a terminal too."""
    return visible(re.sub(r"\s", " ", text)).replace("|", "\\|")


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of evaluations: one line per model, split and direction."""
    lines = [
        "| model | split | direction | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|---|" + "---:|" * len(COLUMNS),
    ]
    for result in results:
        for split in ("train", "validation", "test"):
            for direction, label in DIRECTIONS.items():
                if direction in result.get(split, ()):
                    metrics = result[split][direction]
                    values = " | ".join(f"{metrics[name]:.1f}" for name in COLUMNS)
                    lines.append(f"| {_cell(str(result['model']))} | {split} | {label} | {values} |")
    notes = result_notes(results)
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def comparison_table(differences: Sequence[Difference]) -> str:
    """Return a Markdown table of the differences of two models: one line per direction and recall."""
    rows = [
        (
            DIRECTIONS[item.direction],
            COLUMNS[item.metric],
            f"{item.first:.1f}",
            f"{item.second:.1f}",
            f"{item.difference:+.1f}",
            f"[{item.low:+.1f}, {item.high:+.1f}]",
            f"{item.p:.4f}",
            f"{item.queries:,}",
        )
        for item in differences
    ]
    header = ("direction", "metric", "first", "second", "difference", "95 % interval", "p", "queries")
    return markdown_table(Table("", header, rows))


def reranking_table(result: Mapping[str, Any], split: str) -> str:
    """Return a Markdown table of text-to-video retrieval with the best k videos of each text reranked, by k."""
    found = result[split]["reranked"]
    columns = {name: label for name, label in COLUMNS.items() if name.startswith("recall")}
    header = ("reranked", *columns.values(), "FLOPs per query", "ms per query")
    student = ("none", *(f"{result[split]['t2v'][name]:.1f}" for name in columns), "", "")
    rows = [
        (
            f"best {item['k']} by {found['by']}",
            *(f"{item['t2v'][name]:.1f}" for name in columns),
            human_count(item["flops_per_query"]),
            f"{item['ms_per_query']:.3g}",
        )
        for item in found["depths"]
    ]
    return markdown_table(Table("", header, [student, *rows]))


def post_processing_table(result: Mapping[str, Any], split: str) -> str:
    """Return a Markdown table of retrieval with scores that were post-processed; a row says by what."""
    rows = [
        (
            f"{markdown_text(str(result['model']))} + {item['name']}"
            + (f" (bank of {item['bank']:,} texts, {item['normalised']:.0f} % of queries)" if "bank" in item else ""),
            DIRECTIONS[direction],
            *(f"{item[direction][name]:.1f}" for name in COLUMNS),
        )
        for item in result[split]["post_processed"]
        for direction in DIRECTIONS
        if direction in item
    ]
    return markdown_table(Table("", ("post-processed", "direction", *COLUMNS.values()), rows))


def result_notes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know before comparing: selection on test, excluded videos, overlaps of splits."""
    notes = list(_certainty_notes(results))
    on_test = [result for result in results if result.get("selected_on") == "test"]
    if any(result.get("selected_by") != "last step" for result in on_test):
        notes.append("Checkpoints were selected on the TEST split (data.select_on=test): not an unbiased result.")
    elif any("temperature_scaling" in result for result in on_test):
        notes.append("The pooling temperature was chosen on the TEST split: not an unbiased result.")
    for split in _distinct(r["selected_on"] for r in results if r.get("selected_by") == "last step"):
        notes.append(f"The last step was kept, not the best: {split} has fewer than {FEW_VIDEOS} videos.")
    for split, found, before in _agreements(results):
        labels = ", ".join(found["agreement_with"])
        notes.append(
            f"Agreement, not correctness: {split} has no captions. A recall is of the video that the teacher "
            f"({labels}) ranks first for a text: {found['captions']:,} texts, {found['videos']:,} videos held out. "
            f"The mean rank correlation of their order of all these videos is {found['rank_correlation']:.3f}"
            + (f", of the untrained backbone {before['rank_correlation']:.3f}." if before else ".")
        )
        if before and before["rank_correlation"] > found["rank_correlation"]:
            notes.append("Training moved the student away from its teacher: more videos or better texts are needed.")
    for counts in _distinct(result.get("partial") or {} for result in results):
        parts = ", ".join(f"{count} {split} videos" for split, count in counts.items())
        notes.append(f"Partial: {parts}; the others are missing or could not be read.")
    for videos in _distinct(sorted(result.get("partially_decoded") or {}) for result in results):
        notes.append(f"Partially decoded: {len(videos)} videos; the rest of them is damaged.")
    notes += [f"Overlap: {line}." for line in _distinct(line for r in results for line in r.get("overlaps") or ())]
    return notes


def _agreements(
    results: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]:
    """Yield the splits without captions: name, result, and the result of the backbone alone if it is known."""
    for result in results:
        for split in ("validation", "test"):
            if "agreement_with" in result.get(split, ()):
                yield split, result[split], result.get("zero_shot", {}).get(split)


def _certainty_notes(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield how far the text-to-video results on each split can be trusted; of several models the widest interval."""
    for split in ("train", "validation", "test"):
        measured = [result[split] for result in results if "intervals" in result.get(split, ())]
        intervals = [found["intervals"]["t2v"]["recall_at_1"] for found in measured]
        for captions, videos, chance in _distinct(
            (found["captions"], found["videos"], found["chance"]["recall_at_1"]) for found in measured
        ):
            if len(measured) == 1:
                low, high = intervals[0]
                recall = f"{measured[0]['t2v']['recall_at_1']:.1f} [{low:.1f}, {high:.1f}] (95 % over videos)"
            else:
                widest = max((high - low) / 2 for low, high in intervals)
                recall = f"of one model within {widest:.1f} or less (95 % over videos)"
            among = f"{captions:,} captions among {videos:,} videos"
            yield f"{split}: {among}; R@1 text to video {recall}, chance {chance:.1f}."
        for repeated, ceiling in _distinct(
            (found["repeated_captions"], found["ceiling"]["recall_at_1"]) for found in measured
        ):
            if repeated:
                yield (
                    f"{split}: {repeated:,} captions are also those of other videos: no model can have more than "
                    f"{ceiling:.1f} R@1."
                )


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values that are not empty, each once, in their order."""
    distinct: list[Any] = []
    for value in values:
        if value and value not in distinct:
            distinct.append(value)
    return distinct


def human_count(value: float) -> str:
    """Return a large number with three digits and a unit: 1234567 is 1.23M."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"
