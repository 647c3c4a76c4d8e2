"""A report of several arms, each measured over some seeds, against each other: numbers, tables, plain words.

Every number comes from the results that `teachclip distill` and `teachclip evaluate` write.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachclip.evaluation.intervals import Interval, paired_difference, spread
from teachclip.reports.pages import png_uri, render_page
from teachclip.reports.tables import COLUMNS, DIRECTIONS, SPREAD, Table, human_count, markdown_table, remarks

METRIC = "recall_at_1"
COMPARED = (METRIC, "recall_at_10", "mean_rank")
"""Text-to-video metrics whose paired differences are reported: a gain at the top can be a loss further down."""


@dataclass(frozen=True)
class Arm:
    """One way to get a model, and its results: one mapping per seed, as results files hold them."""

    name: str
    label: str
    runs: Sequence[Mapping[str, Any]]
    cost: Mapping[str, float] = field(default_factory=dict)
    """`bytes_per_video`, `flops_per_query`, `ms_per_query`, `candidates`, as `search_cost` returns them."""


def build_report(
    arms: Sequence[Arm],
    *,
    comparisons: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    split: str = "test",
    **about: Any,
) -> dict[str, Any]:
    """Return the whole report as JSON-able data.

    `comparisons`: pairs of arm names (arm, baseline) whose runs are paired by seed. `about`: more to keep with it.
    """
    known = {arm.name: arm for arm in arms}
    first = arms[0].runs[0][split]
    return {
        "split": split,
        "videos": first["videos"],
        "captions": first["captions"],
        "seeds": list(seeds),
        "arms": [_summarise(arm, split) for arm in arms],
        "differences": [
            _compare(known[name], known[baseline], split, metric)
            for name, baseline in comparisons
            for metric in COMPARED
        ],
        "remarks": remarks([run for arm in arms for run in arm.runs]),
        **about,
    }


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the measured tables: both directions, cost, differences."""
    arms, seeds = report["arms"], report["seeds"]
    tables = []
    for direction, label in DIRECTIONS.items():
        rows = [[arm["label"], *(_cell(arm[direction][metric]) for metric in COLUMNS)] for arm in arms]
        tables.append(Table(label.capitalize(), ["model", *COLUMNS.values()], rows))
    candidates = next((arm["cost"]["candidates"] for arm in arms if arm["cost"]), 0)
    rows = [[arm["label"], *_cost_cells(arm["cost"])] for arm in arms if arm["cost"]]
    header = ["model", "bytes per video", "FLOPs per query", f"ms per query, {candidates:,} videos"]
    tables.append(Table("Cost of a search", header, rows))
    rows = [
        [d["label"], COLUMNS[d["metric"]], f"{d['mean']:+.1f}", _interval_cell(d), _per_seed(d)]
        for d in report["differences"]
    ]
    header = ["difference, text to video", "metric", "mean", "95% interval", f"seeds {', '.join(map(str, seeds))}"]
    tables.append(Table("What teaching gains", header, rows))
    return tables


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Say in plain words what the differences show and what they do not."""
    count = len(report["seeds"])
    lines = [line for difference in report["differences"] if (line := _verdict(difference, count))]
    error = _sampling_error(report)
    lines.append(
        "The spread and the intervals are over student seeds (new parameters and batch order) alone: one set of "
        f"videos, one teacher. With {report['captions']} test captions an R@1 itself is uncertain by up to "
        f"{error:.1f} points (one standard error), alike for all models."
    )
    lines.append(
        "All students pool with frame attention as trained. Post-hoc temperature scaling, chosen on validation for "
        "every arm alike, can close most of such a difference: `teachclip study shapes_gain` measures it over "
        "several Shapes datasets."
    )
    return lines


def _verdict(difference: Mapping[str, Any], seeds: int) -> str:
    """Say what one difference shows; nothing of a metric other than R@1 whose interval touches zero."""
    metric, mean = difference["metric"], difference["mean"]
    what = f"{difference['label']}: {mean:+.1f} {COLUMNS[metric]}"
    if not difference["touches_zero"]:
        better = "better" if (mean > 0) == metric.startswith("recall") else "WORSE"
        return f"{what}, and the interval is clear of zero: {better} over these {seeds} seeds."
    if metric != METRIC:
        return ""
    if difference["low"] is None:
        return f"{what} with a single seed, which can mislead: no interval, nothing is shown."
    return f"{what}, but the interval touches zero: these {seeds} seeds do not show a difference."


def terminal_text(report: Mapping[str, Any]) -> str:
    """Return the measured tables and the verdicts for a terminal."""
    parts = [f"{table.title}\n{markdown_table(table)}" for table in report_tables(report)]
    return "\n\n".join([subtitle(report), *parts, "\n".join([*report["remarks"], *verdicts(report)])])


def report_markdown(report: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown. `pictures`: (file name, caption), shown after the tables."""
    parts = [f"# {report['title']}", subtitle(report)]
    tables = report_tables(report)
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    parts.append("\n".join(f"- {line}" for line in [*report["remarks"], *verdicts(report)]))
    for name, caption in pictures:
        parts.append(f"![{caption}]({name})\n\n{caption}")
    if not pictures:
        parts.append(no_pictures())
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in about_tables(report)]
    return "\n\n".join(parts) + "\n"


def report_page(report: Mapping[str, Any], pictures: Sequence[tuple[Path, str]]) -> str:
    """Return the report as an HTML page. `pictures`: (PNG file, caption)."""
    return render_page(
        "demo.html",
        title=report["title"],
        subtitle=subtitle(report),
        tables=report_tables(report),
        notes=[*report["remarks"], *verdicts(report)],
        figures=[(png_uri(path), caption) for path, caption in pictures],
        no_figures=no_pictures(),
        about=about_tables(report),
    )


def about_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of what was run, on what, and where it lies."""
    tables = [
        Table("How each model was made", ["model", "command"], [list(item) for item in report["commands"].items()]),
        Table("Where the files are", ["what", "where"], [list(item) for item in report["files"].items()]),
        Table("Machine", ["what", "value"], [[key, str(value)] for key, value in report["machine"].items()]),
        Table("Time", ["stage", "seconds"], [[key, f"{value:.1f}"] for key, value in report["seconds"].items()]),
    ]
    return [table for table in tables if table.rows]


def no_pictures() -> str:
    """Say how to get pictures."""
    return "No pictures: they need matplotlib. Run `pip install 'teachclip[report]'` and the demo again."


def subtitle(report: Mapping[str, Any]) -> str:
    """Say on what was measured, and what the columns mean."""
    seeds = report["seeds"]
    over = f"mean ± standard deviation over {len(seeds)} student seeds" if len(seeds) > 1 else "one student seed"
    return (
        f"{report['split'].capitalize()} split: {report['videos']} videos, {report['captions']} captions. R@k: share "
        f"of queries, in %, whose match is among the first k. MedR, MeanR: median and mean rank. Students: {over}."
    )


def _summarise(arm: Arm, split: str) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": arm.name, "label": arm.label, "runs": len(arm.runs)}
    for direction in DIRECTIONS:
        summary[direction] = {}
        for metric in COLUMNS:
            values = [float(run[split][direction][metric]) for run in arm.runs]
            summary[direction][metric] = {"mean": statistics.fmean(values), "sd": spread(values), "values": values}
    summary["cost"] = dict(arm.cost)
    return summary


def _compare(arm: Arm, baseline: Arm, split: str, metric: str) -> dict[str, Any]:
    values, others = ([float(run[split]["t2v"][metric]) for run in side.runs] for side in (arm, baseline))
    interval: Interval = paired_difference(values, others)
    return {
        "arm": arm.name,
        "baseline": baseline.name,
        "label": " - ".join(side.label.removeprefix("student, ") for side in (arm, baseline)),
        "metric": metric,
        "values": [value - other for value, other in zip(values, others, strict=True)],
        **interval._asdict(),
        "touches_zero": interval.touches_zero,
    }


def _sampling_error(report: Mapping[str, Any]) -> float:
    """Return the largest binomial standard error of the arms' R@1, in points."""
    shares = [arm["t2v"][METRIC]["mean"] / 100 for arm in report["arms"]]
    return 100 * max(math.sqrt(share * (1 - share) / report["captions"]) for share in shares)


def _cell(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.1f}" + ("" if value["sd"] is None else f"{SPREAD}{value['sd']:.1f}")


def _cost_cells(cost: Mapping[str, float]) -> list[str]:
    return [f"{cost['bytes_per_video']:,.0f}", human_count(cost["flops_per_query"]), f"{cost['ms_per_query']:.3g}"]


def _interval_cell(difference: Mapping[str, Any]) -> str:
    return "none" if difference["low"] is None else f"[{difference['low']:+.1f}, {difference['high']:+.1f}]"


def _per_seed(difference: Mapping[str, Any]) -> str:
    return " ".join(f"{value:+.1f}" for value in difference["values"])
