"""The report of `teachclip measure-teachers`: one table of teachers and the students that they teach."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teachclip import __version__
from teachclip.console import log
from teachclip.processes import usable_cores
from teachclip.reports.tables import Table, markdown_table
from teachclip.store.files import write_atomic
from teachclip.studies.comparison import (
    ArmRuns,
    Candidate,
    chosen_table,
    difference,
    frame_table,
    recall_table,
    trials_table,
)
from teachclip.studies.gain_plan import SHARPNESS, Plan, picks
from teachclip.studies.teacher_arms import NAMES, TAUGHT, TEMPERED

Results = Mapping[str, Mapping[str, Any]]
Candidates = Mapping[tuple[str, str], Sequence[Candidate]]


def build_teachers_report(plan: Plan, worlds: Results, candidates: Candidates, tests: Results) -> dict[str, Any]:
    """Return the report as JSON-able data: the table, all runs, what was chosen and every trial."""
    made = [worlds[f"world-{seed}"] for seed in plan.seeds]
    teachers = {
        label: ArmRuns(label, f"teacher: {NAMES[label]}", runs, [run["frames"] for run in runs])
        for label in NAMES
        if (runs := [world["teachers"][label] for world in made])
    }
    plain, sharpened = (_students(plan, candidates, tests, way) for way in ("plain", "finetuned"))
    zero_shot = ArmRuns("zero_shot", "zero-shot mean pooling", [world["zero_shot"] for world in made])
    tried = {arm.label: candidates[plan.families[0].name, arm.name] for arm in plan.families[0].arms}
    tables = [
        _main_table(teachers, plain, sharpened),
        recall_table("Attention as trained", [zero_shot, *plain.values(), *teachers.values()]),
        recall_table("Attention sharpened after training", list(sharpened.values())),
        frame_table("Weight on frames as trained, %", [*plain.values(), *teachers.values()]),
        chosen_table("Chosen on validation, as trained", list(plain.values())),
        chosen_table("Chosen on validation, sharpened", list(sharpened.values())),
        trials_table("Every trial on validation", tried),
    ]
    return {
        "title": "The embedded world, taught by every teacher",
        "command": "python tools/measure_teachers.py",
        "version": __version__,
        "machine": {"cores": usable_cores()},
        "about": _about(plan),
        "seeds": list(plan.seeds),
        "dev_seeds": list(plan.dev_seeds),
        "tables": [[table.title, list(table.header), [list(row) for row in table.rows]] for table in tables],
        "teachers": {label: list(arm.runs) for label, arm in teachers.items()},
        "students": {
            way: {name: list(arm.runs) for name, arm in arms.items()}
            for way, arms in (("as trained", plain), ("sharpened", sharpened))
        },
        "candidates": {label: [asdict(item) for item in items] for label, items in tried.items()},
    }


def write_teachers_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json` and `report.md` into a folder, and print the text."""
    parts = [f"# {report['title']}", *report["about"]]
    parts += [f"## {table[0]}\n\n{markdown_table(Table(*table))}" for table in report["tables"]]
    facts = {**report["machine"], **report["run"], "teachclip": report["version"]}
    parts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".")
    text = "\n\n".join(parts) + "\n"
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.md", text.encode())
    print(text, flush=True)
    log(f"report: {folder / 'report.md'}, {folder / 'report.json'}")


def _students(plan: Plan, candidates: Candidates, tests: Results, way: str) -> dict[str, ArmRuns]:
    family = plan.families[0]
    found = {}
    for arm in family.arms:
        choice = picks(candidates[family.name, arm.name])[way]
        results = [tests[plan.test_job(seed, family, arm, choice).name] for seed in plan.seeds]
        runs = [result["sharpness"][f"{choice.sharpness:g}"] for result in results]
        found[arm.name] = ArmRuns(arm.name, arm.label, runs, [run["frames"] for run in runs], choice)
    return found


def _main_table(
    teachers: Mapping[str, ArmRuns], plain: Mapping[str, ArmRuns], sharpened: Mapping[str, ArmRuns]
) -> Table:
    """Return R@1 of teachers and students, and what each student gains over the one that nobody teaches."""
    rows = []
    for name, student in plain.items():
        labels = TAUGHT.get(name.removesuffix(TEMPERED), ())
        row = [student.label, ", ".join(_mean(teachers[label]) for label in labels)]
        for arms in (plain, sharpened):
            row += [_mean(arms[name]), _gain(arms[name], arms["undistilled"]) if labels else ""]
        rows.append(row)
    header = ["taught by", "teacher's R@1", "student's R@1", "gain", "attention sharpened: R@1", "gain"]
    return Table("Text to video, R@1", header, rows)


def _mean(arm: ArmRuns) -> str:
    values = arm.values("R@1")
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def _gain(arm: ArmRuns, baseline: ArmRuns) -> str:
    found = difference(arm, baseline, "R@1")
    interval = "" if found["low"] is None else f" [{found['low']:+.1f}, {found['high']:+.1f}]"
    return f"{found['mean']:+.1f}{interval}"


def _about(plan: Plan) -> list[str]:
    trials = len(plan.families[0].arms[0].grid)
    sharpness = ", ".join(f"{factor:g}" for factor in SHARPNESS)
    return [
        f"Mean ± standard deviation over {len(plan.seeds)} fresh seeds ({plan.seeds[0]} to {plan.seeds[-1]}); gains "
        "are paired with the undistilled student of the same seed, with 95% t intervals. A seed is new videos, "
        "captions, teachers, students and batches; the pretrained CLIP is the same file, its encoders frozen.",
        f"Every arm got {trials} settings, each measured on the validation split of the same development seeds "
        f"({', '.join(map(str, plan.dev_seeds))}): three rates of the frame weighting, or three frame temperatures; "
        f"sharpened means its scores times {sharpness} after training, chosen there too. Test was measured once.",
    ]
