"""The plan of `teachclip ablate`: the trials that follow from a recipe and its arms, and what is refused.

Settings are chosen on validation alone. Whatever would let the choice see a test split is refused before anything
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from teachclip.commands.ablation_counts import prepared_by, stored_by, trained_by
from teachclip.commands.ablation_file import Comparison
from teachclip.commands.ablation_trials import Prepare, Train, WorldPlan
from teachclip.commands.demo import environment
from teachclip.commands.gain_arms import Arm, Settings
from teachclip.commands.trials import seed_places
from teachclip.data.shapes_presets import find_preset
from teachclip.errors import RecipeError, TeachclipError
from teachclip.evaluation.gain import Candidate, choose
from teachclip.files import file_hash
from teachclip.fingerprint import fingerprint_of
from teachclip.recipe import Recipe
from teachclip.recipe_file import load_recipe

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """All that is to be run, and where it is kept."""

    folder: Path
    recipe: Path
    comparison: Comparison
    world: WorldPlan | None
    last: Settings = ()
    """Overrides after all others, which make a quick run quick."""
    _known: dict[Settings, Recipe] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tuned(self) -> bool:
        """Whether arms have more than one setting to choose from."""
        return len(self.comparison.arms[0].grid) > 1

    @property
    def tune_seeds(self) -> tuple[int, ...]:
        """The seeds that settings are chosen on."""
        return self.comparison.tune_seeds if self.tuned else ()

    @property
    def prepared_seeds(self) -> tuple[int, ...]:
        """The seeds whose data is prepared: all of them where each is a world, otherwise one for all."""
        return (*self.tune_seeds, *self.comparison.seeds) if self.world else self.comparison.seeds[:1]

    def counts(self) -> dict[str, int]:
        """Return how many trials each stage has."""
        arms, settings = len(self.comparison.arms), len(self.comparison.arms[0].grid)
        return {
            "prepare": len(self.prepared_seeds),
            "tune": arms * settings * len(self.tune_seeds),
            "test": arms * len(self.comparison.seeds),
        }

    def settings(self, arm: Arm, setting: Settings) -> Settings:
        """Return all overrides of an arm with one of its settings; of several of one key the last."""
        given = (*self.comparison.common, *arm.fixed, *setting, *self.last)
        keys = [text.partition("=")[0] for text in given]
        return tuple(text for place, text in enumerate(given) if keys[place] not in keys[place + 1 :])

    def load(self, settings: Settings) -> Recipe:
        """Return the recipe as the first seed reads it."""
        if settings not in self._known:
            with environment(self._places()):
                self._known[settings] = load_recipe(self.recipe, settings)
        return self._known[settings]

    def variant(self, settings: Settings) -> str:
        """Return the name of the stores of an arm that reads other data, frames or teachers; "" for the common ones.

        A teacher that is left out, or one more, needs no stores of its own.
        """
        common, own = (self.load(chosen) for chosen in ((*self.comparison.common, *self.last), settings))
        known = {teacher.label: stored_by(common)["teachers"][teacher.label] for teacher in common.teachers}
        mine = stored_by(own)
        mine["teachers"] = {label: what for label, what in mine["teachers"].items() if known.get(label) != what}
        other = {**stored_by(common), "teachers": {}}
        return "" if mine == other else fingerprint_of(mine)[:8]

    def preparing(self) -> list[Prepare]:
        """Return the jobs that make what the students of each seed share."""
        common = (*self.comparison.common, *self.last)
        variants: dict[str, tuple[str, Settings]] = {}
        chosen = [self.settings(arm, setting) for arm in self.comparison.arms for setting in arm.grid]
        for settings in [common, *chosen] if self.comparison.teachers else chosen:
            variant = self.variant(settings)
            key = fingerprint_of({"variant": variant, "what": prepared_by(self.load(settings))})
            variants.setdefault(key, (variant, settings))
        counts = {"prepared": sorted(variants), "clip": _clip_hash(self.world.common) if self.world else ""}
        return [
            Prepare(
                folder=self.folder,
                recipe=self.recipe,
                seed=seed,
                world=self.world,
                settings=common,
                counts=counts,
                variants=tuple(variants.values()),
                measure=self.comparison.teachers and (self.world is None or seed in self.comparison.seeds),
            )
            for seed in self.prepared_seeds
        ]

    def tuning(self, prepared: Results) -> list[Train]:
        """Return the trials on validation of all arms."""
        return [
            self.train_job("tune", seed, arm, setting, prepared)
            for seed in self.tune_seeds
            for arm in self.comparison.arms
            for setting in arm.grid
        ]

    def testing(self, chosen: Mapping[str, Candidate], prepared: Results) -> list[Train]:
        """Return the trials on test: per arm and fresh seed the setting that was chosen."""
        return [
            self.train_job("test", seed, arm, chosen[arm.name].settings, prepared)
            for seed in self.comparison.seeds
            for arm in self.comparison.arms
        ]

    def train_job(self, kind: str, seed: int, arm: Arm, setting: Settings, prepared: Results) -> Train:
        """Return the trial of a setting on a seed; what it reads is known once the seed is prepared."""
        settings = self.settings(arm, setting)
        recipe, variant = self.load(settings), self.variant(settings)
        content = prepared[f"prepare-{seed}" if self.world else "prepare"]["content"][variant]
        read = ["train", "selection", *(f"teacher {teacher.label}" for teacher in recipe.teachers)]
        read += ["test"] if kind == "test" else []
        counts = {"recipe": trained_by(recipe), "data": {name: content[name] for name in read}}
        return Train(self.folder, self.recipe, seed, self.world, settings, counts, kind, arm.name, variant)

    def candidates(self, tuned: Results, prepared: Results) -> dict[str, list[Candidate]]:
        """Return, per arm, every setting with its validation recall at 1 on every tuning seed."""
        found: dict[str, list[Candidate]] = {}
        for arm in self.comparison.arms:
            for setting in arm.grid:
                jobs = [self.train_job("tune", seed, arm, setting, prepared) for seed in self.tune_seeds]
                scores = [float(tuned[job.name]["validation"]["t2v"]["recall_at_1"]) for job in jobs]
                found.setdefault(arm.name, []).append(Candidate(setting, 1.0, tuple(scores)))
        return found

    def chosen(self, candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, Candidate]:
        """Return the setting of every arm with the highest mean; the only one where nothing was tuned."""
        return {name: choose(tried) if self.tuned else tried[0] for name, tried in candidates.items()}

    def check(self) -> None:
        """Load the recipe with every override. Raises RecipeError, one line per problem."""
        found: dict[str, dict[str, None]] = {}
        for name, problem in self._problems():
            found.setdefault(problem, {})[name] = None
        if found:
            everyone = len(self.comparison.arms)
            raise RecipeError(
                "\n".join(
                    problem if len(names) == everyone else f"arm {', '.join(names)}: {problem}"
                    for problem, names in found.items()
                )
            )

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Yield the name of an arm and what is wrong with it."""
        test = None
        for arm in self.comparison.arms:
            for setting in arm.grid:
                try:
                    recipe = self.load(self.settings(arm, setting))
                except TeachclipError as error:
                    yield from ((arm.name, line) for line in str(error).splitlines())
                    continue
                yield from ((arm.name, problem) for problem in self._peeks(recipe))
                own = (recipe.data.format, recipe.data.annotations, recipe.data.test)
                test = test or own
                if own != test:
                    yield arm.name, "it has another test split than the first arm; give data.test to all arms"

    def _peeks(self, recipe: Recipe) -> Iterator[str]:
        """Say what would let the choice see test, or mix the seeds up."""
        data = recipe.data
        if data.select_on == "test":
            yield "data.select_on is test: the checkpoint would be chosen on test; allowed: validation"
        elif self.world is not None and data.validation is None:
            yield "data.validation is null: there is no validation split to choose on; give data.validation.videos=N"
        if self.world is None:
            return
        home = Path(self._places()["TEACHCLIP_RUNS"])
        teachers = {f"teachers.{t.label}.checkpoint": Path(t.checkpoint) for t in recipe.teachers if t.training}
        places = {"data.annotations": data.annotations, "data.videos": data.videos, "stores": recipe.stores}
        for key, path in {**places, **teachers}.items():
            if not path.is_relative_to(home):
                yield (
                    f"{key} is {path} for every seed, but worlds makes new ones; write it with "
                    "${SHAPES_ROOT:-runs/shapes} or ${TEACHCLIP_RUNS:-runs}, as recipes/shapes_xpool.yaml does"
                )

    def _places(self) -> dict[str, str]:
        return seed_places(self.folder, self.comparison.seeds[0]) if self.world else {}


def check_own_data(plan: Plan) -> None:
    """Read the annotations of the recipe's own data, before anything runs.

    Raises DataError or RecipeError if they have no validation or no test split, or if a teacher is not there.
    """
    from teachclip.commands import teacher_files
    from teachclip.commands.build import build_catalog, build_selection

    if plan.world is not None:
        return
    recipes = [plan.load(plan.settings(arm, arm.grid[0])) for arm in plan.comparison.arms]
    catalog = build_catalog(recipes[0])
    build_selection(recipes[0], catalog)
    if catalog.test is None:
        raise RecipeError(f"{plan.recipe.name}: the data has no test split to measure the chosen settings on")
    for section in (section for recipe in recipes for section in recipe.teachers if section.training is None):
        if not teacher_files.is_there(section):
            raise RecipeError(f"teacher {section.label}: {section.checkpoint} does not exist; give its path")


def build_plan(folder: Path, recipe: Path, comparison: Comparison, common: Path) -> Plan:
    """Return the comparison itself. `common`: the world whose CLIP all seeds start from, if the file names none."""
    worlds = comparison.worlds
    world = None
    if worlds is not None:
        needed = find_preset(worlds.preset).overrides
        comparison = replace(comparison, common=(*needed, *comparison.common))
        clip_from = Path(worlds.clip_from) if worlds.clip_from else common
        world = WorldPlan(worlds.preset, worlds.train_videos, worlds.test_videos, clip_from)
    return Plan(folder, recipe, comparison, world)


@cache
def _clip_hash(common: Path) -> str:
    return file_hash(common / "clip" / "model.safetensors")
