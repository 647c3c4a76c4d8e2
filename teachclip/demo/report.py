"""The report of the demo: models, each measured over some seeds, against each other; numbers, tables, plain words.

Every number comes from the results that `teachclip distill` and `teachclip evaluate` write.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from teachclip import __version__
from teachclip.console import log
from teachclip.demo.plan import COMPARISONS, VARIANTS, Demo
from teachclip.errors import StoreError
from teachclip.evaluation.intervals import Interval, paired_difference, spread
from teachclip.reports import figures as draw
from teachclip.reports.pages import png_uri, render_page
from teachclip.reports.tables import (
    COLUMNS,
    DIRECTIONS,
    Table,
    human_count,
    interval_cell,
    markdown_table,
    mean_cell,
    result_notes,
)
from teachclip.store.files import read_json, write_atomic


def write_report(demo: Demo) -> None:
    """Write `report.json|md|html` and the figures from the results files, and print the tables."""
    report = gather(demo)
    figures = _draw(demo, report)
    paths = {name: demo.folder / f"report.{name}" for name in ("json", "md", "html")}
    write_atomic(paths["json"], json.dumps(report, indent=1).encode())
    write_atomic(paths["md"], report_markdown(report, [(path.name, text) for path, text in figures]).encode())
    write_atomic(paths["html"], report_page(report, figures).encode())
    print(f"\n{terminal_text(report)}\n", flush=True)
    for what, where in report["files"].items():
        log(f"{what + ':':<20} {where}")
    if not figures:
        log(draw.NO_FIGURES)


def gather(demo: Demo) -> dict[str, Any]:
    """Read all results files and return the report's data."""

    def read(stage: str) -> dict[str, Any]:
        path = demo.stages[stage].outputs[0]
        try:
            return dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path} holds no results ({error}); delete it and run again") from error

    zero_shot, teacher, student = read("zero_shot"), read("teacher_result"), read("student_result")
    models = [ModelResults("zero_shot", "zero-shot mean pooling", [zero_shot], zero_shot["test"]["cost"])]
    for variant, (label, _) in VARIANTS.items():
        # all students are one architecture: their cost is measured once, on a machine that does nothing else
        runs = [read(f"{variant}-{seed}") for seed in demo.seeds]
        models.append(ModelResults(variant, label, runs, student["test"]["cost"]))
    name = demo.recipe.teachers[0].label
    models.append(ModelResults("teacher", f"teacher ({name})", [teacher], teacher["test"]["cost"]))
    labels = {"shapes": "Shapes dataset", "teacher": "teacher", "precompute": "precompute"}
    labels |= {
        f"{variant}-{seed}": f"{VARIANTS[variant][0]}, seed {seed}" for seed in demo.seeds for variant in VARIANTS
    }
    first = demo.seeds[0]
    commands = {label: demo.stages[f"{variant}-{first}"] for variant, (label, _) in VARIANTS.items()}
    commands = {
        "zero-shot mean pooling": demo.stages["zero_shot"],
        f"teacher ({name})": demo.stages["teacher"],
    } | commands
    return build_report(
        models,
        comparisons=COMPARISONS,
        seeds=demo.seeds,
        title=f"teachclip demo: {demo.recipe.name}",
        commands={label: stage.shown(demo.shown) for label, stage in commands.items()},
        files=_files(demo),
        machine=_machine(demo.threads),
        seconds={
            label: seconds for name, label in labels.items() if (seconds := demo.record.seconds(demo.stages[name]))
        },
    )


def _files(demo: Demo) -> dict[str, str]:
    first = demo.folder / f"distilled-{demo.seeds[0]}"
    return {
        "report": str(demo.folder / "report.html"),
        "compact student": f"{first / 'student'} (distilled as published, seed {demo.seeds[0]})",
        "all students": str(demo.folder / "*" / "student"),
        "results, logs": f"{demo.folder / '*' / 'results.json'}, {demo.folder / 'logs'}",
        "teacher": demo.recipe.teachers[0].checkpoint,
        "videos": str(demo.recipe.data.videos),
        "stores": str(demo.recipe.stores),
    }


def _machine(threads: int) -> dict[str, Any]:
    """Return what the timings and the last digits depend on."""
    return {
        "cores used": threads,
        "cores of the machine": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        "teachclip": __version__,
    }


def _draw(demo: Demo, report: dict[str, Any]) -> list[tuple[Path, str]]:
    """Draw the figures. Returns (file, caption) of each; none without matplotlib."""
    if not draw.can_draw():
        return []
    recall, strip = demo.folder / "recall.png", demo.folder / "frames.png"
    draw.draw_recall(report, recall)
    facts_path, frames_path = demo.stages["frames"].outputs
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    labels = {model["name"]: model["label"] for model in report["models"]}
    order = ("teacher", "distilled_options", "distilled", "undistilled")
    weights = {labels[name]: np.array(facts["weights"][name]) for name in order}
    title = f'{facts["video"]}: "{facts["caption"]}"'
    draw.draw_frames(
        np.load(frames_path, allow_pickle=False), weights, strip, title=title, colours=draw.model_colours(report)
    )
    many = (
        f", mean of {len(demo.seeds)} seeds; bars of one standard deviation, a dot per seed"
        if len(demo.seeds) > 1
        else ""
    )
    return [
        (recall, f"Text-to-video recall at 1, 5 and 10{many}."),
        (
            strip,
            f"The frames that the models see of {facts['video']}, and the weight of each: the teacher's "
            "attention for the caption; the students' pooling weights, made without the caption (seed "
            f"{facts['seed']}). Chosen by rule: {facts['rule']}.",
        ),
    ]


METRIC = "recall_at_1"
COMPARED = (METRIC, "recall_at_10", "mean_rank")
"""Text-to-video metrics whose paired differences are reported: a gain at the top can be a loss further down."""


@dataclass(frozen=True)
class ModelResults:
    """A model and its results: one mapping per seed, as results files hold them."""

    name: str
    label: str
    runs: Sequence[Mapping[str, Any]]
    cost: Mapping[str, float] = field(default_factory=dict)
    """`bytes_per_video`, `flops_per_query`, `ms_per_query`, `candidates`, as `search_cost` returns them."""


def build_report(
    models: Sequence[ModelResults],
    *,
    comparisons: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    split: str = "test",
    **about: Any,
) -> dict[str, Any]:
    """Return the whole report as JSON-able data.

    `comparisons`: pairs of names (model, baseline) whose runs are paired by seed. `about`: more to keep with it.
    """
    known = {model.name: model for model in models}
    first = models[0].runs[0][split]
    return {
        "split": split,
        "videos": first["videos"],
        "captions": first["captions"],
        "seeds": list(seeds),
        "models": [_summarise(model, split) for model in models],
        "differences": [
            _compare(known[name], known[baseline], split, metric)
            for name, baseline in comparisons
            for metric in COMPARED
        ],
        "notes": result_notes([run for model in models for run in model.runs]),
        **about,
    }


def report_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the measured tables: both directions, cost, differences."""
    models, seeds = report["models"], report["seeds"]
    tables = []
    for direction, label in DIRECTIONS.items():
        rows = [
            [model["label"], *(mean_cell(model[direction][metric]["values"]) for metric in COLUMNS)]
            for model in models
        ]
        tables.append(Table(label.capitalize(), ["model", *COLUMNS.values()], rows))
    candidates = next((model["cost"]["candidates"] for model in models if model["cost"]), 0)
    rows = [[model["label"], *_cost_cells(model["cost"])] for model in models if model["cost"]]
    header = ["model", "bytes per video", "FLOPs per query", f"ms per query, {candidates:,} videos"]
    tables.append(Table("Cost of a search", header, rows))
    rows = [
        [d["label"], COLUMNS[d["metric"]], f"{d['mean']:+.1f}", interval_cell(d), _per_seed(d)]
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
        f"{error:.1f} points (one standard error), the same for all models."
    )
    lines.append(
        "All students pool with frame attention as trained. Post-hoc temperature scaling, chosen on validation for "
        "every model, can close most of such a difference: `teachclip study shapes_gain` measures it over "
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
    return "\n\n".join([subtitle(report), *parts, "\n".join([*report["notes"], *verdicts(report)])])


def report_markdown(report: Mapping[str, Any], figures: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown. `figures`: (file name, caption), shown after the tables."""
    parts = [f"# {report['title']}", subtitle(report)]
    tables = report_tables(report)
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    parts.append("\n".join(f"- {line}" for line in [*report["notes"], *verdicts(report)]))
    for name, caption in figures:
        parts.append(f"![{caption}]({name})\n\n{caption}")
    if not figures:
        parts.append(draw.NO_FIGURES)
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in about_tables(report)]
    return "\n\n".join(parts) + "\n"


def report_page(report: Mapping[str, Any], figures: Sequence[tuple[Path, str]]) -> str:
    """Return the report as an HTML page. `figures`: (PNG file, caption)."""
    return render_page(
        "results.html",
        title=report["title"],
        subtitle=subtitle(report),
        tables=report_tables(report),
        notes=[*report["notes"], *verdicts(report)],
        figures=[(png_uri(path), caption) for path, caption in figures],
        no_figures=draw.NO_FIGURES,
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


def subtitle(report: Mapping[str, Any]) -> str:
    """Say on what was measured, and what the columns mean."""
    seeds = report["seeds"]
    over = f"mean ± standard deviation over {len(seeds)} student seeds" if len(seeds) > 1 else "one student seed"
    return (
        f"{report['split'].capitalize()} split: {report['videos']} videos, {report['captions']} captions. R@k: share "
        f"of queries, in %, whose match is among the first k. MedR, MeanR: median and mean rank. Students: {over}."
    )


def _summarise(model: ModelResults, split: str) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": model.name, "label": model.label, "runs": len(model.runs)}
    for direction in DIRECTIONS:
        summary[direction] = {}
        for metric in COLUMNS:
            values = [float(run[split][direction][metric]) for run in model.runs]
            summary[direction][metric] = {"mean": statistics.fmean(values), "sd": spread(values), "values": values}
    summary["cost"] = dict(model.cost)
    return summary


def _compare(model: ModelResults, baseline: ModelResults, split: str, metric: str) -> dict[str, Any]:
    values, others = ([float(run[split]["t2v"][metric]) for run in side.runs] for side in (model, baseline))
    interval: Interval = paired_difference(values, others)
    return {
        "model": model.name,
        "baseline": baseline.name,
        "label": " - ".join(side.label.removeprefix("student, ") for side in (model, baseline)),
        "metric": metric,
        "values": [value - other for value, other in zip(values, others, strict=True)],
        **interval._asdict(),
        "touches_zero": interval.touches_zero,
    }


def _sampling_error(report: Mapping[str, Any]) -> float:
    """Return the largest binomial standard error of the models' R@1, in points."""
    shares = [model["t2v"][METRIC]["mean"] / 100 for model in report["models"]]
    return 100 * max(math.sqrt(share * (1 - share) / report["captions"]) for share in shares)


def _cost_cells(cost: Mapping[str, float]) -> list[str]:
    return [f"{cost['bytes_per_video']:,.0f}", human_count(cost["flops_per_query"]), f"{cost['ms_per_query']:.3g}"]


def _per_seed(difference: Mapping[str, Any]) -> str:
    return " ".join(f"{value:+.1f}" for value in difference["values"])
