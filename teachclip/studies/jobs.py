"""The trials of `teachclip ablate`: prepare the data of a seed, or train one student on it and measure it.

Everything in them goes through the commands that a user would type. Nothing here deletes a world, a teacher or a
store: those commands refuse what was made under other provenance, and say what differs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.gain_arms import Settings
from teachclip.studies.provenance import Stamps, file_stamps
from teachclip.studies.trials import Trial, code_hash, seed_places
from teachclip.studies.without_test import without_test


@dataclass(frozen=True)
class WorldPlan:
    """What the embedded world of every seed is, and the world whose CLIP all of them start from."""

    preset: str
    train_videos: int | None
    """None: as many as the preset says; so with those for test."""
    test_videos: int | None
    common: Path


@dataclass(frozen=True)
class _OfSeed(Trial):
    """What all trials know."""

    folder: Path
    recipe: Path
    seed: int
    world: WorldPlan | None
    """None: the recipe's own data, the same for all seeds."""
    settings: Settings
    counts: Mapping[str, Any] = field(default_factory=dict)
    """What the result depends on beside kind, seed and version."""

    def places(self) -> dict[str, str]:
        """Return the environment in which the recipe finds the data and the stores of the seed."""
        return {} if self.world is None else seed_places(self.folder, self.seed)


@dataclass(frozen=True)
class Prepare(_OfSeed):
    """Make what all students of a seed share: world, teachers, stores; and measure what needs no student.

    `settings` are the overrides for every arm. The result has `content`, hashes of all that students train on and are
    measured on, by variant; `splits`, videos and captions of each split of the first variant; and with `measure`
    `zero_shot` and `teachers`, evaluated on test.
    """

    variants: tuple[tuple[str, Settings], ...] = ()
    """Name of a variant of the stores, and overrides of a recipe that reads it; a variant may stand several times."""
    measure: bool = True

    @property
    def name(self) -> str:
        """Name of the trial's file."""
        return "prepare" if self.world is None else f"prepare-{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on; own files count as they are now, with the teacher made."""
        counts = {**self.counts, "measure": self.measure, "code": code_hash()}
        if self.world is None:
            return fingerprint_of({**counts, "files": self._stamps()})
        sizes = {key: value for key, value in vars(self.world).items() if key != "common"}
        return fingerprint_of({**counts, "seed": self.seed, "world": sizes})

    def run(self) -> dict[str, Any]:
        """Make, train, precompute and measure what is missing."""
        if self.world is not None:
            self._make_world(self.world)
        content: dict[str, dict[str, str]] = {}
        splits: list[dict[str, list[int]]] = []
        trained: set[str] = set()
        for variant, settings in self.variants:
            recipe = variant_recipe(self.recipe, settings, variant)
            for section in recipe.teachers:
                if section.training is not None and section.checkpoint not in trained:
                    self._train_teacher(recipe, section)
                    trained.add(section.checkpoint)
            hashes, sizes = _store(recipe)
            content.setdefault(variant, {}).update(hashes)
            splits.append(sizes)
        result = {"content": content, "splits": splits[0]}
        return {**result, **_measure(load_recipe(self.recipe, self.settings))} if self.measure else result

    def _make_world(self, world: WorldPlan) -> None:
        from teachclip.shapes.dataset import make_shapes

        asked: dict[str, Any] = {} if world.preset == "default" else {"preset": world.preset}
        sizes = {"train_videos": world.train_videos, "test_videos": world.test_videos}
        asked |= {name: count for name, count in sizes.items() if count is not None}
        make_shapes(
            self.places()["SHAPES_ROOT"],
            seed=self.seed,
            workers=1,
            clip_from=world.common,
            progress=False,
            **asked,
        )

    def _train_teacher(self, recipe: Recipe, section: TeacherSection) -> None:
        """Train a teacher: of a world in any case, with the seed of the world; otherwise where no checkpoint is."""
        from teachclip.pipeline.teachers import TeacherHandle
        from teachclip.pipeline.train_teacher import train_teacher

        if self.world is not None and section.training is not None:
            training = section.training.model_copy(update={"seed": self.seed})
            train_teacher(recipe, teacher=section.model_copy(update={"training": training}))
        elif not TeacherHandle(section, torch.device("cpu")).exists():
            train_teacher(recipe, teacher=section)

    def _stamps(self) -> Stamps:
        """Return the stamps of the files that the recipes name, and of those below the folders that they name."""
        named: set[Path | None] = set()
        for variant, settings in self.variants:
            recipe = variant_recipe(self.recipe, settings, variant)
            data = recipe.data
            named |= {data.annotations, data.videos, data.train, data.test, Path(recipe.student.backbone)}
            named |= {data.validation.list if data.validation else None}
            named |= {Path(teacher.checkpoint) for teacher in recipe.teachers}
        return file_stamps(*named)


@dataclass(frozen=True)
class Train(_OfSeed):
    """Train a student and measure it: `tune` on validation, without the test split, or `test` on test.

    The result has `step`, `seconds` of the whole run (None if it went on after an interruption), `parameters` that
    were trained, `validation`, `test`, and where the recipe tries it `temperature_scaling`.
    """

    kind: str = "tune"
    arm: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the trial's file and run folder."""
        return f"{self.kind}-{self.seed}-{self.arm}-{self.fingerprint[:10]}"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on."""
        return fingerprint_of(
            {"kind": self.kind, "seed": self.seed, "counts": dict(self.counts), "code": code_hash()}
        )

    def overrides(self) -> Settings:
        """Return all overrides of the recipe but for the output."""
        return (*self.settings, f"seed={self.seed}")

    def run(self) -> dict[str, Any]:
        """Train with the main command; only the numbers are kept."""
        from teachclip.pipeline.distill import distill  # loads long, so before the clock starts

        output = self.folder / "runs" / self.name
        settings = (*self.overrides(), f"output={output}")
        if self.kind == "tune":
            read = load_recipe(self.recipe, settings).data.format
            settings = (*settings, f"data.format={without_test(read)}", "data.test=null")
        recipe = variant_recipe(self.recipe, settings, self.variant)
        is_whole, started = not output.exists(), time.monotonic()
        results = distill(recipe)
        seconds = time.monotonic() - started if is_whole else None
        kept: dict[str, Any] = {
            key: results[key] for key in ("step", "validation", "test", "temperature_scaling") if key in results
        }
        kept |= {"seconds": seconds, "parameters": _trained_parameters(output)}
        shutil.rmtree(output)
        return kept


def variant_recipe(path: Path, settings: Settings, variant: str) -> Recipe:
    """Return a recipe whose stores are those of a variant; "" is the recipe's own."""
    recipe = load_recipe(path, settings)
    return load_recipe(path, [*settings, f"stores={recipe.stores}-{variant}"]) if variant else recipe


def _store(recipe: Recipe) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Store frames, features and relevance, so that students find them.

    Returns the hashes of what they depend on, and the number of videos and captions of every split.
    """
    from teachclip.pipeline.relevance import teacher_relevance, training_content
    from teachclip.pipeline.teachers import check_teachers, open_teachers
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.training.distributed import build_accelerator, processes_of

    accelerator = build_accelerator()
    teachers = open_teachers(recipe, accelerator.device)
    check_teachers(recipe, teachers)
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device, teachers=teachers)
    test = work.split("test")
    if recipe.train.encoders == "frozen":
        for split in work.catalog.splits:
            work.feature_inputs(split, work.backbone, work.views if split is work.catalog.train else 1)
    if recipe.teaching.source == "stored":
        for handle in teachers.values():
            teacher_relevance(work, handle)
    own = {"test": fingerprint_of(work.provenance(test, work.backbone, {}))}
    sizes = {split.name: [len(split.videos), len(split.captions)] for split in work.catalog.splits}
    return {**training_content(work), **own}, sizes


def _measure(recipe: Recipe) -> dict[str, Any]:
    """Evaluate on test what needs no student: zero-shot, and the teachers that score themselves."""
    from teachclip.pipeline.evaluate import evaluate
    from teachclip.pipeline.teachers import open_teachers

    handles = open_teachers(recipe, torch.device("cpu"))
    labels = [label for label, handle in handles.items() if not handle.reads_relevance]
    return {
        "zero_shot": evaluate(recipe, model="zero_shot")["test"],
        "teachers": {label: evaluate(recipe, model=label)["test"] for label in labels},
    }


def _trained_parameters(output: Path) -> int:
    """Return how many numbers the optimizer of a run moved: the sizes of the first moments that it kept."""
    from math import prod

    from safetensors import safe_open

    from teachclip.training.checkpoint import newest_checkpoint

    newest = newest_checkpoint(output / "checkpoints", "step")
    if newest is None:
        return 0
    with safe_open(newest / "optimizer.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("exp_avg.")]  # noqa: SIM118  (not a mapping)
        return sum(prod(file.get_slice(name).get_shape()) for name in names)
