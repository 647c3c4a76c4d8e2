"""The report of `teachclip ablate`: tables, plain words, and everything that was tried."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teachclip import __version__
from teachclip.console import log
from teachclip.processes import usable_cores
from teachclip.reports.pictures import can_draw, draw_intervals
from teachclip.reports.report import no_pictures
from teachclip.reports.tables import Table, markdown_table
from teachclip.store.files import write_atomic
from teachclip.studies.comparison import (
    ArmRuns,
    Candidate,
    difference,
    difference_table,
    gain_verdicts,
    recall_table,
)
from teachclip.studies.gain_arms import Arm
from teachclip.studies.plan import Plan, Results
from teachclip.studies.tables import Effort, choices_table, cost_table, recall_intervals, tried_table

Candidates = Mapping[str, Sequence[Candidate]]
COMPARED = ("R@1", "R@5", "R@10", "sum")


def build_ablation_report(plan: Plan, prepared: Results, candidates: Candidates, tests: Results) -> dict[str, Any]:
    """Return the whole report as JSON-able data: every trial, what was chosen, all runs, differences, tables."""
    chosen = plan.chosen(candidates)
    results = {arm.name: _tests(plan, arm, chosen[arm.name], prepared, tests) for arm in plan.comparison.arms}
    students = [
        ArmRuns(arm.name, arm.label, [found["test"] for found in results[arm.name]], (), chosen[arm.name])
        for arm in plan.comparison.arms
    ]
    efforts = {name: _effort(found) for name, found in results.items()}
    zero_shot, teachers = _others(plan, prepared)
    known = {arm.name: arm for arm in students}
    pairs = [(known[name], known[other]) for name, other in plan.comparison.pairs]
    differences = [difference(arm, other, metric) for arm, other in pairs for metric in COMPARED]
    towards = [difference(arm, other, metric) for arm in students for other in teachers[:1] for metric in COMPARED]
    shown = [*map(_single, zero_shot), *students, *map(_single, teachers)]
    tables = [recall_table("Test, mean ± standard deviation over the fresh seeds", shown)]
    if differences:
        tables.append(difference_table("Paired differences, mean [95% t interval] wins", differences))
    if towards:
        tables.append(difference_table("Differences from the teacher", towards))
    tables.append(cost_table("Cost", shown, efforts))
    tables.append(choices_table("Chosen on validation", students, candidates, efforts))
    labels = {arm.name: arm.label for arm in plan.comparison.arms}
    tried = {labels[name]: items for name, items in candidates.items()}
    if plan.tuned:
        tables.append(tried_table("Every trial on validation", tried, plan.tune_seeds))
    return {
        "title": plan.comparison.title,
        "version": __version__,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": usable_cores()},
        "about": _about(plan, next(iter(prepared.values()))["splits"]),
        "tune_seeds": list(plan.tune_seeds),
        "seeds": list(plan.comparison.seeds),
        "tables": [[table.title, list(table.header), [list(row) for row in table.rows]] for table in tables],
        "verdicts": [*gain_verdicts(differences), *gain_verdicts(towards)],
        "differences": [*differences, *towards],
        "intervals": recall_intervals(shown),
        "arms": {arm.name: {"label": arm.label, "runs": results[arm.name]} for arm in students},
        "others": {arm.name: {"label": arm.label, "runs": list(arm.runs)} for arm in shown if arm not in students},
        "chosen": {name: asdict(item) for name, item in chosen.items()},
        "candidates": {name: [asdict(item) for item in items] for name, items in candidates.items()},
        "commands": _commands(plan, chosen, prepared),
    }


def write_ablation_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md` and a picture into a folder, and print the text."""
    picture = folder / "recall.png"
    if can_draw():
        title = f"{report['title']}: mean, 95 % interval and every seed"
        draw_intervals(report["intervals"], picture, title=title, label="R@1, text to video, test")
    text = ablation_markdown(report, picture.name if can_draw() else None)
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.md", text.encode())
    print(text, flush=True)
    log(f"report: {folder / 'report.md'}, {folder / 'report.json'}")


def ablation_markdown(report: Mapping[str, Any], picture: str | None) -> str:
    """Return the report as Markdown."""
    first, *others = [Table(*table) for table in report["tables"]]
    parts = [f"# {report['title']}", *report["about"], f"## {first.title}", markdown_table(first)]
    if report["verdicts"]:
        parts += ["## In plain words", "\n".join(f"- {line}" for line in report["verdicts"])]
    parts.append(f"![R@1 of every arm]({picture})" if picture else no_pictures())
    for table in others:
        parts += [f"## {table.title}", markdown_table(table)]
    parts += ["## Commands", "The chosen student of each arm on the first fresh seed:"]
    parts.append("\n".join(f"- {label}: `{text}`" for label, text in report["commands"].items()))
    facts = {**report["machine"], **report.get("run", {}), "teachclip": report["version"]}
    parts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _tests(plan: Plan, arm: Arm, choice: Candidate, prepared: Results, tests: Results) -> list[Mapping[str, Any]]:
    return [
        tests[plan.train_job("test", seed, arm, choice.settings, prepared).name] for seed in plan.comparison.seeds
    ]


def _effort(results: Sequence[Mapping[str, Any]]) -> Effort:
    return Effort(
        seconds=[result["seconds"] for result in results if result["seconds"] is not None],
        parameters=results[0]["parameters"],
        temperature_scaling=[
            result["temperature_scaling"]["factor"] for result in results if result.get("temperature_scaling")
        ],
    )


def _others(plan: Plan, prepared: Results) -> tuple[list[ArmRuns], list[ArmRuns]]:
    """Return zero-shot and the teachers on the test splits of the fresh seeds, where they were measured."""
    if not plan.comparison.teachers:
        return [], []
    made = [prepared[f"prepare-{seed}" if plan.world else "prepare"] for seed in plan.comparison.seeds]
    zero_shot = ArmRuns("zero_shot", "zero-shot mean pooling", [found["zero_shot"] for found in made])
    teachers = [
        ArmRuns(f"teacher_{label}", f"teacher ({label})", [found["teachers"][label] for found in made])
        for label in made[0]["teachers"]
    ]
    return [zero_shot], teachers


def _single(arm: ArmRuns) -> ArmRuns:
    """Return an arm that was measured once, of which no seed differs, with that one run."""
    same = all(run == arm.runs[0] for run in arm.runs)
    return ArmRuns(arm.name, arm.label, arm.runs[:1]) if same else arm


def _about(plan: Plan, splits: Mapping[str, Sequence[int]]) -> list[str]:
    seeds, settings = plan.comparison.seeds, len(plan.comparison.arms[0].grid)
    what = "A seed is the student's initialisation and batches; data and teachers are the same for all seeds."
    if plan.world is not None:
        kind = "" if plan.world.preset == "default" else f" ({plan.world.preset})"
        what = (
            f"A seed is a new embedded world{kind}: new videos, captions, teachers, initialisation and batches; the "
            "pre-trained CLIP is the same."
        )
    sizes = "; ".join(f"{name} {videos:,} videos, {texts:,} captions" for name, (videos, texts) in splits.items())
    tuned = "Nothing was tuned: every arm has one setting."
    if plan.tuned:
        tuned = (
            f"Every arm was tuned alike: {settings} settings, each on the validation split of the same tuning seeds "
            f"({', '.join(map(str, plan.tune_seeds))}); the highest mean R@1 (text to video) is chosen."
        )
    quick = ["A quick run: it shows that the comparison runs. Its numbers mean nothing."] if plan.last else []
    return [
        *quick,
        f"Recipe {plan.recipe.name}. Mean ± standard deviation over {len(seeds)} fresh seeds "
        f"({', '.join(map(str, seeds))}); differences are paired by seed. {what} Data of a "
        f"seed: {sizes}.",
        f"{tuned} The step is chosen on validation in every run{_sharpening(plan)}. No student was measured on test "
        "before all choices. `sum` adds R@1, R@5 and R@10 of both directions. A value on the edge of the grid may be "
        "better still beyond it; with two values every choice is on the edge. Each interval is for one comparison: "
        "of 20 at 95 %, one misses by chance.",
    ]


def _sharpening(plan: Plan) -> str:
    """Say from how many factors the sharpness of the attention was chosen."""
    arms = plan.comparison.arms
    counts = sorted({len(plan.load(plan.settings(arm, arm.grid[0])).student.temperature_scaling) for arm in arms})
    if counts == [0]:
        return ""
    return f", and so is the sharpness of the attention, by {' or '.join(map(str, counts))} factors beside 1"


def _commands(plan: Plan, chosen: Mapping[str, Candidate], prepared: Results) -> dict[str, str]:
    """Return the plain command of every chosen student on the first fresh seed."""
    found = {}
    for arm in plan.comparison.arms:
        job = plan.train_job("test", plan.comparison.seeds[0], arm, chosen[arm.name].settings, prepared)
        words = [f"{key}={value}" for key, value in job.places().items()]
        words += ["accelerate", "launch", "tools/distill.py", str(job.recipe), *job.overrides()]
        if job.variant:
            words.append(f"stores={plan.load(job.settings).stores}-{job.variant}")
        found[arm.label] = " ".join(map(shlex.quote, [*words, f"output={job.folder / 'chosen' / arm.name}"]))
    return found
