"""The plan of `teachclip measure-gain`: the seeds, and the trials that follow from them and the arms.

Every arm has the same number of settings, is measured at the same factors of attention sharpness, and uses the same
development seeds. The report says where a chosen value lies on the edge of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from teachclip.recipe.loading import find_recipe, load_recipe
from teachclip.store.files import file_hash
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.comparison import Candidate, choose
from teachclip.studies.gain_arms import PUBLISHED, Arm, Family, Settings
from teachclip.studies.gain_trials import Job, Sizes

RECIPE = "shapes_xpool.yaml"
FIRST_DEV_SEED = 200
FIRST_SEED = 300
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
VALIDATION_VIDEOS = 300
TEST_VIDEOS = 300

ALL_CAPTIONS = "data.test=${SHAPES_ROOT:-runs/shapes}/test_full.csv"
"""Five captions per test video instead of one: the same videos, less noise."""


@dataclass(frozen=True)
class Plan:
    """All that is to be run, and where it is kept."""

    folder: Path
    recipe: Path
    families: tuple[Family, ...]
    dev_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    sizes: Sizes
    common: Path
    """The world whose CLIP all seeds start from; it is made if it is not there."""
    overrides: Settings = ()
    """Overrides of the recipe in every job, before those of arm and setting."""

    def worlds(self) -> list[Job]:
        """Return the jobs that make the worlds of all seeds."""
        return [self._job("world", seed) for seed in (*self.dev_seeds, *self.seeds)]

    def tuning(self) -> list[Job]:
        """Return the trials on validation of all arms."""
        return [
            self.tune_job(seed, family, arm, setting)
            for seed in self.dev_seeds
            for family in self.families
            for arm in family.arms
            for setting in arm.grid
        ]

    def testing(self, candidates: Mapping[tuple[str, str], Sequence[Candidate]]) -> list[Job]:
        """Return the trials on test: per arm and fresh seed the settings that were chosen."""
        found: dict[str, Job] = {}
        for seed in self.seeds:
            for family in self.families:
                for arm in family.arms:
                    for choice in picks(candidates[family.name, arm.name]).values():
                        job = self.test_job(seed, family, arm, choice)
                        found[job.name] = job
        return list(found.values())

    def tune_job(self, seed: int, family: Family, arm: Arm, setting: Settings) -> Job:
        """Return the trial of a setting on the validation split of a development seed."""
        return self._job("tune", seed, family, arm, setting, SHARPNESS)

    def test_job(self, seed: int, family: Family, arm: Arm, choice: Candidate) -> Job:
        """Return the trial of a chosen setting on the test split of a fresh seed."""
        return self._job("test", seed, family, arm, choice.settings, SHARPNESS)

    def _job(
        self,
        kind: str,
        seed: int,
        family: Family | None = None,
        arm: Arm | None = None,
        setting: Settings = (),
        sharpness: tuple[float, ...] = (1.0,),
    ) -> Job:
        settings = (*self.overrides, *(arm.fixed if arm else ()), *setting)
        content = {"recipe": _what_counts(self.recipe, settings, kind), "clip": _clip_hash(self.common)}
        return Job(
            kind=kind,
            folder=self.folder,
            recipe=self.recipe,
            seed=seed,
            sizes=self.sizes,
            common=self.common,
            arm=f"{family.name}-{arm.name}" if family and arm else "",
            settings=settings,
            sharpness=sharpness,
            content=content,
        )


def picks(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return what validation chooses: `tuned` over settings and sharpness, `plain` over settings alone."""
    return {"finetuned": choose(candidates), "plain": choose([item for item in candidates if item.sharpness == 1])}


def whole(
    folder: Path,
    *,
    common: Path,
    dev_seeds: int,
    seeds: int,
    train_videos: int = 400,
    families: tuple[Family, ...] = (PUBLISHED,),
    recipe: str = RECIPE,
) -> Plan:
    """Return the measurement itself. `train_videos` are trained on; as many as the recipe says are validated on."""
    return Plan(
        folder,
        find_recipe(recipe),
        families,
        tuple(range(FIRST_DEV_SEED, FIRST_DEV_SEED + dev_seeds)),
        tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        Sizes(train_videos + VALIDATION_VIDEOS, TEST_VIDEOS),
        common,
        (ALL_CAPTIONS, f"data.validation.videos={VALIDATION_VIDEOS}"),
    )


def quick(
    folder: Path,
    *,
    common: Path,
    dev_seeds: int,
    seeds: int,
    families: tuple[Family, ...] = (PUBLISHED,),
    recipe: str = RECIPE,
) -> Plan:
    """Return a plan of the same shape that takes a minute or two and shows nothing but that it runs."""
    small = tuple(
        Family(
            family.name,
            family.label,
            tuple(Arm(arm.name, arm.label, arm.fixed, arm.grid[:2]) for arm in family.arms),
        )
        for family in families
    )
    path = find_recipe(recipe)
    teachers = range(len(load_recipe(path).teachers))
    return Plan(
        folder,
        path,
        small,
        tuple(range(FIRST_DEV_SEED, FIRST_DEV_SEED + min(dev_seeds, 1))),
        tuple(range(FIRST_SEED, FIRST_SEED + min(seeds, 2))),
        Sizes(train_videos=60, test_videos=30),
        common,
        (
            ALL_CAPTIONS,
            "data.validation.videos=20",
            *("train.steps=20", "train.batch_size=16", "train.evaluate_every=10"),
            *(f"teachers.{index}.training.train.steps=20" for index in teachers),
            *(f"teachers.{index}.training.train.batch_size=16" for index in teachers),
        ),
    )


@cache
def _clip_hash(common: Path) -> str:
    return file_hash(common / "clip" / "model.safetensors")


@cache
def _what_counts(path: Path, settings: Settings, kind: str) -> str:
    """Return the hash of what a job's numbers depend on in its recipe: values, but not where things lie.

    A world and its teacher do not depend on how students are trained.
    """
    recipe = load_recipe(path, settings)
    values = recipe.model_dump(mode="json", exclude={"output", "stores", "evaluation", "seed"})
    data = recipe.data
    values["data"] = [data.format, data.select_on, Path(data.test or "").name, values["data"]["validation"]]
    values["student"].pop("backbone")
    for teacher in values["teachers"]:
        teacher.pop("checkpoint")
    if kind == "world":
        values = {key: values[key] for key in ("data", "frames", "text", "teachers", "teaching")}
    return fingerprint_of(values)
