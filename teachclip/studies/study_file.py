"""The file of `teachclip ablate`: which arms are compared, on which seeds, and what each of them may choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from teachclip.errors import RecipeError
from teachclip.recipe.data_section import Count, Section
from teachclip.recipe.loading import load_section, value_text
from teachclip.registry import closest
from teachclip.studies.gain_arms import Arm, Settings, grid

FIRST_SEED = 300
OURS = ("seed", "output", "stores")
"""Keys of the recipe that the comparison sets itself."""

Values = Annotated[list[Any], Field(min_length=1)]


def _seeds(value: Any) -> Any:
    """Check a number of seeds, or a list of them."""
    for count in [value] if not isinstance(value, list) else value:
        if isinstance(count, bool) or not isinstance(count, int) or (count < 1 and count is value):
            raise ValueError("must be a number of seeds, 1 or more, or a list of seeds")
    return value


Seeds = Annotated[Any, AfterValidator(_seeds)]


class Worlds(Section):
    """Every seed is a new embedded world: videos, captions and teachers."""

    preset: str = Field("default", description="which kind of world")
    train_videos: Count | None = Field(None, description="with those for validation; null: as the preset says")
    test_videos: Count | None = Field(None, description="null: as the preset says")
    clip_from: str | None = Field(None, description="folder of the world whose CLIP all seeds start from")


class ArmEntry(Section):
    """One way to train a student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    label: str = Field("", description="what tables call it; default: the name")
    like: str | None = Field(None, description="arm whose `set` and settings it starts from")
    set: list[str] = Field(default_factory=list, description="overrides of the recipe that make the arm what it is")
    grid: dict[str, Values] | None = Field(None, description="recipe key -> values; all combinations are tried")
    settings: list[list[str]] | None = Field(None, min_length=1, description="lists of overrides, in place of a grid")


class ArmsFile(Section):
    """A whole comparison."""

    title: str
    worlds: Worlds | None = Field(None, description="null: the recipe's own data; a seed is the student's")
    tune_seeds: list[int] = Field(
        [200, 201], min_length=1, description="seeds on whose validation split settings are chosen"
    )
    seeds: Seeds = Field(8, description="fresh seeds to measure on: how many (from 300), or which")
    set: list[str] = Field(default_factory=list, description="overrides for every arm")
    grid: dict[str, Values] | None = Field(None, description="the grid of arms without one of their own")
    settings: list[list[str]] | None = Field(None, min_length=1, description="lists of overrides, in place of a grid")
    arms: list[ArmEntry] = Field(min_length=2)
    baseline: str | None = Field(None, description="arm that the others are compared with; default: the first")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="pairs [arm, other]; default: every arm and the baseline"
    )
    teachers: bool = Field(True, description="also measure zero-shot and the teachers on the test splits")


@dataclass(frozen=True)
class Comparison:
    """What a file of arms says, with nothing left to look up."""

    title: str
    worlds: Worlds | None
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    common: Settings
    """Overrides for every arm."""
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    """What is compared with what."""
    baseline: str
    """Name of the arm whose choices no other arm may exceed."""
    teachers: bool


def load_comparison(path: str | Path) -> Comparison:
    """Read a file of arms. Raises RecipeError with all problems of the file, one per line."""
    path = Path(path)
    file = load_section(path, ArmsFile, "file of arms")
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + file.seeds) if isinstance(file.seeds, int) else file.seeds)
    problems = [*_seed_problems(file, seeds), *_name_problems(file), *_override_problems(file)]
    arms: tuple[Arm, ...] = ()
    if not problems:
        arms = tuple(_resolve(entry, file) for entry in file.arms)
        problems = list(_budget_problems(arms))
    if problems:
        raise RecipeError("\n".join(f"{path.name}: {problem}" for problem in problems))
    baseline = file.baseline or arms[0].name
    pairs = [(name, other) for name, other in file.compare or ()]
    if file.compare is None:
        pairs = [(arm.name, baseline) for arm in arms if arm.name != baseline]
    return Comparison(
        title=file.title,
        worlds=file.worlds,
        tune_seeds=tuple(file.tune_seeds),
        seeds=seeds,
        common=tuple(file.set),
        arms=arms,
        pairs=tuple(pairs),
        baseline=baseline,
        teachers=file.teachers,
    )


def with_preset(comparison: Comparison, preset: str) -> Comparison:
    """Return the comparison in worlds of another preset. Raises RecipeError if it makes no worlds."""
    if comparison.worlds is None:
        raise RecipeError(f"--preset {preset}: the file of arms has no `worlds`; its data is the recipe's own")
    title = f"{comparison.title}: {preset}"
    return replace(comparison, title=title, worlds=comparison.worlds.model_copy(update={"preset": preset}))


def _seed_problems(file: ArmsFile, seeds: Sequence[int]) -> Iterator[str]:
    for key, values in (("tune_seeds", file.tune_seeds), ("seeds", seeds)):
        if not values:
            yield f"{key}: give at least one seed"
        if twice := _twice(values):
            yield f"{key}: {twice} stands twice"
        if values and min(values) < 0:
            yield f"{key}: {min(values)} is negative; allowed: 0 or more"
    if both := sorted({*file.tune_seeds} & {*seeds}):
        yield (
            f"seeds: {', '.join(map(str, both))} also in tune_seeds: what was chosen with a seed may not be measured "
            "with it; take other seeds"
        )


def _name_problems(file: ArmsFile) -> Iterator[str]:
    names = [entry.name for entry in file.arms]
    if twice := _twice([name.lower() for name in names]):
        yield f"arms: name {twice!r} stands twice"
    if twice := _twice([entry.label or entry.name for entry in file.arms]):
        yield f"arms: label {twice!r} stands twice; tables tell arms apart by it"
    for name in names:
        if name == "zero_shot" or name.startswith("teacher_"):
            yield f"arms.{name}: the report calls another model so; give the arm another name"
    asked = [(f"arms.{entry.name}.like", entry.like) for entry in file.arms if entry.like]
    asked += [("baseline", file.baseline)] if file.baseline is not None else []
    asked += [("compare", name) for pair in file.compare or () for name in pair]
    for where, name in asked:
        if name not in names:
            yield f"{where}: no arm {name!r}{closest(str(name), names)}; there are: {', '.join(names)}"
    yield from (f"compare: {pair[0]} with itself" for pair in file.compare or () if pair[0] == pair[1])
    parents = {entry.name: entry.like for entry in file.arms}
    for entry in file.arms:
        seen, at = [entry.name], entry.like
        while at in parents and at not in seen:
            seen, at = [*seen, str(at)], parents[str(at)]
        if at == entry.name:
            yield f"arms.{entry.name}.like: goes in a circle: {' -> '.join([*seen, entry.name])}"


def _override_problems(file: ArmsFile) -> Iterator[str]:
    places: list[tuple[str, ArmsFile | ArmEntry]] = [("", file)]
    places += [(f"arms.{entry.name}.", entry) for entry in file.arms]
    for where, part in places:
        if part.grid is not None and part.settings is not None:
            yield f"{where}settings: give a grid or settings, not both"
        lists = [("set", part.set), *(("settings", setting) for setting in part.settings or ())]
        for name, overrides in lists:
            for text in overrides:
                key, equals, _ = text.partition("=")
                if not equals or not key:
                    yield f"{where}{name}: {text!r}: write it as section.key=value"
                if key in OURS:
                    yield f"{where}{name}: {key} is set by the comparison itself"
        yield from (f"{where}grid: {key} is set by the comparison itself" for key in part.grid or () if key in OURS)


def _budget_problems(arms: Sequence[Arm]) -> Iterator[str]:
    """Arms that try more settings win more often by luck, so all must try as many."""
    if len({len(arm.grid) for arm in arms}) > 1:
        counts = ", ".join(f"{arm.name} {len(arm.grid)}" for arm in arms)
        yield f"arms: every arm must have as many settings to choose from as the others, got {counts}"
    for arm in arms:
        if twice := _twice([" ".join(setting) for setting in arm.grid]):
            yield f"arms.{arm.name}: the setting {twice!r} stands twice"


def _resolve(entry: ArmEntry, file: ArmsFile) -> Arm:
    """Return an arm with what it takes from the one that it is like."""
    known = {other.name: other for other in file.arms}
    line = [entry]
    while line[-1].like:
        line.append(known[line[-1].like])
    fixed = tuple(text for part in reversed(line) for text in part.set)
    own: Sequence[ArmEntry | ArmsFile] = [part for part in line if part.grid is not None or part.settings is not None]
    return Arm(entry.name, entry.label or entry.name, fixed, _settings_of((*own, file)[0]))


def _settings_of(part: ArmEntry | ArmsFile) -> tuple[Settings, ...]:
    if part.settings is not None:
        return tuple(tuple(setting) for setting in part.settings)
    values: Mapping[str, Sequence[Any]] = part.grid or {}
    return grid({key: [value_text(value) for value in options] for key, options in values.items()})


def _twice(values: Sequence[Any]) -> Any:
    return next((value for value, count in Counter(values).items() if count > 1), None)
