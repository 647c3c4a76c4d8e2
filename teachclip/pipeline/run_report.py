"""The report of a run: its results, learning curves, and where the time of its steps went."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.recipe.schema import Recipe
from teachclip.reports.figures import NO_FIGURES, can_draw, draw_curves
from teachclip.reports.pages import png_uri, render_page
from teachclip.reports.tables import COLUMNS, DIRECTIONS, Table, result_notes
from teachclip.store.files import write_atomic

PARTS = {
    "data": "waiting for the batch",
    "forward": "forward",
    "backward": "backward",
    "forward_backward": "forward and backward, chunk by chunk",
    "optimizer": "gradient clip and optimizer",
}


def write_run_report(recipe: Recipe, results: Mapping[str, Any]) -> Path:
    """Write `report.html` of a finished run, and `curves.png` where matplotlib is installed. Returns the page."""
    output = recipe.output
    lines = read_log(output / "log.jsonl")
    figures = []
    if lines and can_draw():
        draw_curves(lines, output / "curves.png")
        figures = [(png_uri(output / "curves.png"), "Losses, selection and learning rates over the steps of the run")]
    page = render_page(
        "results.html",
        title=f"The run {recipe.name}",
        subtitle="",
        tables=[_results(results), *([_costs(lines)] if lines else [])],
        notes=[f"The student is of step {results['step']}.", *_taught(output), *result_notes([results])],
        figures=figures,
        no_figures=NO_FIGURES if lines else "log.jsonl is not there or empty: no curves.",
        about=[],
    )
    write_atomic(output / "report.html", page.encode())
    log(f"report: {output / 'report.html'}")
    return output / "report.html"


def _taught(output: Path) -> list[str]:
    """Say where the page is that shows what stood for captions, if there is one."""
    if not (output / "taught.html").exists():
        return []
    return ["taught.html beside this page shows videos without captions, and the texts that they were taught with."]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, none if it is gone. A line that a crash cut short is dropped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            found.append(values)
    return found


def _results(results: Mapping[str, Any]) -> Table:
    models = {str(results["model"]): results, "zero-shot mean pooling": results.get("zero_shot", {})}
    rows = [
        [name, split, label, *(f"{found[split][direction][metric]:.1f}" for metric in COLUMNS)]
        for split in ("validation", "test")
        for direction, label in DIRECTIONS.items()
        for name, found in models.items()
        if direction in found.get(split, ())
    ]
    return Table("Results", ["model", "split", "direction", *COLUMNS.values()], rows)


def _costs(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return milliseconds of a step by part, the mean over all steps that were logged, and the peaks of memory."""
    timed = [line for line in lines if "seconds" in line]
    steps = sum(line["steps"] for line in timed)
    total: defaultdict[str, float] = defaultdict(float)
    for line in timed:
        for part, seconds in line["seconds"].items():
            total[part] += seconds * line["steps"]
    rows = [[PARTS.get(part, part), f"{1000 * seconds / max(1, steps):.2f}"] for part, seconds in total.items()]
    peaks = {
        name: max(line["peak_mb"].get(name, 0.0) for line in timed) for line in timed for name in line["peak_mb"]
    }
    names = {"host": "most memory of the process, MB", "device": "most memory of tensors on the device, MB"}
    rows += [[names.get(name, name), f"{value:,.0f}"] for name, value in peaks.items()]
    return Table("A training step", ["part", "ms, or MB"], rows)
