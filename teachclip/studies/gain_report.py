"""The report of `teachclip measure-gain`: tables, plain words, and everything that was tried."""

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
from teachclip.recipe.loading import load_recipe
from teachclip.reports.pictures import can_draw, draw_recall
from teachclip.reports.report import Arm, build_report, no_pictures
from teachclip.reports.tables import Table, markdown_table
from teachclip.store.files import write_atomic
from teachclip.studies.comparison import (
    ArmRuns,
    Candidate,
    chosen_table,
    difference,
    difference_table,
    edges,
    frame_table,
    gain_verdicts,
    recall_table,
    trials_table,
)
from teachclip.studies.gain_arms import COMPARISONS, Family
from teachclip.studies.gain_plan import SHARPNESS, Plan, picks

Results = Mapping[str, Mapping[str, Any]]
COMPARED = ("R@1", "R@5", "R@10", "sum")
WAYS = {
    "finetuned": "attention sharpness chosen on validation",
    "plain": "attention as trained, settings chosen for that",
}


def build_gain_report(
    plan: Plan, worlds: Results, candidates: Mapping[tuple[str, str], Sequence[Candidate]], tests: Results
) -> dict[str, Any]:
    """Return the whole report as JSON-able data: every trial, what was chosen, all runs, differences, tables."""
    sections = []
    for family in plan.families:
        for way, what in WAYS.items():
            arms = _arms(plan, family, way, worlds, candidates, tests)
            sections.append(_section(family, way, what, arms))
    tried = {
        f"{family.label}: {arm.label}": candidates[family.name, arm.name]
        for family in plan.families
        for arm in family.arms
    }
    chosen = {
        f"{family.label}: {arm.label}": picks(candidates[family.name, arm.name])["finetuned"]
        for family in plan.families
        for arm in family.arms
    }
    return {
        "title": "What teaching gains",
        "command": "python tools/measure_gain.py",
        "version": __version__,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": usable_cores()},
        "about": _about(plan),
        "dev_seeds": list(plan.dev_seeds),
        "seeds": list(plan.seeds),
        "sections": sections,
        "edges": {label: edges(choice, tried[label]) for label, choice in chosen.items()},
        "trials": _plain(trials_table("Every trial on validation", tried)),
        "candidates": {label: [asdict(item) for item in items] for label, items in tried.items()},
        "commands": _commands(plan, candidates),
    }


def write_gain_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md` and pictures into a folder, and print the tables."""
    pictures = []
    for section in report["sections"]:
        if can_draw() and section["way"] == "finetuned":
            path = folder / f"recall-{section['family']}.png"
            draw_recall(section["picture"], path)
            pictures.append((path.name, section["title"]))
    text = gain_markdown(report, pictures)
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.md", text.encode())
    print(text, flush=True)
    log(f"report: {folder / 'report.md'}, {folder / 'report.json'}")


def gain_markdown(report: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown. `pictures`: (file name, caption)."""
    parts = [f"# {report['title']}", *report["about"]]
    for section in report["sections"]:
        parts.append(f"## {section['title']}")
        parts += [markdown_table(Table(*table)) for table in section["tables"]]
        parts.append("\n".join(f"- {line}" for line in section["verdicts"]))
    found = {label: names for label, names in report["edges"].items() if names}
    lines = [f"- {label}: {', '.join(names)}" for label, names in found.items()] or ["- none"]
    parts += ["## Chosen values on the edge of what was tried", "\n".join(lines)]
    parts += [f"![{caption}]({name})" for name, caption in pictures] or [no_pictures()]
    parts += ["## Every trial on validation", markdown_table(Table(*report["trials"]))]
    parts += ["## Commands", "\n".join(f"- {label}: `{text}`" for label, text in report["commands"].items())]
    facts = {**report["machine"], **report.get("run", {}), "teachclip": report["version"]}
    parts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _section(family: Family, way: str, what: str, arms: Sequence[ArmRuns]) -> dict[str, Any]:
    known = {arm.name: arm for arm in arms}
    differences = [
        difference(known[name], known[baseline], metric) for name, baseline in COMPARISONS for metric in COMPARED
    ]
    title = f"{family.label}; {what}"
    tables = [
        recall_table(title, arms),
        difference_table("Paired differences", differences),
        frame_table("Weight of the attention, %", arms),
        chosen_table("Chosen on validation", arms),
    ]
    shown = [arm for arm in arms if arm.name != "event_frames"]
    runs = [Arm(arm.name, arm.label, [{"test": run} for run in arm.runs]) for arm in shown]
    return {
        "family": family.name,
        "way": way,
        "title": title,
        "tables": [_plain(table) for table in tables],
        "differences": differences,
        "verdicts": gain_verdicts(differences),
        "arms": [{"name": a.name, "label": a.label, "runs": list(a.runs), "frames": list(a.frames)} for a in arms],
        "picture": build_report(runs, comparisons=(), seeds=range(len(arms[0].runs))),
    }


def _arms(
    plan: Plan,
    family: Family,
    way: str,
    worlds: Results,
    candidates: Mapping[tuple[str, str], Sequence[Candidate]],
    tests: Results,
) -> list[ArmRuns]:
    """Collect the test results of a family's arms, between those of models that are not students."""
    made = [worlds[f"world-{seed}"] for seed in plan.seeds]
    arms = [ArmRuns("zero_shot", "zero-shot mean pooling", [world["zero_shot"] for world in made])]
    for arm in family.arms:
        choice = picks(candidates[family.name, arm.name])[way]
        results = [tests[plan.test_job(seed, family, arm, choice).name] for seed in plan.seeds]
        runs = [result["sharpness"][f"{choice.sharpness:g}"] for result in results]
        arms.append(ArmRuns(arm.name, arm.label, runs, [run["frames"] for run in runs], choice))
    for label in made[0]["teachers"]:
        runs = [world["teachers"][label] for world in made]
        arms.append(ArmRuns(f"teacher_{label}", f"teacher ({label})", runs, [run["frames"] for run in runs]))
    events = [world["event_frames_only"] for world in made]
    arms.append(ArmRuns("event_frames", "mean of the true event frames", events))
    return arms


def _about(plan: Plan) -> list[str]:
    trials = len(plan.families[0].arms[0].grid)
    sharpness = ", ".join(f"{factor:g}" for factor in SHARPNESS)
    validation = load_recipe(plan.recipe, plan.overrides).data.validation
    held_out = (validation.videos or 0) if validation else 0
    return [
        f"Over {len(plan.seeds)} fresh seeds ({plan.seeds[0]} to {plan.seeds[-1]}): mean ± standard deviation, and "
        "paired differences with 95% t intervals and wins. A seed is new videos, captions, teacher, student "
        "initialisation and batches; the pre-trained CLIP is the same file. Encoders frozen. Per seed "
        f"{plan.sizes.train_videos - held_out} videos to train on with 8 noisy captions each, {held_out} for "
        f"validation, and {plan.sizes.test_videos} for test with 5 clean captions each.",
        f"Every arm of a family was tuned alike: {trials} settings, each on the validation split of the same "
        f"{len(plan.dev_seeds)} development seeds ({plan.dev_seeds[0]} to {plan.dev_seeds[-1]}), and after training "
        f"attention scores times {sharpness}; the highest mean validation R@1 (text to video) is chosen. Arms that "
        "choose a match temperature get it instead of some of the learning rates, so their number of trials is the "
        "same. The step is chosen on validation in every run. Test was measured once, after all choices.",
        "`sum` adds R@1, R@5 and R@10 of both directions. `mean of the true event frames` is no model: it averages "
        "CLIP's features over exactly the frames that captions can speak of, so it is what a perfect choice gives.",
    ]


def _commands(plan: Plan, candidates: Mapping[tuple[str, str], Sequence[Candidate]]) -> dict[str, str]:
    """Return the plain command of every chosen student on the first fresh seed."""
    found = {}
    for family in plan.families:
        for arm in family.arms:
            job = plan.test_job(plan.seeds[0], family, arm, picks(candidates[family.name, arm.name])["finetuned"])
            where = " ".join(f"{key}={value}" for key, value in job.places().items())
            words = " ".join(map(shlex.quote, (*job.settings, f"seed={job.seed}")))
            found[f"{family.label}: {arm.label}"] = (
                f"{where} accelerate launch tools/distill.py recipes/{job.recipe.name} {words}"
            )
    return found


def _plain(table: Table) -> list[Any]:
    return [table.title, list(table.header), [list(row) for row in table.rows]]
