"""The plan of `teachclip ablate`: the trials that follow from a recipe and its arms.

Settings are chosen on validation alone; `ablation_checks` refuses whatever would let the choice see a test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from teachclip.processes import environment
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.shapes.presets import find_preset
from teachclip.store.files import file_hash
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.comparison import Candidate, choose
from teachclip.studies.gain_arms import Arm, Settings
from teachclip.studies.jobs import Prepare, Train, WorldPlan
from teachclip.studies.provenance import Stamps, prepared_by, stored_by, trained_by, unpaired_stamps
from teachclip.studies.study_file import Comparison
from teachclip.studies.trials import seed_places

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
    _stamps: dict[str, Stamps] = field(default_factory=dict, init=False, repr=False, compare=False)

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
            with environment(self.places()):
                self._known[settings] = load_recipe(self.recipe, settings)
        return self._known[settings]

    def variant(self, settings: Settings) -> str:
        """Return the name of the stores of an arm that reads other data, frames or teachers; "" for the common ones.

        A teacher that is left out needs no stores of its own.
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
        counts: dict[str, Any] = {"recipe": trained_by(recipe), "data": {name: content[name] for name in read}}
        if unpaired := self._unpaired(recipe):
            counts["unpaired"] = unpaired
        return Train(self.folder, self.recipe, seed, self.world, settings, counts, kind, arm.name, variant)

    def _unpaired(self, recipe: Recipe) -> Stamps:
        """Return the stamps of unpaired files as they were when the plan was made: folders are walked once."""
        key = recipe.losses.frame_sets.model_dump_json()
        if key not in self._stamps:
            self._stamps[key] = unpaired_stamps(recipe)
        return self._stamps[key]

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

    def places(self) -> dict[str, str]:
        """Return the environment of the first seed: where its world is, or nothing for own data."""
        return seed_places(self.folder, self.comparison.seeds[0]) if self.world else {}


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
