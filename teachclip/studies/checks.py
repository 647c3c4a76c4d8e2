"""What a study refuses before anything runs: whatever would let a choice see test, or make it unfair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from teachclip.data.formats import withheld
from teachclip.errors import RecipeError, TeachclipError
from teachclip.pipeline.build import build_catalog, build_selection
from teachclip.pipeline.conditions import possible_recipes
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.unpaired import check_unseen
from teachclip.recipe.conditions import undone
from teachclip.recipe.schema import Recipe
from teachclip.studies.plan import Plan
from teachclip.studies.variants import Settings, Variant, keys_of

SEED_FILES = ("annotations", "train", "test", "uncaptioned")
"""Keys of `data` that name files of one Shapes dataset."""


def check_plan(plan: Plan) -> None:
    """Load the recipe with every override. Raises RecipeError, one line per problem."""
    variants_by_problem: dict[str, list[str]] = {}
    for name, problems in variant_problems(plan).items():
        for problem in problems:
            variants_by_problem.setdefault(problem, []).append(name)
    if variants_by_problem:
        everyone = len(plan.study.variants)
        raise RecipeError(
            "\n".join(
                problem if len(names) == everyone else f"variant {', '.join(names)}: {problem}"
                for problem, names in variants_by_problem.items()
            )
        )


def variant_problems(plan: Plan) -> dict[str, list[str]]:
    """Return what is wrong with the recipes of each variant that has a problem, each once, by its name."""
    problems: dict[str, dict[str, None]] = {}
    for name, problem in _problems(plan):
        problems.setdefault(name, {})[problem] = None
    return {name: list(lines) for name, lines in problems.items()}


def check_different(plan: Plan) -> None:
    """Raise RecipeError, one line, if two variants differ in nothing: their settings give the same recipes."""
    first: dict[frozenset[str], str] = {}
    for variant in plan.study.variants:
        recipes = frozenset(plan.load(plan.settings(variant, setting)).model_dump_json() for setting in variant.grid)
        other = first.setdefault(recipes, variant.name)
        if other != variant.name:
            raise RecipeError(
                f"variants {other} and {variant.name} differ in nothing: their settings give the same recipes; "
                "change the `set` of one, or remove it"
            )


def _problems(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the name of a variant and what is wrong with it."""
    test, factors = None, None
    made: dict[str, Any] = {}
    for variant in _baseline_first(plan):
        for setting in variant.grid:
            try:
                recipe = plan.load(plan.settings(variant, setting))
            except TeachclipError as error:
                yield from ((variant.name, line) for line in str(error).splitlines())
                continue
            yield from ((variant.name, problem) for problem in _tuning_problems(plan, variant, setting))
            yield from ((variant.name, problem) for problem in _leaks(plan, recipe))
            yield from ((variant.name, problem) for problem in _measure_problems(plan, recipe))
            yield from ((variant.name, problem) for problem in _untaught(variant, setting, recipe))
            data = recipe.data.model_dump(exclude={"select_on", "texts", "uncaptioned"})  # but for what teaches
            data["format"] = (data["format"] or "").removeprefix(withheld.PREFIX)
            test = test or data
            if other := [key for key in data if data[key] != test[key]]:
                yield (
                    variant.name,
                    f"data.{other[0]} is not that of the baseline: all must be measured on the same data",
                )
            tried = recipe.student.temperature_scaling
            factors = factors if factors is not None else tried
            if not set(tried) <= set(factors):
                yield (
                    variant.name,
                    f"student.temperature_scaling is {tried}, a choice that the baseline does not have: {factors}",
                )
            for teacher in (teacher for teacher in recipe.teachers if teacher.training is not None):
                if made.setdefault(teacher.checkpoint, teacher.training) != teacher.training:
                    yield (
                        variant.name,
                        f"teachers.{teacher.label}.training is not that of another variant, but both write "
                        f"{teacher.checkpoint}; give it a checkpoint of its own",
                    )


def _tuning_problems(plan: Plan, variant: Variant, setting: Settings) -> Iterator[str]:
    """Yield why a setting cannot be tried with the `tune_set` of the study."""
    if "tune" not in plan.kinds:
        return
    try:
        recipe = plan.load(plan.settings(variant, setting, "tune"))
    except TeachclipError as error:
        yield from (f"with tune_set: {line}" for line in str(error).splitlines())
        return
    for key, condition in undone(recipe.model_dump(mode="json"), plan.study.tune_set):
        yield f"tune_set: {key} is also a matter of {condition}, which may change it again; remove it"
    of_encoders = OF_ENCODERS if recipe.train.encoders == "frozen" or recipe.optimizer.clip_lr == 0 else ()
    unused = (*of_encoders, *(("train.lora_rank",) if recipe.train.encoders != "lora" else ()))
    for key in keys_of(setting):
        if key.startswith(unused):
            yield f"tune_set: {key}, which variants choose, makes no difference to these trials; remove one of both"


OF_ENCODERS = (
    *("optimizer.clip_lr", "optimizer.layer_decay", "optimizer.l2_start"),
    *("train.lora_rank", "train.frozen_steps", "student.wise_ft"),
)
"""What makes no difference to encoders that do not train."""

TEACHING = ("losses.video_text.", "losses.frame_text.", "teaching.", "teachers.")
"""Keys that say how a teacher teaches."""


def _untaught(variant: Variant, setting: Settings, recipe: Recipe) -> Iterator[str]:
    """Yield the keys of teaching that a variant sets or tunes though nobody teaches it.

    A variant that takes its teachers away itself may be like one that says how they teach.
    """
    if recipe.teachers:
        return
    takes_away = any(text.replace(" ", "") == "teachers=[]" for text in variant.fixed)
    keys = [text.partition("=")[0] for text in (*setting, *(() if takes_away else variant.fixed))]
    for key in dict.fromkeys(key for key in keys if key.startswith(TEACHING)):
        yield f"{key} says how a teacher teaches, but the recipe has no teachers: it changes nothing; remove it"


def _baseline_first(plan: Plan) -> list[Variant]:
    return sorted(plan.study.variants, key=lambda variant: variant.name != plan.study.baseline)


def _leaks(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Yield what would let the choice see test, or mix the seeds up."""
    data = recipe.data
    terms = [each.losses.frame_sets for each in possible_recipes(recipe)]
    for more in {term.videos for term in terms if term.is_used and term.videos is not None}:
        if not _overlap(more, data.videos):
            continue
        yield f"losses.frame_sets.videos is {more}, which may hold test videos; give a folder of other videos"
    if data.uncaptioned is not None and plan.tuned and _overlap(data.uncaptioned, data.videos):
        yield (
            f"data.uncaptioned is {data.uncaptioned}, which may hold test videos, and trials that choose settings do "
            "not know which; give every variant one setting and no pooling_factors, or a folder of other videos"
        )
    if data.select_on == "test":
        yield "data.select_on is test: the checkpoint would be chosen on test; allowed: validation"
    elif plan.shapes is not None and data.validation is None:
        yield "data.validation is null: there is no validation split to choose on; give data.validation.videos=N"
    if plan.shapes is None:
        return
    home = Path(plan.places()["TEACHCLIP_RUNS"])
    places: dict[str, Path | None] = {f"data.{key}": getattr(data, key) for key in SEED_FILES}
    places |= {"data.videos": data.videos, "stores": recipe.stores}
    places |= {f"teachers.{t.label}.checkpoint": Path(t.checkpoint) for t in recipe.teachers if t.training}
    for key, path in places.items():
        if path is not None and not path.is_relative_to(home):
            yield (
                f"{key} is {path} for every seed, but `shapes` makes a dataset per seed; write it with "
                "${SHAPES_ROOT:-runs/shapes} or ${TEACHCLIP_RUNS:-runs}, as recipes/shapes_xpool.yaml does"
            )


def _measure_problems(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Yield why the keys `pooling_factors` and `frame_probe` cannot be used with a recipe."""
    keys = {"pooling_factors": plan.study.pooling_factors, "frame_probe": plan.study.frame_probe}
    for key in (key for key, value in keys.items() if value):
        if recipe.train.encoders != "frozen":
            yield f"{key} needs train.encoders=frozen, got {recipe.train.encoders}; remove {key}"
    if plan.study.pooling_factors and recipe.student.temperature_scaling:
        yield (
            f"student.temperature_scaling is {recipe.student.temperature_scaling} beside pooling_factors: the "
            "pooling temperature would be chosen twice; set student.temperature_scaling=[]"
        )


def _overlap(one: Path, other: Path) -> bool:
    """Whether one folder is the other, or lies in it."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def check_own_data(plan: Plan) -> int | None:
    """Read the annotations of the recipe's own data, before anything runs. Returns the number of test captions.

    None, and no check, if the study makes its data. Raises DataError or RecipeError if they have no validation or no
    test split, or one that is smaller than the study's gallery or has videos without captions for it, if a teacher
    does not exist, or if frame-set distillation would draw from what is tested on.
    """
    if plan.shapes is not None:
        return None
    recipes = plan.recipes()
    catalog = build_catalog(recipes[0])
    build_selection(recipes[0], catalog)
    if catalog.test is None:
        raise RecipeError(f"{plan.recipe.name}: the data has no test split to measure the chosen settings on")
    if plan.study.gallery is not None:
        catalog.test.require_captions("gallery needs the rank of every query")
        if plan.study.gallery > (videos := len(catalog.test.videos)):
            raise RecipeError(f"gallery: {plan.study.gallery}; allowed: 2 to {videos}, the videos of the test split")
    for each in (each for recipe in recipes for each in possible_recipes(recipe)):
        check_unseen(each, catalog.test)
    for section in (section for recipe in recipes for section in recipe.teachers if section.training is None):
        if not TeacherHandle(section, torch.device("cpu")).exists():
            raise RecipeError(f"teacher {section.label}: {section.checkpoint} does not exist; give its path")
    return len(catalog.test.captions)
