"""The report of a factorial study: what each level adds, which pairs of levels go together, and every training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachclip.reports.tables import Table
from teachclip.studies.design import Cell, Design, effect_names
from teachclip.studies.effects import Effect, Trainings
from teachclip.studies.plan import Plan, Results
from teachclip.studies.report import measured_beside, plain_table, report_head
from teachclip.studies.results import CUTOFFS, METRICS, MIN_TEST_SEEDS, VariantRuns, size_warnings
from teachclip.studies.tables import recall_table

VALIDATION = "R@1, validation"
MEASURED = (VALIDATION, *CUTOFFS)
"""Effects are told on validation, where settings may be chosen by them, and on test."""
INTERACTIONS_OF = "R@10"
"""Higher recalls have less noise, so their interactions are told."""


def build_factorial_report(plan: Plan, prepared: Results, tests: Results) -> dict[str, Any]:
    """Return the whole report as JSON-able data: tables, effects, interactions, and every training with its cell."""
    design = _design(plan)
    splits = next(iter(prepared.values()))["splits"]
    settings = {variant.name: variant.grid[0] for variant in plan.study.variants}
    trials, cells, seeds = [], [], []
    for seed in plan.study.test_seeds:
        for variant, cell in zip(plan.study.tested(seed), design.draw(seed), strict=True):
            trials.append(tests[plan.train_job("test", seed, variant, settings[variant.name], prepared).name])
            cells.append(cell)
            seeds.append(seed)
    trainings = Trainings(
        design.factors,
        np.array(cells),
        np.array(seeds),
        [trial["test"]["queries"] for trial in trials if trial["test"].get("queries")],
        same_videos=plan.shapes is None,
    )
    students = VariantRuns("students", "all students of the design", [trial["test"] for trial in trials])
    beside = measured_beside(plan, prepared)
    models = [*beside["before"], students, *beside["teachers"], *beside["after"]]
    warnings = size_warnings(splits["test"][1], MIN_TEST_SEEDS)  # effects rest on all trainings, however few seeds
    section = _section(trainings, students, trials, interval=not warnings)
    section["tables"].insert(0, plain_table(recall_table("Test, mean ± standard deviation", models)))
    section["trainings"] = [
        {"seed": seed, "cell": design.name(cell), **trial}
        for seed, cell, trial in zip(seeds, cells, trials, strict=True)
    ]
    return {
        **report_head(plan),
        "about": _about(plan, design, splits, trainings),
        "warnings": warnings,
        "results": [section],
        "tables": [plain_table(_training_table(design, cells, seeds, trials))],
        "others": {
            model.name: {"label": model.label, "runs": list(model.runs)} for model in models if model != students
        },
        "figure": {
            "caption": "what each level adds to R@1, 95 % interval",
            "label": "effect on R@1, text to video, test",
        },
        "commands": {},
    }


def _section(
    trainings: Trainings, students: VariantRuns, trials: Sequence[Mapping[str, Any]], *, interval: bool
) -> dict[str, Any]:
    """Return the effects and interactions, as tables, in words, as numbers, and as rows of the figure."""
    values = {metric: np.array(students.values(metric)) for metric in CUTOFFS}
    values[VALIDATION] = np.array([trial["validation"]["t2v"]["recall_at_1"] for trial in trials])
    effects = {metric: trainings.main_effects(values[metric], CUTOFFS.get(metric)) for metric in MEASURED}
    together = trainings.interactions(values[INTERACTIONS_OF])
    names = [f"{factor}: {level} against {first}" for factor, level, first in effect_names(trainings.factors)]
    tables = [_effect_table(names, effects, interval=interval)]
    tables += [_interaction_table(together)] if interval else []
    return {
        "tables": [plain_table(table) for table in tables],
        "verdicts": _verdicts(names, effects["R@1"]) if interval else [],
        "effects": {
            metric: dict(zip(names, map(_plain, of_metric), strict=True)) for metric, of_metric in effects.items()
        },
        "interactions": {name: _plain(effect) for name, effect in together.items()},
        "intervals": [
            {
                "label": name,
                "values": [],
                "mean": effect.mean,
                "low": effect.low if interval else None,
                "high": effect.high if interval else None,
            }
            for name, effect in zip(names, effects["R@1"], strict=True)
        ],
    }


def _design(plan: Plan) -> Design:
    if plan.study.design is None:
        raise ValueError(f"{plan.study.name} has variants, no design")
    return plan.study.design


def _effect_table(names: Sequence[str], effects: Mapping[str, Sequence[Effect]], *, interval: bool) -> Table:
    rows = [
        [name, *(_cell(effects[metric][row], interval=interval) for metric in MEASURED)]
        for row, name in enumerate(names)
    ]
    return Table(
        "Main effects, mean over all other factors"
        + (" [95 % t interval]; videos [95 % bootstrap over the test videos]" if interval else ""),
        ["level", *MEASURED],
        rows,
    )


def _interaction_table(together: Mapping[str, Effect]) -> Table:
    shown = sorted(together.items(), key=lambda item: -abs(item[1].mean))
    clear = [item for item in shown if item[1].low > 0 or item[1].high < 0]
    title = (
        f"Pairs of levels that add more or less than each by itself, {INTERACTIONS_OF}: those of {len(shown)} "
        f"whose interval is clear of zero; about {0.05 * len(shown):.0f} would be by chance, more beside a real one"
    )
    return Table(title, ["levels", INTERACTIONS_OF], [[name, _cell(effect, interval=True)] for name, effect in clear])


def _training_table(
    design: Design, cells: Sequence[Cell], seeds: Sequence[int], trials: Sequence[Mapping[str, Any]]
) -> Table:
    rows = []
    for cell, seed, trial in zip(cells, seeds, trials, strict=True):
        levels = [factor.levels[row][0] for factor, row in zip(design.factors, cell, strict=True)]
        test = VariantRuns("", "", [trial["test"]])
        rows.append(
            [
                str(seed),
                *levels,
                f"{trial['validation']['t2v']['recall_at_1']:.1f}",
                *(f"{test.values(metric)[0]:.1f}" for metric in METRICS),
            ]
        )
    return Table("Every training", ["seed", *(factor.name for factor in design.factors), VALIDATION, *METRICS], rows)


def _verdicts(names: Sequence[str], effects: Sequence[Effect]) -> list[str]:
    lines = []
    for name, effect in zip(names, effects, strict=True):
        ends = f"[{effect.low:+.1f}, {effect.high:+.1f}]"
        clear = effect.low > 0 or effect.high < 0
        also = effect.videos is None or effect.videos[0] > 0 or effect.videos[1] < 0
        if clear:
            lines.append(
                f"{name}: {effect.mean:+.1f} R@1 {ends}, clear of zero"
                + ("" if also else "; not over the test videos")
            )
    if not lines:
        return ["No level's effect on R@1 is clear of zero."]
    return [*lines, f"Of {len(names)} effects about {0.05 * len(names):.0f} would be clear of zero by chance."]


def _about(plan: Plan, design: Design, splits: Mapping[str, Sequence[int]], trainings: Trainings) -> list[str]:
    sizes = "; ".join(f"{name} {videos:,} videos, {texts:,} captions" for name, (videos, texts) in splits.items())
    combinations = int(np.prod([len(factor.levels) for factor in design.factors]))
    return [
        *(["A quick run: it shows that the study runs. Its numbers mean nothing."] if plan.last else []),
        f"Recipe {plan.recipe.name}, {len(design.factors)} factors. Each of {len(plan.study.test_seeds)} test seeds "
        f"trains {design.cells} of {combinations} combinations, in which every level is as frequent as the others. "
        f"Data of a seed: {sizes}.",
        "An effect is what a level adds in place of the first level of its factor, in the mean over all other "
        f"factors: least squares with a column per level and per seed, {trainings.freedom} degrees of freedom. "
        "Nothing was tuned or chosen; the step is chosen on validation in every run.",
    ]


def _cell(effect: Effect, *, interval: bool) -> str:
    if not interval:
        return f"{effect.mean:+.1f}"
    text = f"{effect.mean:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]"
    if effect.videos is None:
        return text
    return f"{text}; videos [{effect.videos[0]:+.1f}, {effect.videos[1]:+.1f}]"


def _plain(effect: Effect) -> dict[str, Any]:
    return effect._asdict()
