"""The plan of `teachclip study`: the trials that follow from a study file and its recipe.

Settings are chosen on validation alone; `checks` refuses whatever would let the choice see a test split.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from teachclip.errors import RecipeError
from teachclip.pipeline.build import run_settings
from teachclip.pipeline.conditions import possible_recipes
from teachclip.processes import environment
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Train as TrainSection
from teachclip.shapes.presets import find_preset
from teachclip.store.files import file_hash
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.jobs import FileStamps, Prepare, ShapesPlan, Train, file_stamps
from teachclip.studies.results import Candidate, choose, numbers_of
from teachclip.studies.study_file import Study
from teachclip.studies.trials import seed_places
from teachclip.studies.variants import Settings, Variant, keys_of
from teachclip.texts.bank import bank, read_grammar

Results = Mapping[str, Mapping[str, Any]]
Choices = Mapping[str, Mapping[str, Candidate]]
"""Way of choosing -> name of the variant -> what was chosen."""

AS_TRAINED, SCALED = "as trained", "scaled"
"""Ways of choosing: the settings for the pooling temperature as trained, or settings and pooling factor jointly."""


@dataclass(frozen=True)
class Plan:
    """All trials of a study, and where they are kept."""

    folder: Path
    recipe: Path
    study: Study
    shapes: ShapesPlan | None
    """None: the recipe's own data, the same for all seeds."""
    last: Settings = ()
    """Overrides after all others, which make a quick run quick."""
    _known: dict[Settings, Recipe] = field(default_factory=dict, init=False, repr=False, compare=False)
    _stamps: dict[str, FileStamps] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def factors(self) -> tuple[float, ...]:
        """The pooling factors that are chosen from; 1 alone where the study tries none."""
        return self.study.pooling_factors or (1.0,)

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of choosing that the report shows; the last is the main one."""
        return (AS_TRAINED, SCALED) if len(self.factors) > 1 else (AS_TRAINED,)

    @property
    def tuned(self) -> bool:
        """Whether variants have more than one setting or pooling factor to choose from."""
        return len(self.study.variants[0].grid) * len(self.factors) > 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of trials whose recipes differ: "test", and "tune" where a `tune_set` sets tuning apart."""
        return ("test", "tune") if self.tuned and self.study.tune_set else ("test",)

    @property
    def dev_seeds(self) -> tuple[int, ...]:
        """The seeds that settings are chosen on."""
        return self.study.dev_seeds if self.tuned else ()

    @property
    def prepared_seeds(self) -> tuple[int, ...]:
        """The seeds whose data is prepared: all of them where each is a dataset, otherwise one for all."""
        return (*self.dev_seeds, *self.study.test_seeds) if self.shapes else self.study.test_seeds[:1]

    def counts(self) -> dict[str, int]:
        """Return how many trials each stage has; `test` is the most that there can be.

        A variant is trained twice per test seed where the ways of choosing choose different settings.
        """
        variants, settings = len(self.study.variants), len(self.study.variants[0].grid)
        return {
            "prepare": len(self.prepared_seeds),
            "tune": variants * settings * len(self.dev_seeds),
            "test": sum(len(self.study.tested(seed)) for seed in self.study.test_seeds)
            * min(len(self.ways), settings),
        }

    def settings(self, variant: Variant, setting: Settings, kind: str = "test") -> Settings:
        """Return all overrides of a variant with one of its settings; of several of one key the last.

        `kind`: "tune" for the trials that settings are chosen with, "test" for those with the chosen ones.
        """
        tuning = self.study.tune_set if kind == "tune" else ()
        overrides = (*self.study.common, *variant.fixed, *setting, *tuning, *self.last)
        keys = [text.partition("=")[0] for text in overrides]
        return tuple(text for place, text in enumerate(overrides) if keys[place] not in keys[place + 1 :])

    def all_settings(self) -> list[Settings]:
        """Return all overrides of every trial there may be, of tuning and of test, each once."""
        return list(
            dict.fromkeys(
                self.settings(variant, setting, kind)
                for variant in self.study.variants
                for setting in variant.grid
                for kind in self.kinds
            )
        )

    def load(self, settings: Settings) -> Recipe:
        """Return the recipe as the first test seed reads it."""
        if settings not in self._known:
            with environment(self.places()):
                self._known[settings] = load_recipe(self.recipe, settings)
        return self._known[settings]

    def recipes(self) -> list[Recipe]:
        """Return the recipe of every trial there may be, as the first test seed reads it."""
        return [self.load(settings) for settings in self.all_settings()]

    def stores(self, settings: Settings) -> str:
        """Return the name of the stores of a recipe with other data, frames or teachers; "" for the common ones.

        A teacher that is not used needs no stores of its own.
        """
        common, changed = (_stored_by(self.load(chosen)) for chosen in ((*self.study.common, *self.last), settings))
        known, teachers = common["teachers"], changed["teachers"]
        changed["teachers"] = {label: what for label, what in teachers.items() if known.get(label) != what}
        return "" if changed == {**common, "teachers": {}} else fingerprint_of(changed)[:8]

    def preparing(self) -> list[Prepare]:
        """Return the jobs that make what the students of each seed share."""
        common = (*self.study.common, *self.last)
        readers: dict[str, tuple[str, Settings]] = {}
        chosen = self.all_settings()
        for settings in [common, *chosen] if self.study.teachers else chosen:
            stores = self.stores(settings)
            key = fingerprint_of({"stores": stores, "what": _prepared_by(self.load(settings))})
            readers.setdefault(key, (stores, settings))
        depends_on = {"prepared": sorted(readers), "clip": _clip_hash(self.shapes.common) if self.shapes else ""}
        return [
            Prepare(
                folder=self.folder,
                recipe=self.recipe,
                seed=seed,
                shapes=self.shapes,
                settings=common,
                depends_on=depends_on,
                readers=tuple(readers.values()),
                measure=self.study.teachers and (self.shapes is None or seed in self.study.test_seeds),
                frame_probe=self.study.frame_probe,
            )
            for seed in self.prepared_seeds
        ]

    def tuning(self, prepared: Results) -> list[Train]:
        """Return the trials on validation of all variants."""
        return [
            self.train_job("tune", seed, variant, setting, prepared)
            for seed in self.dev_seeds
            for variant in self.study.variants
            for setting in variant.grid
        ]

    def testing(self, choices: Choices, prepared: Results) -> list[Train]:
        """Return the trials on test: per variant and test seed each setting that was chosen, once."""
        jobs = [
            self.train_job("test", seed, variant, chosen[variant.name].settings, prepared)
            for seed in self.study.test_seeds
            for variant in self.study.tested(seed)
            for chosen in choices.values()
        ]
        return list({job.name: job for job in jobs}.values())

    def train_job(self, kind: str, seed: int, variant: Variant, setting: Settings, prepared: Results) -> Train:
        """Return the trial of a setting on a seed; what it reads is known once the seed is prepared."""
        settings = self.settings(variant, setting, kind)
        if self.load(settings).batch_seed is not None:  # trainings would differ in their start alone
            settings = (*settings, "batch_seed=null")
        recipe, stores = self.load(settings), self.stores(settings)
        content = prepared[f"prepare-{seed}" if self.shapes else "prepare"]["content"][stores]
        read = ["train", "selection", *(f"teacher {teacher.label}" for teacher in recipe.teachers)]
        read += ["test"] if kind == "test" else []
        depends_on: dict[str, Any] = {
            "recipe": _trained_by(recipe),
            "data": {name: content[name] for name in read},
        }
        if unpaired := self._unpaired(recipe):
            depends_on["unpaired"] = unpaired
        return Train(
            folder=self.folder,
            recipe=self.recipe,
            seed=seed,
            shapes=self.shapes,
            settings=settings,
            depends_on=depends_on,
            kind=kind,
            variant=variant.name,
            stores=stores,
            factors=self.study.pooling_factors,
            frame_probe=self.study.frame_probe and kind == "test",
        )

    def _unpaired(self, recipe: Recipe) -> FileStamps:
        """Return the stamps of unpaired files as they were when the plan was made: folders are walked once."""
        terms = [each.losses.frame_sets for each in possible_recipes(recipe)]
        paths = [path for term in terms if term.is_used for path in (term.captions, term.videos)]
        key = json.dumps([path and str(path) for path in paths])
        if key not in self._stamps:
            self._stamps[key] = file_stamps(*paths)
        return self._stamps[key]

    def candidates(self, tuned: Results, prepared: Results) -> dict[str, list[Candidate]]:
        """Return, per variant, every setting at every pooling factor with its validation R@1 on every dev seed."""
        candidates: dict[str, list[Candidate]] = {}
        for variant in self.study.variants:
            for setting in variant.grid:
                jobs = [self.train_job("tune", seed, variant, setting, prepared) for seed in self.dev_seeds]
                results = [tuned[job.name] for job in jobs]
                for factor in self.factors:
                    scores = tuple(float(_validation(result, factor)["t2v"]["recall_at_1"]) for result in results)
                    candidates.setdefault(variant.name, []).append(Candidate(setting, factor, scores))
        return candidates

    def choices(self, candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, dict[str, Candidate]]:
        """Return, by way of choosing, the candidate of every variant with the highest mean over the dev seeds."""
        allowed = {AS_TRAINED: (1.0,), SCALED: self.factors}
        return {
            way: {
                name: choose([candidate for candidate in tried if candidate.factor in allowed[way]])
                for name, tried in candidates.items()
            }
            for way in self.ways
        }

    def own_numbers(self, variant: Variant) -> dict[str, float]:
        """Return what a variant has by itself for the keys that some of its settings give numbers, by key."""
        keys = dict.fromkeys(key for setting in variant.grid for key in numbers_of(setting))
        try:
            recipe = self.load(self.settings(variant, ())).model_dump(mode="json")
        except RecipeError:  # a variant may need its settings
            return {}
        values = {key: _at(recipe, key) for key in keys}
        return {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def places(self) -> dict[str, str]:
        """Return the environment of the first test seed: where its dataset is, or nothing for own data."""
        return seed_places(self.folder, self.study.test_seeds[0]) if self.shapes else {}


def build_plan(folder: Path, recipe: Path | None, study: Study, common: Path) -> Plan:
    """Return the plan of a study.

    `recipe`: in place of the one that the study file names, or None. `common`: the Shapes dataset whose CLIP all
    seeds start from, if the file names none. Raises RecipeError if there is no recipe, DataError for a grammar that
    cannot be read.
    """
    recipe = recipe or study.recipe
    if recipe is None:
        raise RecipeError(f"{study.name}: the study file names no recipe; give --recipe RECIPE")
    section, shapes = study.shapes, None
    if section is not None:
        needed = find_preset(section.preset).overrides
        study = replace(study, common=(*needed, *study.common))
        clip_from = Path(section.clip_from) if section.clip_from else common
        texts = tuple(bank(read_grammar(section.texts))) if section.texts else ()
        shapes = ShapesPlan(section.preset, section.train_videos, section.test_videos, clip_from, texts)
    return Plan(folder, recipe, study, shapes)


def recipe_label(recipe: Path) -> str:
    """Return what folders and titles call a recipe: the name of its file, or of the folder of a `recipe.yaml`.

    `teachclip init` gives every recipe that file name.
    """
    return recipe.stem if recipe.stem != "recipe" else recipe.resolve().parent.name


QUICK_STEPS = 20
QUICK = (f"steps={QUICK_STEPS}", "epochs=null")
"""The length of a quick training."""


def small_plan(plan: Plan) -> Plan:
    """Return a plan of the same structure that takes a minute or two and shows nothing but that it runs."""
    study = plan.study
    base = plan.load(study.common)
    shorter = replace(plan, study=replace(study, common=(*study.common, *_fewer_frozen_steps(base.train))))
    common, shapes = list(shorter.study.common), plan.shapes
    if shapes is not None:
        shapes = replace(shapes, train_videos=60, test_videos=30)
    for index, teacher in enumerate(base.teachers):
        if teacher.training is None or (shapes is None and Path(teacher.checkpoint).exists()):
            continue
        section = f"teachers.{index}.training.train"
        common += [f"{section}.{text}" for text in QUICK]
        common += _fewer_frozen_steps(teacher.training.train, section)
        if shapes is not None:
            common.append(f"{section}.batch_size=16")
        else:  # a teacher of 20 steps is not left where a real one belongs
            ending = Path(teacher.checkpoint).suffix
            common.append(f"teachers.{index}.checkpoint={plan.folder / 'teachers' / teacher.folder}{ending}")
            common.append(f"stores={plan.folder / 'stores'}")
    last = [*(f"train.{text}" for text in QUICK), "train.evaluate_every=10"]
    if shapes is not None:
        last += ["train.batch_size=16", "data.validation={videos: 20, seed: 0}"]
    variants = [_with_fewer_frozen_steps(shorter, variant) for variant in study.variants]
    grids = [_different(variant.grid) for variant in variants]
    count = min(2, *map(len, grids))
    tune_set = study.tune_set
    if "train.frozen_steps" in keys_of(tune_set):
        tuning = [plan.settings(variant, setting, "tune") for variant in study.variants for setting in variant.grid]
        tune_set = (*tune_set, *max(_fewer_frozen_steps(plan.load(settings).train) for settings in tuning))
    small = replace(
        study,
        dev_seeds=study.dev_seeds[:1],
        test_seeds=study.test_seeds[:2],
        common=tuple(common),
        variants=tuple(replace(variant, grid=tried[:count]) for variant, tried in zip(variants, grids, strict=True)),
        tune_set=tune_set,
    )
    return replace(plan, study=small, shapes=shapes, last=tuple(last))


def _fewer_frozen_steps(train: TrainSection, section: str = "train") -> Settings:
    """Return what lets encoders move in a quick training that would be too short for that."""
    return (f"{section}.frozen_steps=10",) if train.frozen_steps >= QUICK_STEPS else ()


def _with_fewer_frozen_steps(plan: Plan, variant: Variant) -> Variant:
    """Return a variant with frozen steps that leave others to a quick training, with and without its settings."""
    with contextlib.suppress(RecipeError):  # a variant may need its settings
        fewer = _fewer_frozen_steps(plan.load(plan.settings(variant, ())).train)
        variant = replace(variant, fixed=(*variant.fixed, *fewer))
    loaded = [plan.load(plan.settings(variant, setting)).train for setting in variant.grid]
    grid = ((*setting, *_fewer_frozen_steps(train)) for setting, train in zip(variant.grid, loaded, strict=True))
    return replace(variant, grid=tuple(grid))


def _different(tried: tuple[Settings, ...]) -> tuple[Settings, ...]:
    """Return the settings that are still different when all are equally long."""
    length = ("train.steps=", "train.epochs=", "train.evaluate_every=", "train.batch_size=")
    return tuple(dict.fromkeys(tuple(text for text in setting if not text.startswith(length)) for setting in tried))


def _validation(result: Mapping[str, Any], factor: float) -> Mapping[str, Any]:
    """Return the evaluation of a tuning trial on validation, at a pooling factor where the study tries several."""
    measured: Mapping[str, Any] = result["factors"][f"{factor:g}"] if "factors" in result else result["validation"]
    return measured


def _at(values: Any, key: str) -> Any:
    """Return what a recipe has at a dotted key; None where it has nothing."""
    for name in key.split("."):
        try:
            values = values[int(name)] if isinstance(values, list) else values[name]
        except (LookupError, ValueError, TypeError):
            return None
    return values


@cache
def _clip_hash(common: Path) -> str:
    return file_hash(common / "clip" / "model.safetensors")


def _stored_by(recipe: Recipe) -> dict[str, Any]:
    """Return what distinguishes the stores of one recipe from those of another on the same machine."""
    frames = recipe.frames.model_dump(exclude={"workers", "memory_limit", "time_limit", "store"})
    teachers = {
        teacher.label: teacher.model_dump(include={"name", "checkpoint", "reads", "options"})
        for teacher in recipe.teachers
    }
    encoded_in = recipe.teaching.encoding_precision
    return {
        "data": recipe.data.model_dump(mode="json", exclude={"select_on", "max_missing"}),
        "frames": frames,
        "text": recipe.text.model_dump(),
        "backbone": recipe.student.backbone,
        **(
            recipe.student.model_dump(mode="json", include={"text_backbone", "text_teaching"})
            if recipe.student.text_backbone
            else {}
        ),
        "precision": recipe.teaching.precision,
        **({} if encoded_in == "float32" else {"encoded in": encoded_in}),
        "teachers": teachers,
    }


def _prepared_by(recipe: Recipe) -> dict[str, Any]:
    """Return what is made before students train depends on: values, but not where files lie."""
    values = _stored_by(recipe)
    values["data"] = [recipe.data.format, Path(recipe.data.test or "").name, values["data"]["validation"]]
    del values["backbone"]
    if recipe.student.text_backbone is not None:
        values["text_backbone"] = Path(recipe.student.text_backbone).name
        del values["text_teaching"]["texts"]
    for teacher in recipe.teachers:
        kept = values["teachers"][teacher.label]
        del kept["checkpoint"]
        kept["training"] = teacher.training and teacher.training.model_dump(mode="json", exclude={"seed"})
    return {**values, "encoders": recipe.train.encoders, "source": recipe.teaching.source}


def _trained_by(recipe: Recipe) -> str:
    """Return the hash of what a student's numbers depend on in its recipe: values, but not where files lie."""
    values = {key: value for key, value in run_settings(recipe).items() if key not in ("name", "seed")}
    if len(possible := possible_recipes(recipe)) > 1:  # also what the recipe itself does not use and would not name
        values["conditions"] = [_trained_by(each) for each in possible]
    values["data"] = [recipe.data.format, recipe.data.select_on, values["data"]["validation"]]
    del values["student"]["backbone"]
    if recipe.student.text_backbone is not None:
        values["student"]["text_backbone"] = Path(recipe.student.text_backbone).name
    for teacher in values["teachers"]:
        del teacher["checkpoint"]
    return fingerprint_of(values)
