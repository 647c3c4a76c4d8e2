"""Run a study: compare ways to train a student with an equal tuning budget, and measure them on test seeds."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from teachclip.console import interruptible, log
from teachclip.processes import usable_cores
from teachclip.recipe.schema import Recipe
from teachclip.shapes.dataset import make_shapes
from teachclip.studies.checks import check_different, check_own_data, check_plan
from teachclip.studies.factorial_report import build_factorial_report
from teachclip.studies.plan import Plan, build_plan, recipe_label, small_plan
from teachclip.studies.report import build_study_report, write_study_report
from teachclip.studies.results import size_warnings
from teachclip.studies.study_file import find_study, load_study, with_preset
from teachclip.studies.trials import only_one, run_trials, seconds_by_kind

PREPARE_SECONDS = 100.0
FROZEN_STEP_SECONDS = 0.06
FINETUNED_STEP_SECONDS = 0.8
"""A rule for the Shapes dataset on two idle CPU cores, two trials at once: one preparation, and one step of a student
with frozen or finetuned encoders. The figures come from the measured studies: 75 s for 1200 steps; 40 minutes for the
18 students of 300 steps and the 5 preparations of shapes_finetuned; 9 minutes for one preset of shapes_presets."""


def study(
    file: str | Path,
    *,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    processes: int | None = None,
    quick: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run a study, or what is missing of it, write its report and return it.

    `file`: a study file, or the name of one in recipes/studies. `recipe`: in place of the one that the file names.
    `out`: folder of the study (default runs/studies/NAME). `preset`: another preset of the Shapes dataset.
    `processes`: trials at once (default: all cores; with a GPU 1). `quick`: 20 steps, 2 settings, 2 seeds: shows that
    it runs. `dry_run`: check every override, print the plan, and return {} without running anything.

    Raises RecipeError with all problems of the study file, DataError if the data does not allow a fair comparison,
    LaunchError if another process runs a study in the folder, and TrainingError if a trial fails.
    """
    content = load_study(find_study(file))
    if preset:
        content = with_preset(content, preset)
    runs = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    names = [content.name, recipe_label(Path(recipe)) if recipe else None, preset, "quick" if quick else None]
    folder = Path(out) if out else runs / "studies" / "-".join(filter(None, dict.fromkeys(names)))
    plan = build_plan(folder, Path(recipe) if recipe else None, content, runs / "shapes")
    if quick:
        check_plan(plan)
        check_different(plan)
        plan = small_plan(plan)
    check_plan(plan)
    if not quick:
        check_different(plan)
    queries = check_own_data(plan)
    processes = processes or (1 if torch.cuda.is_available() else usable_cores())
    _log_plan(plan, processes, queries, settings=dry_run)
    if dry_run:
        log("dry run passed; nothing was run")
        return {}
    with interruptible(), only_one(folder):
        return run_plan(plan, processes)


def run_plan(plan: Plan, processes: int) -> dict[str, Any]:
    """Run what is missing of a plan, write its report and return it."""
    started = time.monotonic()
    if plan.shapes is not None and not _has_clip(plan):
        log(f"making {plan.shapes.common}, whose CLIP all seeds share")
        make_shapes(plan.shapes.common, workers=processes)
    preparing, counts = plan.preparing(), plan.counts()
    threads = 1 if plan.shapes else usable_cores()
    prepared = run_trials(preparing, processes, "1/3 prepare", threads=threads)
    tuning = plan.tuning(prepared)
    missing = sum(job.result() is None for job in tuning)
    on_progress = _time_left(missing, None if plan.study.tune_set else counts["test"], processes)
    tuned = run_trials(tuning, processes, "2/3 tune on validation", on_progress=on_progress)
    candidates = plan.candidates(tuned, prepared)
    testing = plan.testing(plan.choices(candidates), prepared)
    tests = run_trials(testing, processes, "3/3 test seeds, test")
    if plan.study.design is not None:
        report = build_factorial_report(plan, prepared, tests)
    else:
        report = build_study_report(plan, prepared, candidates, tests)
    report["run"] = {"processes": processes, "minutes of this run": round((time.monotonic() - started) / 60, 1)}
    write_study_report(report, plan.folder)
    return report


def _has_clip(plan: Plan) -> bool:
    return plan.shapes is not None and (plan.shapes.common / "clip" / "model.safetensors").exists()


def _log_plan(plan: Plan, processes: int, queries: int | None, *, settings: bool) -> None:
    """Print the variants, how many trainings there are, and about how long they take.

    `queries`: number of test captions, None where it is not known yet. `settings`: also print what each variant may
    choose from.
    """
    study = plan.study
    for factor in study.design.factors if study.design else ():
        for level, overrides in factor.levels:
            log(f"factor {factor.name}, level {level}: {' '.join(overrides) or 'the recipe as it is'}")
    for variant in study.variants if study.design is None else ():
        log(f"variant {variant.name}: {' '.join(variant.fixed) or 'the recipe as it is'}")
        for setting in variant.grid if settings else ():
            log(f"  {' '.join(setting) or 'no further setting'}")
    variants, count = len(study.variants), len(study.variants[0].grid)
    test, dev = (", ".join(map(str, seeds)) for seeds in (study.test_seeds, plan.dev_seeds))
    tuning = f"{variants} variants x {count} settings x {len(plan.dev_seeds)} dev seeds ({dev})" if dev else "none"
    if dev and study.tune_set:
        tuning += f", with {' '.join(study.tune_set)}"
    twice = " x 2 ways of choosing at most" if plan.counts()["test"] > variants * len(study.test_seeds) else ""
    tested = f"{study.design.cells} cells" if study.design else f"{variants} variants"
    log(f"tuning: {tuning}; test: {tested} x {len(study.test_seeds)} test seeds ({test}){twice}")
    counts = plan.counts()
    teachers = sum(teacher.training is not None for teacher in plan.load((*study.common, *plan.last)).teachers)
    trained = f", each with {teachers} teacher(s)" if teachers and plan.shapes else ""
    log(
        f"{counts['tune'] + counts['test']} trainings of students ({counts['tune']} for tuning, {counts['test']} for "
        f"test) after {counts['prepare']} preparation(s){trained}, in {plan.folder}"
    )
    log(time_estimate(plan, processes))
    for line in size_warnings(queries, len(study.test_seeds)):
        log(f"warning: {line}")


def time_estimate(plan: Plan, processes: int) -> str:
    """Return about how long the missing trials of a plan take, and what the estimate rests on."""
    missing = missing_trials(plan)
    if not any(missing.values()):
        return "nothing is left to run"
    seconds = {kind: statistics.fmean(values) for kind, values in seconds_by_kind(plan.folder).items()}
    measured = sum(map(len, seconds_by_kind(plan.folder).values()))
    for kind, other in (("tune", "test"), ("test", "tune")):
        if other in seconds and not plan.study.tune_set:  # which may make them differ in length
            seconds.setdefault(kind, seconds[other])
    unknown = [kind for kind, count in missing.items() if count and kind not in seconds]
    rule = _seconds_by_rule(plan) if unknown else {}
    if unknown and not rule:
        known = sum(count * seconds.get(kind, 0.0) for kind, count in missing.items())
        first = f"about {_minutes(known / processes)}, but " if known else ""
        kinds = {"prepare": "preparation", "tune": "tuning", "test": "test"}
        return (
            f"time: {first}not known for {', '.join(kinds[kind] for kind in unknown)}, of which no trial has finished"
        )
    total = sum(count * seconds.get(kind, rule.get(kind, 0.0)) for kind, count in missing.items())
    bases = [f"{measured} finished trial(s) of this study"] if measured else []
    bases += [f"a rule for two idle CPU cores: {_rule_text(plan, rule)}"] if unknown else []
    left = _minutes(total / processes)
    return f"about {left} for what is left, with {processes} process(es), by {' and '.join(bases)}"


def missing_trials(plan: Plan) -> dict[str, int]:
    """Return how many trials of each stage are not finished; of a stage whose trials are not known yet, all."""
    missing = plan.counts()
    if plan.shapes is not None and not _has_clip(plan):
        return missing
    prepared = {job.name: result for job in plan.preparing() if (result := job.result()) is not None}
    missing["prepare"] -= len(prepared)
    if missing["prepare"]:
        return missing
    tuning = plan.tuning(prepared)
    tuned = {job.name: result for job in tuning if (result := job.result()) is not None}
    missing["tune"] -= len(tuned)
    if missing["tune"]:
        return missing
    testing = plan.testing(plan.choices(plan.candidates(tuned, prepared)), prepared)
    return {**missing, "test": sum(job.result() is None for job in testing)}


def _seconds_by_rule(plan: Plan) -> dict[str, float]:
    """Return the seconds of one trial of each stage by the rule; nothing for other data, or where epochs are set."""
    if plan.shapes is None or any(recipe.train.steps is None for recipe in plan.recipes()):
        return {}
    students = {
        kind: statistics.fmean(
            _student_seconds(plan.load(plan.settings(variant, setting, kind)))
            for variant in plan.study.variants
            for setting in variant.grid
        )
        for kind in ("tune", "test")
    }
    return {"prepare": PREPARE_SECONDS, **students}


def _student_seconds(recipe: Recipe) -> float:
    """Return the seconds that a student takes by the rule."""
    steps = recipe.train.steps or 0
    frozen = steps if recipe.train.encoders == "frozen" else recipe.train.frozen_steps
    return frozen * FROZEN_STEP_SECONDS + (steps - frozen) * FINETUNED_STEP_SECONDS


def _rule_text(plan: Plan, rule: dict[str, float]) -> str:
    trains = [recipe.train for recipe in plan.recipes()]
    frozen = any(train.encoders == "frozen" or train.frozen_steps for train in trains)
    steps = [FROZEN_STEP_SECONDS] * frozen + [FINETUNED_STEP_SECONDS] * any(t.encoders != "frozen" for t in trains)
    per_step = " or ".join(f"{seconds:g}" for seconds in steps)
    return f"{rule['prepare']:.0f} s per preparation, {per_step} s per step of a student"


def _time_left(tuning: int, tests: int | None, processes: int) -> Callable[[int, float], None]:
    """Return a function that prints, once after the first few trials, about how long the rest will take.

    `tests`: how many follow, or None if they take another time each.
    """
    few = min(tuning, max(3, 2 * processes))

    def on_progress(done: int, seconds: float) -> None:
        if done == few:
            each = seconds / done
            then = "" if tests is None else f", then {_minutes(each * tests)} of test"
            line = f"about {_minutes(each * (tuning - done))} of tuning left{then}, by the first {done}"
            tqdm.write(line, file=sys.stderr)  # above the progress bar

    return on_progress


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
