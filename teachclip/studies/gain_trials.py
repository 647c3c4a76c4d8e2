"""One trial of `teachclip measure-gain`: prepare the world of a seed, or train one student on it and measure it.

Everything in them goes through the commands that a user would type.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.trials import Trial, code_hash, seed_places


@dataclass(frozen=True)
class Sizes:
    """How large the world of a seed is."""

    train_videos: int
    test_videos: int


@dataclass(frozen=True)
class Job(Trial):
    """What one call of a worker does.

    `kind` is `world` (make it, train its teacher, precompute), `tune` (train a student, measure it on validation) or
    `test` (train a student, measure it on test). `settings` are overrides of the recipe. `sharpness`: the factors on
    the trained attention's scores at which the student is measured.
    """

    kind: str
    folder: Path
    recipe: Path
    seed: int
    sizes: Sizes
    common: Path
    """The world whose CLIP all seeds start from."""
    arm: str = ""
    settings: tuple[str, ...] = ()
    sharpness: tuple[float, ...] = (1.0,)
    content: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the result depends on."""

    @property
    def name(self) -> str:
        """Name of the job's file and folder, which says what it is."""
        return f"{self.kind}-{self.seed}" + (f"-{self.arm}-{self.fingerprint[:10]}" if self.arm else "")

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on."""
        return fingerprint_of(
            {
                "kind": self.kind,
                "seed": self.seed,
                "sizes": vars(self.sizes),
                "settings": list(self.settings),
                "sharpness": list(self.sharpness),
                "content": dict(self.content),
                "code": code_hash(),
            }
        )

    def places(self) -> dict[str, str]:
        """Return the environment in which the recipe finds the world and the stores of the job's seed."""
        return seed_places(self.folder, self.seed)

    def run(self) -> dict[str, Any]:
        """Do what the kind of the job says."""
        return _KINDS[self.kind](self)


def _recipe(job: Job, overrides: Sequence[str] = ()) -> Recipe:
    return load_recipe(job.recipe, overrides)


def _make_world(job: Job) -> dict[str, Any]:
    """Make the world of a seed, train its teachers, precompute, and measure what needs no student."""
    from teachclip.pipeline.evaluate import evaluate
    from teachclip.pipeline.train_teacher import train_teacher
    from teachclip.shapes.dataset import make_shapes
    from teachclip.shapes.ground_truth import event_frames_only, teacher_frames

    _discard_other(job)
    make_shapes(
        job.places()["SHAPES_ROOT"],
        train_videos=job.sizes.train_videos,
        test_videos=job.sizes.test_videos,
        seed=job.seed,
        workers=1,
        clip_from=job.common,
        progress=False,
    )
    count = len(_recipe(job, job.settings).teachers)
    recipe = _recipe(job, [*job.settings, *(f"teachers.{index}.training.seed={job.seed}" for index in range(count))])
    teachers = {}
    for section in recipe.teachers:
        train_teacher(recipe, teacher=section)
        found = evaluate(recipe, model=section.label)["test"]
        teachers[section.label] = {**found, "frames": teacher_frames(recipe, section)}
    _precompute(recipe)
    return {
        "zero_shot": evaluate(recipe, model="zero_shot")["test"],
        "teachers": teachers,
        "event_frames_only": event_frames_only(recipe),
    }


def _discard_other(job: Job) -> None:
    """Delete the folder of the seed if it was made under other provenance, and note those of now."""
    home = Path(job.places()["TEACHCLIP_RUNS"])
    mark = home / "fingerprint"
    if home.exists() and (not mark.exists() or mark.read_text(encoding="utf-8") != job.fingerprint):
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    mark.write_text(job.fingerprint, encoding="utf-8")


def _precompute(recipe: Recipe) -> None:
    """Store features and relevance, so that the students of a seed find them whoever comes first."""
    from teachclip.pipeline.relevance import teacher_relevance
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.training.distributed import build_accelerator, processes_of

    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    for split in work.catalog.splits:
        work.feature_inputs(split, work.backbone)
    for handle in work.teachers.values():
        teacher_relevance(work, handle)


def _train(job: Job) -> dict[str, Any]:
    """Train a student with the main command and measure it at every sharpness; only the numbers are kept."""
    from teachclip.pipeline.distill import distill
    from teachclip.shapes.ground_truth import measure_student

    output = job.folder / "runs" / job.name
    recipe = _recipe(job, [*job.settings, f"seed={job.seed}", f"output={output}"])
    trained = distill(recipe)
    split = "validation" if job.kind == "tune" else "test"
    measured = measure_student(recipe, split, job.sharpness)
    shutil.rmtree(output)
    return {"step": trained["step"], "split": split, "sharpness": measured}


_KINDS = {"world": _make_world, "tune": _train, "test": _train}
