"""What a comparison refuses before anything runs: whatever would let a choice see test, or make it unfair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from teachclip.errors import RecipeError, TeachclipError
from teachclip.recipe.schema import Recipe
from teachclip.studies.gain_arms import Arm
from teachclip.studies.plan import Plan


def check_plan(plan: Plan) -> None:
    """Load the recipe with every override. Raises RecipeError, one line per problem."""
    found: dict[str, dict[str, None]] = {}
    for name, problem in _problems(plan):
        found.setdefault(problem, {})[name] = None
    if found:
        everyone = len(plan.comparison.arms)
        raise RecipeError(
            "\n".join(
                problem if len(names) == everyone else f"arm {', '.join(names)}: {problem}"
                for problem, names in found.items()
            )
        )


def _problems(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the name of an arm and what is wrong with it."""
    test, factors = None, None
    made: dict[str, Any] = {}
    for arm in _baseline_first(plan):
        for setting in arm.grid:
            try:
                recipe = plan.load(plan.settings(arm, setting))
            except TeachclipError as error:
                yield from ((arm.name, line) for line in str(error).splitlines())
                continue
            yield from ((arm.name, problem) for problem in _peeks(plan, recipe))
            own = recipe.data.model_dump(exclude={"select_on"})
            test = test or own
            if other := [key for key in own if own[key] != test[key]]:
                yield (
                    arm.name,
                    f"data.{other[0]} is not that of the baseline: all must be measured on the same data",
                )
            tried = recipe.student.temperature_scaling
            factors = factors if factors is not None else tried
            if not set(tried) <= set(factors):
                yield (
                    arm.name,
                    f"student.temperature_scaling is {tried}, a choice that the baseline does not have: {factors}",
                )
            for teacher in (teacher for teacher in recipe.teachers if teacher.training is not None):
                if made.setdefault(teacher.checkpoint, teacher.training) != teacher.training:
                    yield (
                        arm.name,
                        f"teachers.{teacher.label}.training is not that of another arm, but both write "
                        f"{teacher.checkpoint}; give it a checkpoint of its own",
                    )


def _baseline_first(plan: Plan) -> list[Arm]:
    return sorted(plan.comparison.arms, key=lambda arm: arm.name != plan.comparison.baseline)


def _peeks(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Say what would let the choice see test, or mix the seeds up."""
    data, more = recipe.data, recipe.losses.frame_sets.videos
    if more is not None and recipe.losses.uses_frame_sets and _overlap(more, data.videos):
        yield f"losses.frame_sets.videos is {more}, which may hold test videos; give a folder of other videos"
    if data.select_on == "test":
        yield "data.select_on is test: the checkpoint would be chosen on test; allowed: validation"
    elif plan.world is not None and data.validation is None:
        yield "data.validation is null: there is no validation split to choose on; give data.validation.videos=N"
    if plan.world is None:
        return
    home = Path(plan.places()["TEACHCLIP_RUNS"])
    places: dict[str, Path | None] = {f"data.{key}": getattr(data, key) for key in ("annotations", "train", "test")}
    places |= {"data.videos": data.videos, "stores": recipe.stores}
    places |= {f"teachers.{t.label}.checkpoint": Path(t.checkpoint) for t in recipe.teachers if t.training}
    for key, path in places.items():
        if path is not None and not path.is_relative_to(home):
            yield (
                f"{key} is {path} for every seed, but worlds makes new ones; write it with "
                "${SHAPES_ROOT:-runs/shapes} or ${TEACHCLIP_RUNS:-runs}, as recipes/shapes_xpool.yaml does"
            )


def _overlap(one: Path, other: Path) -> bool:
    """Whether one folder is the other, or lies in it."""
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def check_own_data(plan: Plan) -> None:
    """Read the annotations of the recipe's own data, before anything runs.

    Raises DataError or RecipeError if they have no validation or no test split, if a teacher is not there, or if set
    distillation would draw from what is tested on.
    """
    from teachclip.pipeline.build import build_catalog, build_selection
    from teachclip.pipeline.teachers import TeacherHandle
    from teachclip.pipeline.unpaired import check_unseen

    if plan.world is not None:
        return
    recipes = [plan.load(plan.settings(arm, setting)) for arm in plan.comparison.arms for setting in arm.grid]
    catalog = build_catalog(recipes[0])
    build_selection(recipes[0], catalog)
    if catalog.test is None:
        raise RecipeError(f"{plan.recipe.name}: the data has no test split to measure the chosen settings on")
    for recipe in recipes:
        check_unseen(recipe, catalog.test)
    for section in (section for recipe in recipes for section in recipe.teachers if section.training is None):
        if not TeacherHandle(section, torch.device("cpu")).exists():
            raise RecipeError(f"teacher {section.label}: {section.checkpoint} does not exist; give its path")
