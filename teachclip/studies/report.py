"""The report of `teachclip study`: tables, plain words, and everything that was tried, as JSON, Markdown and HTML."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from teachclip import __version__
from teachclip.console import log
from teachclip.processes import usable_cores
from teachclip.reports.figures import NO_FIGURES, can_draw, draw_intervals
from teachclip.reports.pages import png_uri, render_page
from teachclip.reports.tables import Table, markdown_table
from teachclip.store.files import write_atomic
from teachclip.studies.plan import AS_TRAINED, SCALED, Plan, Results
from teachclip.studies.results import (
    GALLERY,
    Candidate,
    VariantRuns,
    difference,
    recall_intervals,
    size_warnings,
    verdicts,
)
from teachclip.studies.tables import (
    Effort,
    choices_table,
    cost_table,
    difference_table,
    factors_table,
    frame_table,
    recall_table,
    teacher_table,
    tried_table,
)

Candidates = Mapping[str, Sequence[Candidate]]
COMPARED = ("R@1", "R@5", "R@10", "sum")
WAYS = {
    AS_TRAINED: "pooling temperature as trained, settings chosen for that",
    SCALED: "pooling temperature chosen on validation jointly with the settings",
}


def build_study_report(plan: Plan, prepared: Results, candidates: Candidates, tests: Results) -> dict[str, Any]:
    """Return the whole report as JSON-able data: every trial, what was chosen, all runs, differences, tables.

    `results` has a section per way of choosing, each with `tables`, `verdicts`, `differences`, `variants`, `chosen`,
    `intervals` and `gallery`; a study without pooling factors has one.
    """
    choices = plan.choices(candidates)
    splits = next(iter(prepared.values()))["splits"]
    warnings = size_warnings(splits["test"][1] if "test" in splits else None, len(plan.study.test_seeds))
    references = measured_beside(plan, prepared)
    main = plan.ways[-1]
    trials = {way: _trials_by_variant(plan, choices[way], prepared, tests) for way in plan.ways}
    students = {way: _students(plan, choices[way], trials[way]) for way in plan.ways}
    efforts = {name: _effort(results) for name, results in trials[main].items()}
    tables = []
    if plan.study.teacher_table:
        tables.append(_teacher_table(plan, students, references["teachers"], interval=not warnings))
    tables.append(cost_table("Cost", _shown(students[main], references), efforts))
    labels = {variant.name: variant.label for variant in plan.study.variants}
    tried = {labels[name]: items for name, items in candidates.items()}
    if len(plan.factors) > 1:
        tables.append(factors_table("Every trial on validation", tried))
    elif plan.tuned:
        tables.append(tried_table("Every trial on validation", tried, plan.dev_seeds))
    return {
        **report_head(plan),
        "about": _about(plan, splits),
        "warnings": warnings,
        "dev_seeds": list(plan.dev_seeds),
        "results": [
            _section(plan, way, students[way], references, candidates, efforts, trials[way], interval=not warnings)
            for way in plan.ways
        ],
        "tables": [plain_table(table) for table in tables],
        "others": {model.name: {"label": model.label, "runs": list(model.runs)} for model in _shown([], references)},
        "figure": {
            "caption": "R@1 of every variant: mean, 95 % interval and every seed",
            "label": "R@1, text to video, test",
        },
        "candidates": {name: [asdict(item) for item in items] for name, items in candidates.items()},
        "commands": _commands(plan, choices[main], prepared),
    }


def report_head(plan: Plan) -> dict[str, Any]:
    """Return what every report of a study begins with."""
    return {
        "title": plan.study.title,
        "study": plan.study.name,
        "version": __version__,
        "quick": bool(plan.last),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": usable_cores()},
        "test_seeds": list(plan.study.test_seeds),
    }


def write_study_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md`, `report.html` and a figure into a folder, and print the text."""
    figure = folder / "recall.png" if can_draw() else None
    if figure is not None:
        shown = report["figure"]
        intervals = report["results"][-1]["intervals"]
        draw_intervals(intervals, figure, title=f"{report['title']}: {shown['caption']}", label=shown["label"])
    text = study_markdown(report, figure.name if figure else None)
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomic(folder / "report.md", text.encode())
    write_atomic(folder / "report.html", study_page(report, figure).encode())
    print(text, flush=True)
    log(f"report: {', '.join(str(folder / f'report.{ending}') for ending in ('html', 'md', 'json'))}")


def study_markdown(report: Mapping[str, Any], figure: str | None) -> str:
    """Return the report as Markdown. `figure`: name of the figure's file, or None."""
    blocks = [f"# {report['title']}", *report["about"]]
    blocks += [f"**Warning: {line}.**" for line in report["warnings"]]
    for section in report["results"]:
        first, *others = [Table(*table) for table in section["tables"]]
        blocks += [f"## {first.title}", markdown_table(first)]
        if section["verdicts"]:
            blocks += ["### In plain words", "\n".join(f"- {line}" for line in section["verdicts"])]
        for table in others:
            blocks += [f"### {table.title}", markdown_table(table)]
    blocks.append(f"![{report['figure']['caption']}]({figure})" if figure else NO_FIGURES)
    for table in [Table(*table) for table in report["tables"]]:
        blocks += [f"## {table.title}", markdown_table(table)]
    if report["commands"]:
        blocks += ["## Commands", "The chosen student of each variant on the first test seed:"]
        blocks.append("\n".join(f"- {label}: `{text}`" for label, text in report["commands"].items()))
    return "\n\n".join([*blocks, _machine(report)]) + "\n"


def study_page(report: Mapping[str, Any], figure: Path | None) -> str:
    """Return the report as an HTML page. `figure`: PNG file, or None."""
    return render_page(
        "study.html",
        title=report["title"],
        about=report["about"],
        warnings=report["warnings"],
        sections=[
            {"tables": [Table(*table) for table in section["tables"]], "verdicts": section["verdicts"]}
            for section in report["results"]
        ],
        figures=[(png_uri(figure), report["figure"]["caption"])] if figure else [],
        no_figures=NO_FIGURES,
        tables=[Table(*table) for table in report["tables"]],
        commands=Table("Commands", ["student on the first test seed", "command"], list(report["commands"].items())),
        machine=_machine(report),
    )


def _section(
    plan: Plan,
    way: str,
    students: Sequence[VariantRuns],
    references: Mapping[str, Sequence[VariantRuns]],
    candidates: Candidates,
    efforts: Mapping[str, Effort],
    trials: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    interval: bool,
) -> dict[str, Any]:
    """Return the results of one way of choosing."""
    known = {variant.name: variant for variant in students}
    pairs = [(known[name], known[other]) for name, other in plan.study.pairs]
    options = {"interval": interval, "same_videos": plan.shapes is None}
    paired = _differences(pairs, **options)
    first_teacher = references["teachers"][:1]
    towards = _differences([(student, teacher) for student in students for teacher in first_teacher], **options)
    shown = _shown(students, references)
    title = "Test, mean ± standard deviation over the test seeds"
    tables = [recall_table(title + (f"; {WAYS[way]}" if len(plan.ways) > 1 else ""), shown)]
    with_interval = "mean [95% t interval] wins" if interval else "mean (wins)"
    if any(item["videos"] for item in paired):
        with_interval += "; videos [95% bootstrap over the test videos]"
    if paired:
        tables.append(difference_table(f"Paired differences, {with_interval}", paired))
    if towards and not plan.study.teacher_table:
        tables.append(difference_table("Differences from the teacher", towards))
    if any(variant.frames for variant in shown):
        tables.append(frame_table("Attention weight by kind of frame, %", shown))
    own = {variant.name: plan.own_numbers(variant) for variant in plan.study.variants}
    tables.append(choices_table("Chosen on validation", students, _of_way(way, candidates), efforts, own))
    return {
        "way": way,
        "tables": [plain_table(table) for table in tables],
        "verdicts": [*verdicts(paired), *(verdicts(towards) if not plan.study.teacher_table else ())],
        "differences": [*paired, *towards],
        "variants": {variant.name: {"label": variant.label, "runs": trials[variant.name]} for variant in students},
        "chosen": {variant.name: asdict(variant.chosen) for variant in students if variant.chosen is not None},
        "intervals": recall_intervals(shown),
        "gallery": _gallery(plan, shown),
    }


def _differences(pairs: Sequence[tuple[VariantRuns, VariantRuns]], **options: bool) -> list[dict[str, Any]]:
    """Return the differences of each pair in every metric that is compared."""
    differences = []
    for one, other in pairs:
        metrics = [GALLERY, *COMPARED] if one.has_gallery and other.has_gallery else COMPARED
        differences += [difference(one, other, metric, **options) for metric in metrics]
    return differences


def _gallery(plan: Plan, models: Sequence[VariantRuns]) -> dict[str, Any] | None:
    """Return the size of the study's gallery and the values of each model there, or None without one."""
    if plan.study.gallery is None:
        return None
    values = {model.name: model.values(GALLERY) for model in models if model.has_gallery}
    return {"videos": plan.study.gallery, "values": values}


def _trials_by_variant(
    plan: Plan, chosen: Mapping[str, Candidate], prepared: Results, tests: Results
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the results of the test trials of what was chosen for every variant, seed by seed."""
    return {
        variant.name: [
            tests[plan.train_job("test", seed, variant, chosen[variant.name].settings, prepared).name]
            for seed in plan.study.test_seeds
        ]
        for variant in plan.study.variants
    }


def _students(
    plan: Plan, chosen: Mapping[str, Candidate], trials: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[VariantRuns]:
    """Return the evaluations of all variants at the pooling factor that was chosen."""
    students = []
    for variant in plan.study.variants:
        choice, runs, frames = chosen[variant.name], [], []
        for trial in trials[variant.name]:
            run: Mapping[str, Any] = trial["test"]
            if plan.study.pooling_factors:
                run = {"cost": run.get("cost"), **trial["factors"][f"{choice.factor:g}"]}
            frames += [weights for weights in (run.get("frames"), trial.get("frames")) if weights]
            runs.append(run)
        students.append(VariantRuns(variant.name, variant.label, runs, frames, choice, plan.study.gallery))
    return students


def _effort(results: Sequence[Mapping[str, Any]]) -> Effort:
    return Effort(
        seconds=[result["seconds"] for result in results if result["seconds"] is not None],
        parameters=results[0]["parameters"],
        temperature_scaling=[
            result["temperature_scaling"]["factor"] for result in results if result.get("temperature_scaling")
        ],
        wise_ft=[result["wise_ft"]["share"] for result in results if result.get("wise_ft")],
        conditions=[
            {name: found["holds"] for name, found in result["conditions"].items()}
            for result in results
            if "conditions" in result
        ],
    )


def measured_beside(plan: Plan, prepared: Results) -> dict[str, list[VariantRuns]]:
    """Return what was measured on the test splits of the test seeds beside the students.

    Zero-shot stands `before` the students in tables, the `teachers` follow them, and `after` those the mean of the
    event frames, which is not a model.
    """
    if not plan.study.teachers:
        return {"before": [], "teachers": [], "after": []}
    results = [prepared[f"prepare-{seed}" if plan.shapes else "prepare"] for seed in plan.study.test_seeds]
    zero_shot_runs, gallery = [result["zero_shot"] for result in results], plan.study.gallery
    zero_shot = VariantRuns("zero_shot", "zero-shot mean pooling", zero_shot_runs, gallery=gallery)
    teachers = []
    for label in results[0]["teachers"]:
        runs = [result["teachers"][label] for result in results]
        frames = [run["frames"] for run in runs if "frames" in run]
        teachers.append(VariantRuns(f"teacher_{label}", f"teacher ({label})", runs, frames, gallery=gallery))
    events = [result["event_frames"] for result in results if "event_frames" in result]
    after = [VariantRuns("event_frames", "mean of the true event frames", events)] if events else []
    return {"before": [zero_shot], "teachers": teachers, "after": after}


def _shown(students: Sequence[VariantRuns], references: Mapping[str, Sequence[VariantRuns]]) -> list[VariantRuns]:
    """Return all models in the order of the tables."""
    before, teachers, after = (list(map(_once, references[name])) for name in ("before", "teachers", "after"))
    return [*before, *students, *teachers, *after]


def _once(model: VariantRuns) -> VariantRuns:
    """Return a model that was measured once, of which no seed differs, with that one run."""
    same = all(run == model.runs[0] for run in model.runs)
    return replace(model, runs=model.runs[:1], frames=model.frames[:1]) if same else model


def _teacher_table(
    plan: Plan, students: Mapping[str, Sequence[VariantRuns]], teachers: Sequence[VariantRuns], *, interval: bool
) -> Table:
    taught_by = {
        variant.name: [teacher.label for teacher in plan.load(plan.settings(variant, variant.grid[0])).teachers]
        for variant in plan.study.variants
    }
    known = {teacher.name.removeprefix("teacher_"): _once(teacher) for teacher in teachers}
    title = "Teachers and their students, text to video, R@1"
    return teacher_table(title, students, known, taught_by, baseline=plan.study.baseline, interval=interval)


def _of_way(way: str, candidates: Candidates) -> dict[str, list[Candidate]]:
    return {name: [item for item in items if way == SCALED or item.factor == 1] for name, items in candidates.items()}


def _about(plan: Plan, splits: Mapping[str, Sequence[int]]) -> list[str]:
    seeds, settings = plan.study.test_seeds, len(plan.study.variants[0].grid)
    what = "A seed is the student's initialisation and batches; data and teachers are the same for all seeds."
    if plan.shapes is not None:
        kind = "" if plan.shapes.preset == "default" else f" ({plan.shapes.preset})"
        what = (
            f"A seed is a new Shapes dataset{kind}: new videos, captions, teachers, initialisation and batches; the "
            "pre-trained CLIP is the same."
        )
    sizes = "; ".join(f"{name} {videos:,} videos, {texts:,} captions" for name, (videos, texts) in splits.items())
    tuned = "Nothing was tuned: every variant has one setting."
    if plan.tuned:
        factors = f" at {len(plan.factors)} pooling factors" if len(plan.factors) > 1 else ""
        tuned = (
            f"Every variant had the same tuning budget: {settings} settings{factors}, each on the validation split "
            f"of the same dev seeds ({', '.join(map(str, plan.dev_seeds))}); the highest mean R@1 (text to video) is "
            "chosen."
        )
        if plan.study.tune_set:
            tuned += f" These trials, and no others, have {' '.join(plan.study.tune_set)}."
    paragraphs = ["A quick run: it shows that the study runs. Its numbers mean nothing."] if plan.last else []
    paragraphs += [
        f"Recipe {plan.recipe.name}. Mean ± standard deviation over {len(seeds)} test seeds "
        f"({', '.join(map(str, seeds))}); differences are paired by seed. {what} Data of a "
        f"seed: {sizes}.",
        f"{tuned} The step is chosen on validation in every run{_scaling(plan)}. No student was measured on test "
        "before all choices. `sum` adds R@1, R@5 and R@10 of both directions. A value on the edge of the grid may be "
        "better still beyond it; with two values every choice is on the edge. Each interval is for one comparison: "
        "of 20 at 95 %, one misses by chance.",
    ]
    if len(plan.factors) > 1:
        factors = ", ".join(f"{factor:g}" for factor in plan.factors)
        paragraphs.append(
            f"A pooling factor ({factors}) multiplies the attention scores of a trained student before the pooling "
            "softmax. One factor is chosen for all seeds of a variant."
        )
    if plan.study.gallery:
        paragraphs.append(
            f"`{GALLERY}` is the R@1, text to video, to expect in a gallery of {plan.study.gallery} of the "
            f"{splits['test'][0]:,} test videos, from the rank of every query: among all of them so few queries may "
            "be first that variants hardly differ."
        )
    if plan.study.frame_probe:
        paragraphs.append(
            "`mean of the true event frames` is not a model: it averages CLIP's features over exactly the frames "
            "that captions can describe, so it shows what a perfect choice of frames gives."
        )
    return paragraphs


def _scaling(plan: Plan) -> str:
    """Return from how many factors each run chooses its own pooling temperature."""
    variants = plan.study.variants
    recipes = [plan.load(plan.settings(variant, variant.grid[0])) for variant in variants]
    counts = sorted({len(recipe.student.temperature_scaling) for recipe in recipes})
    if counts == [0]:
        return ""
    return f", and so is the pooling temperature, by {' or '.join(map(str, counts))} factors beside 1"


def _commands(plan: Plan, chosen: Mapping[str, Candidate], prepared: Results) -> dict[str, str]:
    """Return the plain command of every chosen student on the first test seed."""
    commands = {}
    for variant in plan.study.variants:
        job = plan.train_job("test", plan.study.test_seeds[0], variant, chosen[variant.name].settings, prepared)
        words = [f"{key}={value}" for key, value in job.places().items()]
        words += ["accelerate", "launch", "-m", "teachclip", "distill", str(job.recipe), *job.overrides()]
        if job.stores:
            words.append(f"stores={plan.load(job.settings).stores}-{job.stores}")
        commands[variant.label] = " ".join(
            map(shlex.quote, [*words, f"output={job.folder / 'chosen' / variant.name}"])
        )
    return commands


def _machine(report: Mapping[str, Any]) -> str:
    facts = {**report["machine"], **report.get("run", {}), "teachclip": report["version"]}
    return "Machine: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + "."


def plain_table(table: Table) -> list[Any]:
    """Return a table as JSON-able data."""
    return [table.title, list(table.header), [list(row) for row in table.rows]]
