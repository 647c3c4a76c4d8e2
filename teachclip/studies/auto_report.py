"""What `teachclip study --auto` says: which recipe to take, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teachclip.reports.tables import Table, interval_cell, markdown_table, mean_cell
from teachclip.studies.plan import Plan, Results
from teachclip.studies.results import VariantRuns, difference, size_warnings, verdicts

METRICS = ("R@1", "R@5", "R@10")


def evidence(winner: VariantRuns, baseline: VariantRuns, plan: Plan, prepared: Results) -> dict[str, Any]:
    """Return what test says: `test`, values by model and metric; `differences`, `verdicts` and `warnings`."""
    splits = next(iter(prepared.values()))["splits"]
    warnings = size_warnings(splits["test"][1], len(plan.study.test_seeds))
    models = [winner] if winner.name == baseline.name else [winner, baseline]
    differences = [
        difference(winner, baseline, metric, interval=not warnings) for metric in METRICS if len(models) > 1
    ]
    return {
        "warnings": warnings,
        "test_seeds": list(plan.study.test_seeds),
        "test": {model.label: {metric: model.values(metric) for metric in METRICS} for model in models},
        "differences": differences,
        "verdicts": verdicts(differences),
    }


def auto_markdown(result: Mapping[str, Any], recipe: Path) -> str:
    """Return the report as Markdown."""
    chosen, seeds = result["chosen"], result["dev_seeds"]
    lines = result["verdicts"] or [
        "The undistilled student itself is the best on validation: nothing else that was tried helped."
    ]
    steps = [f"{each['steps']} steps" for each in result["rounds"]]
    rows = [
        [
            row["label"],
            *(f"{value:.1f}" for value in row["recall_at_1"]),
            *[""] * (len(steps) - len(row["recall_at_1"])),
        ]
        for row in result["candidates"]
    ]
    budget = result["budget"]
    blocks = [
        f"# Take: {chosen['label']}, {' '.join(chosen['settings'])}",
        f"It is `{recipe}`. Chosen on validation among {len(rows)} candidates by successive halving; the budget was "
        f"{budget['total']:g} {budget['unit']}, of which {budget['planned']:.1f} were planned.",
        *([result["uncaptioned"]] if result["uncaptioned"] else []),
        *(f"**Warning: {line}.**" for line in result["warnings"]),
        *(f"- {line}" for line in lines),
        markdown_table(_test_table(result)),
        markdown_table(Table(f"R@1 on validation, mean over {len(seeds)} dev seed(s)", ["candidate", *steps], rows)),
        "A validation score that a candidate was kept for is too high on average; test is not.",
    ]
    return "\n\n".join(blocks)


def _test_table(result: Mapping[str, Any]) -> Table:
    """Return the test results of the chosen recipe and of the undistilled student, and their difference."""
    rows = [[label, *(mean_cell(values[metric]) for metric in METRICS)] for label, values in result["test"].items()]
    if result["differences"]:
        cells = [f"{item['mean']:+.1f} {interval_cell(item)}" for item in result["differences"]]
        rows.append(["difference, 95 % interval over the seeds", *cells])
        videos = [item["videos"] for item in result["differences"]]
        if all(videos):
            ends = [f"[{low:+.1f}, {high:+.1f}]" for low, high in videos]
            rows.append(["95 % interval over the test videos", *ends])
    return Table(f"Test, {len(result['test_seeds'])} seeds", ["model", *METRICS], rows)
