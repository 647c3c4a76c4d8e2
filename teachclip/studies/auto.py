"""`teachclip study --auto`: which of the standing recipes to take for your own data, within a budget."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from teachclip.console import interruptible, log
from teachclip.errors import RecipeError, TeachclipError
from teachclip.pipeline.build import build_catalog, build_sampler, check_student_training, training_steps
from teachclip.processes import Processes, usable_cores
from teachclip.recipe.loading import dump_recipe, load_recipe, recipe_path, value_text
from teachclip.recipe.schema import Recipe
from teachclip.store.files import read_json, write_atomic
from teachclip.studies.auto_report import auto_markdown, evidence
from teachclip.studies.checks import check_own_data, check_plan, variant_problems
from teachclip.studies.halving import Budget, Halving, Price, Round, fit_halving
from teachclip.studies.jobs import Train
from teachclip.studies.plan import Plan, Results, recipe_label
from teachclip.studies.results import VariantRuns
from teachclip.studies.study_file import Study, find_study, load_study
from teachclip.studies.trials import only_one, run_trials
from teachclip.studies.variants import Settings, Variant, grid

STANDING = ("adapters", "published", "default", "all_options")
"""The recipes to take one of, by their names in recipes/studies/own_data.yaml."""
WITHOUT_FRAME_SETS = "published_adapters"
"""Tried in place of the default recipe where frame sets do not fit."""
BASELINE = "undistilled"
RATES = (1e-4, 3e-4, 1e-3)
PILOTS = (32, 8)
"""With a budget in minutes short trainings, of so small shares of the steps, tell what a training takes."""


@dataclass(frozen=True)
class Candidate:
    """A standing recipe at a base rate, and what validation said of it, round by round."""

    variant: Variant
    setting: Settings
    scores: tuple[tuple[float, float], ...] = ()
    """Per round the mean recall at 1 over the seeds, and the mean sum of all recalls, which decides a tie."""

    @property
    def label(self) -> str:
        """How reports call it."""
        return f"{self.variant.label}, {' '.join(self.setting)}"


def auto(
    recipe: str | Path,
    *,
    trainings: float | None = None,
    minutes: float | None = None,
    rates: Sequence[float] = RATES,
    test_seeds: int = 3,
    out: str | Path | None = None,
    processes: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Choose one of the standing recipes for the data of a recipe, write it, and return the evidence.

    Candidates are the standing recipes and the undistilled student, each at every one of `rates` as `optimizer.lr`.
    Successive halving on validation leaves one; it and the undistilled student are then trained on `test_seeds` new
    seeds and measured on test, which is read there alone. `trainings`: what this may cost, in whole trainings of a
    student; or `minutes`, by what short trainings took, without what has to be made once in any case: decoded
    videos, teachers and their relevance. None of both: 20 trainings. `out`: folder for everything (default
    runs/studies/auto-RECIPE). The same call continues after an interruption. `dry_run`: check, print the plan, and
    return {}.

    Raises RecipeError for a budget that is too small or the folder of another recipe, and what `study` raises.
    """
    path = recipe_path(recipe)
    runs = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    folder = Path(out) if out else runs / "studies" / f"auto-{recipe_label(path)}"
    check_own_folder(folder, path)
    plan = auto_plan(folder, path, rates, test_seeds)
    check_plan(plan)
    check_own_data(plan)
    steps = whole_steps(plan)
    processes = processes or (1 if torch.cuda.is_available() else usable_cores())
    budget = Budget(
        20.0 if trainings is None else trainings, "trainings", lambda count, length: count * length / steps
    )
    _log_candidates(plan, steps)
    if minutes is None:
        halving = _fit(plan, steps, budget)
        _log_halving(halving, budget)
    if dry_run:
        log("dry run passed; nothing was run")
        return {}
    with interruptible(), only_one(folder):
        prepared = run_trials(plan.preparing(), processes, "prepare", threads=usable_cores())
        if minutes is not None:
            budget = Budget(minutes, "minutes", _price(plan, steps, prepared, processes))
            halving = _fit(plan, steps, budget)
            _log_halving(halving, budget)
        return _run(plan, halving, prepared, processes, budget)


def check_own_folder(folder: Path, recipe: Path) -> None:
    """Raise RecipeError if the folder has the result of another recipe."""
    try:
        other = Path(read_json(folder / "auto.json")["recipe"]).resolve()
    except (OSError, ValueError, LookupError, TypeError):
        return
    if other != recipe.resolve():
        raise RecipeError(f"{folder}: has the result for {other}; give another folder as --out")


def auto_plan(folder: Path, recipe: Path, rates: Sequence[float], test_seeds: int) -> Plan:
    """Return the plan that all trials follow from, without the standing recipes that do not fit to this recipe.

    They are those that need a teacher where there is none, and those with a problem that the undistilled student does
    not have, which is logged.
    """
    file = load_study(find_study("own_data"))
    settings = grid({"optimizer.lr": list(dict.fromkeys(f"{rate:g}" for rate in rates))})
    taught = bool(load_recipe(recipe, []).teachers)
    names = (BASELINE, *((*STANDING, WITHOUT_FRAME_SETS) if taught else ("adapters",)))
    variants = tuple(replace(variant, grid=settings) for variant in file.variants if variant.name in names)
    study: Study = replace(
        file,
        name="auto",
        title=f"Which recipe to take: {recipe_label(recipe)}",
        test_seeds=tuple(range(file.test_seeds[0], file.test_seeds[0] + test_seeds)),
        variants=variants,
        pairs=(),
        baseline=BASELINE,
        teachers=False,  # they would be measured on test
    )
    problems = variant_problems(Plan(folder, recipe, study, None))
    left_out = {*problems, *(() if "default" in problems else (WITHOUT_FRAME_SETS,))}
    kept = tuple(variant for variant in variants if variant.name not in left_out)
    if BASELINE in problems or len(kept) < 2:  # a problem of the recipe itself, which `check_plan` raises
        return Plan(folder, recipe, study, None)
    for variant in variants:
        if variant.name in problems:
            log(
                f"{variant.label} does not fit to {recipe.name} and is not tried: {'; '.join(problems[variant.name])}"
            )
    return Plan(folder, recipe, replace(study, variants=kept), None)


def whole_steps(plan: Plan) -> int:
    """Return the steps of the recipe's training, also where it gives epochs. Raises
    DataError without captions, RecipeError if encoders never move.
    """
    recipe = plan.load(plan.study.common)
    split = build_catalog(recipe).train
    split.require_captions("study --auto tries recipes that learn from captions")
    return training_steps(recipe.train, build_sampler(recipe.train, split, seed=recipe.seed).batches_per_epoch)


def halve(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the `count` best candidates by their last round, best first, and the best baseline in any case."""
    ranked = sorted(candidates, key=lambda candidate: candidate.scores[-1], reverse=True)
    kept = ranked[:count]
    if not any(candidate.variant.name == BASELINE for candidate in kept):
        kept[-1] = next(candidate for candidate in ranked if candidate.variant.name == BASELINE)
    return kept


def _fit(plan: Plan, steps: int, budget: Budget) -> Halving:
    variants, seeds = plan.study.variants, len(plan.study.test_seeds)
    return fit_halving(sum(len(variant.grid) for variant in variants), steps, 2 * seeds, budget)


def _run(plan: Plan, halving: Halving, prepared: Results, processes: int, budget: Budget) -> dict[str, Any]:
    """Halve, measure who is left and the baseline on test, and write the report and the recipe."""
    left = [Candidate(variant, setting) for variant in plan.study.variants for setting in variant.grid]
    dropped: list[Candidate] = []
    for number, this_round in enumerate(halving.rounds):
        kept = left if number == 0 else halve(left, this_round.count)
        dropped += [candidate for candidate in left if candidate not in kept]
        label = f"round {number + 1}/{len(halving.rounds)}: {this_round.steps} steps"
        left = _measure(plan, kept, this_round, halving, prepared, processes, label)
    ranked = sorted(left, key=lambda candidate: candidate.scores[-1], reverse=True)
    winner = ranked[0]
    baseline = next(candidate for candidate in ranked if candidate.variant.name == BASELINE)
    runs = _test(plan, [winner, baseline], prepared, processes)
    result = {
        "recipe": str(plan.recipe.resolve()),
        "chosen": {"variant": winner.variant.name, "label": winner.variant.label, "settings": list(winner.setting)},
        "budget": {"total": budget.total, "unit": budget.unit, "planned": halving.cost},
        "rounds": [{"steps": each.steps, "candidates": each.count} for each in halving.rounds],
        "dev_seeds": list(range(1, halving.seeds + 1)),
        "candidates": [_row(candidate) for candidate in [*ranked, *reversed(dropped)]],
        **evidence(runs[winner.variant.name], runs[BASELINE], plan, prepared),
    }
    chosen, result["uncaptioned"] = chosen_recipe(plan, winner)
    write_atomic(plan.folder / "recipe.yaml", dump_recipe(chosen).encode())
    write_atomic(plan.folder / "auto.json", json.dumps(result, indent=1).encode())
    text = auto_markdown(result, plan.folder / "recipe.yaml")
    write_atomic(plan.folder / "report.md", text.encode())
    print(text, flush=True)
    log(f"recipe: {plan.folder / 'recipe.yaml'}; report: {plan.folder / 'report.md'}")
    return result


def chosen_recipe(plan: Plan, winner: Candidate) -> tuple[Recipe, str]:
    """Return the recipe to write, and what there is to say of its videos without captions, "" if it has none.

    It learns from them as the recipe says, though no trial did, unless a student cannot be trained on them that way.
    """
    settings = [*plan.settings(winner.variant, winner.setting), f"output={plan.folder / 'run'}"]
    folder = load_recipe(plan.recipe, []).data.uncaptioned
    if folder is None:
        return load_recipe(plan.recipe, settings), ""
    chosen = load_recipe(plan.recipe, [*settings, f"data.uncaptioned={value_text(str(folder))}"])
    try:
        check_student_training(chosen, build_catalog(chosen), Processes())
    except TeachclipError as error:
        problems = str(error).replace(f"{chosen.name}: ", "").splitlines()
        why = f"which it cannot learn from: {'; '.join(problems)}"
        return load_recipe(plan.recipe, settings), f"It excludes data.uncaptioned, {folder}, {why}."
    return chosen, f"It learns from data.uncaptioned, {folder}, too, which this comparison excluded."


def _row(candidate: Candidate) -> dict[str, Any]:
    return {"label": candidate.label, "recall_at_1": [score[0] for score in candidate.scores]}


def _measure(
    plan: Plan,
    candidates: Sequence[Candidate],
    this_round: Round,
    halving: Halving,
    prepared: Results,
    processes: int,
    label: str,
) -> list[Candidate]:
    """Train candidates for the steps of a round on every dev seed, and add what validation says of them."""
    seeds, whole = range(1, halving.seeds + 1), halving.rounds[-1].steps
    jobs = {
        (row, seed): _job(plan, "tune", seed, candidate, prepared, _length(plan, candidate, this_round.steps, whole))
        for row, candidate in enumerate(candidates)
        for seed in seeds
    }
    results = run_trials(list(jobs.values()), processes, label)
    scored = []
    for row, candidate in enumerate(candidates):
        measured = [results[jobs[row, seed].name]["validation"] for seed in seeds]
        recall = statistics.fmean(each["t2v"]["recall_at_1"] for each in measured)
        score = (recall, statistics.fmean(each["sum_of_recalls"] for each in measured))
        scored.append(replace(candidate, scores=(*candidate.scores, score)))
    return scored


def _test(plan: Plan, candidates: Sequence[Candidate], prepared: Results, processes: int) -> dict[str, VariantRuns]:
    """Train candidates on the test seeds and measure them on test: the one time that it is read."""
    jobs = {
        (candidate.variant.name, seed): _job(plan, "test", seed, candidate, prepared)
        for candidate in candidates
        for seed in plan.study.test_seeds
    }
    results = run_trials(list(jobs.values()), processes, "test")
    return {
        candidate.variant.name: VariantRuns(
            candidate.variant.name,
            candidate.variant.label,
            [results[jobs[candidate.variant.name, seed].name]["test"] for seed in plan.study.test_seeds],
        )
        for candidate in candidates
    }


def _job(plan: Plan, kind: str, seed: int, candidate: Candidate, prepared: Results, length: Settings = ()) -> Train:
    """Return a training of a candidate, of the recipe's own length or another."""
    return plan.train_job(kind, seed, candidate.variant, (*candidate.setting, *length), prepared)


def _length(plan: Plan, candidate: Candidate, steps: int, whole: int) -> Settings:
    """Return what makes a training of `whole` steps one of `steps`, with the same share of frozen steps.

    It validates as often as the recipe says: once an epoch unless it says otherwise.
    """
    train = plan.load(plan.settings(candidate.variant, candidate.setting)).train
    length = ["train.epochs=null", f"train.steps={steps}"]
    length += [f"train.evaluate_every={min(train.evaluate_every, steps)}"] if train.evaluate_every else []
    length += [f"train.frozen_steps={train.frozen_steps * steps // whole}"] if train.frozen_steps else []
    return tuple(length)


def _price(plan: Plan, steps: int, prepared: Results, processes: int) -> Price:
    """Return what trainings take in minutes, by short ones of the costliest candidate, of two lengths.

    As many of a length run at once as candidates will, as each is slower beside others.
    """
    costliest = Candidate(plan.study.variants[-1], plan.study.variants[-1].grid[0])
    lengths = sorted({max(1, steps // share) for share in PILOTS})
    at_once = min(processes, sum(len(variant.grid) for variant in plan.study.variants))
    seconds = []
    for count in lengths:
        length = _length(plan, costliest, count, steps)
        jobs = [_job(plan, "tune", seed, costliest, prepared, length) for seed in range(1, at_once + 1)]
        for job in jobs:
            if (job.result() or {"seconds": None})["seconds"] is None:  # interrupted: its time is that of a part
                shutil.rmtree(job.output, ignore_errors=True)
                job.result_file.unlink(missing_ok=True)
        run_trials(jobs, at_once, "time")
        seconds.append(statistics.fmean(float(read_json(job.result_file)["seconds"]) for job in jobs))
    slope = max(0.0, (seconds[-1] - seconds[0]) / max(1, lengths[-1] - lengths[0]))
    start = max(0.0, seconds[0] - slope * lengths[0])
    log(
        f"a training takes about {(start + slope * steps) / 60:.1f} min where {at_once} run at once: {start:.0f} s "
        f"and {slope:.3f} s per step"
    )
    return lambda count, length: math.ceil(count / processes) * (start + slope * length) / 60


def _log_candidates(plan: Plan, steps: int) -> None:
    """Print what is chosen from."""
    if (folder := load_recipe(plan.recipe, []).data.uncaptioned) is not None:
        log(f"data.uncaptioned is excluded from the comparison: no trial knows which of {folder} are test videos")
    for variant in plan.study.variants:
        log(f"candidate {variant.label}: {' '.join(variant.fixed)}")
    if not load_recipe(plan.recipe, []).teachers:
        log("the recipe has no teachers: only recipes without them are tried")
    rates = ", ".join(setting[0].partition("=")[2] for setting in plan.study.variants[0].grid)
    log(f"each at optimizer.lr {rates}; a whole training is {steps} steps")


def _log_halving(halving: Halving, budget: Budget) -> None:
    stages = ", then ".join(f"{each.count} x {each.steps} steps" for each in halving.rounds)
    seeds = f" on {halving.seeds} dev seeds" if halving.seeds > 1 else ""
    log(f"at most {stages}{seeds}; then test: {halving.cost:.1f} of {budget.total:g} {budget.unit}")
