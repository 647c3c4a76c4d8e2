"""The study file of `teachclip study`: which variants are compared, on which seeds, and what each may choose from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from teachclip.errors import RecipeError
from teachclip.recipe.data_section import Count, Section
from teachclip.recipe.loading import find_recipe, load_section, value_text
from teachclip.registry import closest
from teachclip.studies.design import Design, DesignSection, build_design, check_told_apart
from teachclip.studies.variants import (
    Settings,
    Variant,
    budget_problems,
    grid,
    repeated,
    tune_set_problems,
)

FIRST_TEST_SEED = 300
NOT_BESIDE_A_DESIGN = (
    *("variants", "grid", "settings", "tune_set", "baseline", "compare"),
    *("pooling_factors", "frame_probe", "teacher_table", "gallery"),
)
SET_BY_THE_STUDY = ("seed", "batch_seed", "output", "stores")
"""Keys of the recipe that the study sets itself."""

Values = Annotated[list[Any], Field(min_length=1)]


def _check_seeds(value: Any) -> Any:
    """Check a number of seeds, or a list of them."""
    for count in [value] if not isinstance(value, list) else value:
        if isinstance(count, bool) or not isinstance(count, int) or (count < 1 and count is value):
            raise ValueError("must be a number of seeds, 1 or more, or a list of seeds")
    return value


Seeds = Annotated[Any, AfterValidator(_check_seeds)]


class ShapesSection(Section):
    """Every seed is a new Shapes dataset: videos, captions and teachers."""

    preset: str = Field("default", description="preset of the Shapes dataset")
    train_videos: Count | None = Field(None, description="with those for validation; null: as the preset defines")
    test_videos: Count | None = Field(None, description="null: as the preset defines")
    clip_from: str | None = Field(None, description="folder of the Shapes dataset whose CLIP all seeds start from")
    texts: str | None = Field(
        None,
        description="grammar whose texts every seed gets as ${TEACHCLIP_RUNS}/shapes_texts.txt: a name "
        "that `teachclip texts bank --help` lists, or a file",
    )


class VariantEntry(Section):
    """One way to train a student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    label: str = Field("", description="its name in tables; default: the name")
    like: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*/)?[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="variant whose `set` and settings it starts from; STUDY/VARIANT: one of another study, its `set` "
        "alone",
    )
    set: list[str] = Field(default_factory=list, description="overrides of the recipe that define the variant")
    grid: dict[str, Values] | None = Field(None, description="recipe key -> values; all combinations are tried")
    settings: list[list[str]] | None = Field(None, min_length=1, description="lists of overrides, in place of a grid")


class StudyFile(Section):
    """A whole study."""

    title: str
    recipe: str | None = Field(None, description="recipe file, or the name of one in recipes/; null: --recipe")
    shapes: ShapesSection | None = Field(None, description="null: the recipe's own data; a seed is the student's")
    dev_seeds: list[int] = Field(
        [200, 201], min_length=1, description="seeds on whose validation split settings are chosen"
    )
    test_seeds: Seeds = Field(8, description="seeds to measure on: how many (from 300), or a list")
    set: list[str] = Field(default_factory=list, description="overrides for every variant")
    grid: dict[str, Values] | None = Field(None, description="the grid of variants without one of their own")
    settings: list[list[str]] | None = Field(None, min_length=1, description="lists of overrides, in place of a grid")
    tune_set: list[str] = Field(
        default_factory=list,
        description="overrides of train, optimizer and student.wise_ft for the tuning trials only, which may be "
        "cheaper: train.encoders=frozen",
    )
    variants: list[VariantEntry] = Field(default_factory=list, description="two or more, or a design")
    design: DesignSection | None = Field(None, description="factors whose effects are told, in place of variants")
    baseline: str | None = Field(None, description="variant that the others are compared with; default: the first")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="pairs [variant, other]; default: every variant and the baseline"
    )
    teachers: bool = Field(True, description="also measure zero-shot and the teachers on the test splits")
    pooling_factors: list[float] = Field(
        default_factory=list,
        description="factors on the attention scores after training, chosen jointly with the settings on the mean of "
        "the dev seeds; 1 must be among them",
    )
    frame_probe: bool = Field(False, description="also measure the attention weight on event frames (Shapes only)")
    teacher_table: bool = Field(False, description="also show each teacher's results beside those of its students")
    gallery: int | None = Field(
        None, ge=2, description="also show the R@1 to expect in a gallery of so many of the test videos"
    )


@dataclass(frozen=True)
class Study:
    """The content of a study file with every reference resolved."""

    name: str
    """Stem of the file's name."""
    title: str
    recipe: Path | None
    shapes: ShapesSection | None
    dev_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    common: Settings
    """Overrides for every variant."""
    variants: tuple[Variant, ...]
    pairs: tuple[tuple[str, str], ...]
    """Names of (variant, other) that are compared."""
    baseline: str
    """Name of the variant whose choices no other variant may exceed."""
    teachers: bool = True
    pooling_factors: tuple[float, ...] = ()
    frame_probe: bool = False
    teacher_table: bool = False
    gallery: int | None = None
    tune_set: Settings = ()
    """Overrides for the tuning trials only."""
    design: Design | None = None
    drawn: Mapping[int, tuple[Variant, ...]] = field(default_factory=dict)
    """Of a design: the cells that each test seed trains. `variants` has each once."""

    def tested(self, seed: int) -> tuple[Variant, ...]:
        """Return the variants that are trained on a test seed."""
        return self.variants if self.design is None else self.drawn[seed]


def find_study(name: str | Path) -> Path:
    """Return the path of a study file; a bare name such as `shapes_plus` is one of recipes/studies.

    Raises RecipeError if there is no study of a bare name.
    """
    path = Path(name)
    is_bare = not path.suffix and path.name == str(path)
    return find_recipe(f"studies/{path}.yaml") if is_bare else path


def load_study(path: str | Path) -> Study:
    """Read a study file. Raises RecipeError with all problems of the file, one per line."""
    return _load(Path(path), ())


def _load(path: Path, readers: tuple[Path, ...]) -> Study:
    """Read a study file for the study files that ask for one of its variants, each for the next."""
    file, elsewhere = _with_other_studies(load_section(path, StudyFile, "study file"), path, (*readers, path))
    counted = isinstance(file.test_seeds, int)
    seeds = tuple(range(FIRST_TEST_SEED, FIRST_TEST_SEED + file.test_seeds) if counted else file.test_seeds)
    problems = [
        *elsewhere,
        *_seed_problems(file, seeds),
        *_name_problems(file),
        *_override_problems(file),
        *_measure_problems(file),
        *_design_problems(file),
    ]
    variants: tuple[Variant, ...] = ()
    if not problems:
        variants = tuple(_resolve(entry, file) for entry in file.variants)
        problems = [*budget_problems(variants), *tune_set_problems(file.tune_set, variants, file.pooling_factors)]
    if problems:
        raise RecipeError("\n".join(f"{path.name}: {problem}" for problem in problems))
    design, drawn = None, {}
    if file.design is not None:
        design = build_design(file.design)
        drawn = {seed: _cells(design, seed) for seed in seeds}
        check_told_apart(design, seeds)
        variants = tuple({cell.name: cell for cells in drawn.values() for cell in cells}.values())
    baseline = file.baseline or variants[0].name
    pairs = [(name, other) for name, other in file.compare or ()]
    if file.compare is None and design is None:
        pairs = [(variant.name, baseline) for variant in variants if variant.name != baseline]
    return Study(
        name=path.stem,
        title=file.title,
        recipe=None if file.recipe is None else _find_recipe(file.recipe, path),
        shapes=file.shapes,
        dev_seeds=tuple(file.dev_seeds),
        test_seeds=seeds,
        common=tuple(file.set),
        variants=variants,
        pairs=tuple(pairs),
        baseline=baseline,
        teachers=file.teachers,
        pooling_factors=tuple(file.pooling_factors),
        frame_probe=file.frame_probe,
        teacher_table=file.teacher_table,
        gallery=file.gallery,
        tune_set=tuple(file.tune_set),
        design=design,
        drawn=drawn,
    )


def with_preset(study: Study, preset: str) -> Study:
    """Return the study on another preset of the Shapes dataset. Raises RecipeError if it has no `shapes` section."""
    if study.shapes is None:
        raise RecipeError(f"--preset {preset}: the study file has no `shapes` section; it uses the recipe's own data")
    title = f"{study.title}: {preset}"
    return replace(study, title=title, shapes=study.shapes.model_copy(update={"preset": preset}))


def _with_other_studies(file: StudyFile, path: Path, readers: tuple[Path, ...]) -> tuple[StudyFile, list[str]]:
    """Return the file with what its variants take from other study files written out, and what is wrong with it.

    `readers`: the study files that are being read, each for the one before it; this one is the last.
    """
    variants, problems, read = [], list[str](), dict[str, dict[str, Variant]]()
    for entry in file.variants:
        study, slash, name = (entry.like or "").rpartition("/")
        if slash:
            try:
                if study not in read:
                    read[study] = _variants_of(study, path, readers)
                if name not in (known := read[study]):
                    raise RecipeError(
                        f"{study} has no variant {name!r}{closest(name, known)}; allowed: {', '.join(known)}"
                    )
                entry = entry.model_copy(update={"like": None, "set": [*known[name].fixed, *entry.set]})
            except RecipeError as error:
                problems += [f"variants.{entry.name}.like: {line}" for line in str(error).splitlines()]
                entry = entry.model_copy(update={"like": None})
        variants.append(entry)
    return file.model_copy(update={"variants": variants}), problems


def _variants_of(study: str, path: Path, readers: tuple[Path, ...]) -> dict[str, Variant]:
    """Return the variants by name of a study beside a study file, else of the project."""
    beside = path.parent / f"{study}.yaml"
    found = beside if os.path.exists(beside) else find_study(study)  # False for a name that no file can have
    if found.resolve() in (reader.resolve() for reader in readers):
        raise RecipeError(f"goes in a circle: {' -> '.join(reader.stem for reader in (*readers, found))}")
    return {variant.name: variant for variant in _load(found, readers).variants}


def _cells(design: Design, seed: int) -> tuple[Variant, ...]:
    names = {cell: design.name(cell) for cell in design.draw(seed)}
    return tuple(Variant(name, name, design.overrides(cell), ((),)) for cell, name in names.items())


def _find_recipe(name: str, study: Path) -> Path:
    """Return the recipe that a study file names: one of recipes/, or a path from here or from the study file."""
    path = Path(name)
    if not path.suffix and path.name == name:
        return find_recipe(f"{name}.yaml")
    beside = study.parent / path
    return beside if beside.exists() and not path.exists() else path


def _seed_problems(file: StudyFile, test_seeds: Sequence[int]) -> Iterator[str]:
    for key, values in (("dev_seeds", file.dev_seeds), ("test_seeds", test_seeds)):
        if not values:
            yield f"{key}: give at least one seed"
        if (twice := repeated(values)) is not None:
            yield f"{key}: {twice} is duplicated"
        if values and min(values) < 0:
            yield f"{key}: {min(values)} is negative; allowed: 0 or more"
    if both := sorted({*file.dev_seeds} & {*test_seeds}):
        yield (
            f"test_seeds: {', '.join(map(str, both))} also in dev_seeds: what was chosen with a seed may not be "
            "measured with it; take other seeds"
        )


def _name_problems(file: StudyFile) -> Iterator[str]:
    names = [entry.name for entry in file.variants]
    if (twice := repeated([name.lower() for name in names])) is not None:
        yield f"variants: name {twice!r} is duplicated"
    if (twice := repeated([entry.label or entry.name for entry in file.variants])) is not None:
        yield f"variants: label {twice!r} is duplicated; tables tell variants apart by it"
    for name in names:
        if name in ("zero_shot", "event_frames") or name.startswith("teacher_"):
            yield f"variants.{name}: the report uses this name for another model; give the variant another name"
    references = [(f"variants.{entry.name}.like", entry.like) for entry in file.variants if entry.like]
    references += [("baseline", file.baseline)] if file.baseline is not None else []
    references += [("compare", name) for pair in file.compare or () for name in pair]
    for where, name in references:
        if name not in names:
            yield f"{where}: no variant {name!r}{closest(str(name), names)}; allowed: {', '.join(names)}"
    yield from (f"compare: {pair[0]} with itself" for pair in file.compare or () if pair[0] == pair[1])
    parents = {entry.name: entry.like for entry in file.variants}
    for entry in file.variants:
        seen, at = [entry.name], entry.like
        while at in parents and at not in seen:
            seen, at = [*seen, str(at)], parents[str(at)]
        if at == entry.name:
            yield f"variants.{entry.name}.like: goes in a circle: {' -> '.join([*seen, entry.name])}"


def _override_problems(file: StudyFile) -> Iterator[str]:
    yield from _text_problems("tune_set", file.tune_set)
    for name, levels in file.design.factors.items() if file.design else ():
        for level, overrides in levels.items():
            yield from _text_problems(f"design.factors.{name}.{level}", overrides)
    sections: list[tuple[str, StudyFile | VariantEntry]] = [("", file)]
    sections += [(f"variants.{entry.name}.", entry) for entry in file.variants]
    for where, section in sections:
        if section.grid is not None and section.settings is not None:
            yield f"{where}settings: give a grid or settings, not both"
        lists = [("set", section.set), *(("settings", setting) for setting in section.settings or ())]
        for name, overrides in lists:
            yield from _text_problems(f"{where}{name}", overrides)
        for key in section.grid or ():
            if key in SET_BY_THE_STUDY:
                yield f"{where}grid: {key} is set by the study itself"


def _text_problems(where: str, overrides: Sequence[str]) -> Iterator[str]:
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            yield f"{where}: {text!r}: write it as section.key=value"
        if key in SET_BY_THE_STUDY:
            yield f"{where}: {key} is set by the study itself"


def _measure_problems(file: StudyFile) -> Iterator[str]:
    factors = file.pooling_factors
    if factors and 1 not in factors:
        yield f"pooling_factors: {factors} lacks 1, the student as trained; add it"
    if any(factor <= 0 for factor in factors):
        yield f"pooling_factors: {min(factors):g} is not a factor; allowed: above 0"
    if (twice := repeated(factors)) is not None:
        yield f"pooling_factors: {twice:g} is duplicated"
    if file.frame_probe and file.shapes is None:
        yield "frame_probe: only the Shapes dataset records what its frames show; add a `shapes` section or remove it"
    if file.gallery and file.shapes is not None:
        yield "gallery: not beside a `shapes` section; give its test_videos instead"
    if file.teacher_table and not file.teachers:
        yield "teacher_table: needs the teachers' results; remove `teachers: false`"


def _design_problems(file: StudyFile) -> Iterator[str]:
    if file.design is None:
        if len(file.variants) < 2:
            yield f"variants: {len(file.variants)} given; give two or more, or a design"
        return
    for key in NOT_BESIDE_A_DESIGN:
        if getattr(file, key):
            yield f"{key}: not beside a design, whose factors say what is compared; remove it"
    for name, levels in file.design.factors.items():
        for level in levels:
            if not re.fullmatch(r"[A-Za-z0-9_.]+", level):
                yield f"design.factors.{name}: level {level!r}; allowed: letters, digits, _ and ."
    setters: dict[str, str] = {}
    for name, levels in file.design.factors.items():
        for key in {text.partition("=")[0] for overrides in levels.values() for text in overrides}:
            if (other := setters.setdefault(key, name)) != name:
                yield f"design.factors.{name}: {key} is set by {other} too; one factor would undo the other"
    if file.design.cells < (most := max(map(len, file.design.factors.values()))):
        yield f"design.cells: {file.design.cells} is fewer than the {most} levels of a factor; each must be trained"


def _resolve(entry: VariantEntry, file: StudyFile) -> Variant:
    """Return a variant with what it takes from the one that it is like."""
    known = {other.name: other for other in file.variants}
    line = [entry]
    while line[-1].like:
        line.append(known[line[-1].like])
    fixed = tuple(text for ancestor in reversed(line) for text in ancestor.set)
    sources: Sequence[VariantEntry | StudyFile] = [
        ancestor for ancestor in line if ancestor.grid is not None or ancestor.settings is not None
    ]
    return Variant(entry.name, entry.label or entry.name, fixed, _settings_of((*sources, file)[0]))


def _settings_of(section: VariantEntry | StudyFile) -> tuple[Settings, ...]:
    if section.settings is not None:
        return tuple(tuple(setting) for setting in section.settings)
    values: Mapping[str, Sequence[Any]] = section.grid or {}
    return grid({key: [value_text(value) for value in options] for key, options in values.items()})
