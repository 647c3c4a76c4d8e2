"""The trials of `teachclip study`: prepare the data of a seed, or train one student on it and measure it.

Everything in them goes through the functions behind the commands that a user would type. Nothing here deletes a
dataset, a teacher or a store: those functions refuse what was made from other data, and report what differs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from teachclip.evaluation.per_query import PerQuery, per_query
from teachclip.evaluation.retrieval import Ranks
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.student import load_student
from teachclip.pipeline import build
from teachclip.pipeline.conditions import as_trained
from teachclip.pipeline.distill import distill
from teachclip.pipeline.evaluate import evaluate
from teachclip.pipeline.relevance import teacher_relevance, training_content
from teachclip.pipeline.teachers import TeacherHandle, check_teachers, open_teachers
from teachclip.pipeline.temperature_scaling import set_pooling_temperature
from teachclip.pipeline.train_teacher import train_teacher
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.shapes.dataset import make_shapes
from teachclip.shapes.ground_truth import attention_by_kind, event_frames_only, teacher_frames
from teachclip.store.files import write_atomic
from teachclip.store.fingerprint import fingerprint_of
from teachclip.studies.certainty import queries_of
from teachclip.studies.trials import Trial, code_hash, seed_places
from teachclip.studies.variants import Settings
from teachclip.studies.without_test import without_test
from teachclip.training.checkpoint import newest_checkpoint
from teachclip.training.distributed import build_accelerator, processes_of

FileStamps = dict[str, list[int]]
"""Path -> size and time of the last change."""


@dataclass(frozen=True)
class ShapesPlan:
    """The Shapes dataset of every seed, and the one whose CLIP all of them start from."""

    preset: str
    train_videos: int | None
    """None: as many as the preset defines; so with those for test."""
    test_videos: int | None
    common: Path
    texts: tuple[str, ...] = ()
    """What every seed gets as shapes_texts.txt."""


@dataclass(frozen=True)
class _SeedTrial(Trial):
    """The fields of all trials."""

    folder: Path
    recipe: Path
    seed: int
    shapes: ShapesPlan | None
    """None: the recipe's own data, the same for all seeds."""
    settings: Settings
    depends_on: Mapping[str, Any] = field(default_factory=dict)
    """What the result depends on beside kind, seed and version."""

    def places(self) -> dict[str, str]:
        """Return the environment in which the recipe finds the data and the stores of the seed."""
        return {} if self.shapes is None else seed_places(self.folder, self.seed)


@dataclass(frozen=True)
class Prepare(_SeedTrial):
    """Make what all students of a seed share: dataset, teachers, stores; and measure what needs no student.

    `settings` are the overrides for every variant. The result has `content`, hashes of all that students train on and
    are measured on, by name of the stores; `splits`, the number of videos and captions of each split of the first
    reader; with `measure` also `zero_shot` and `teachers`, evaluated on test; and with `frame_probe` the teachers'
    `frames` (frame relevance by kind of frame) and `event_frames`, mean pooling over the event frames alone.
    """

    readers: tuple[tuple[str, Settings], ...] = ()
    """Name of stores, and overrides of a recipe that reads them; a name may occur several times."""
    measure: bool = True
    frame_probe: bool = False

    @property
    def name(self) -> str:
        """Name of the trial's file."""
        return "prepare" if self.shapes is None else f"prepare-{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on; own files count as they are now, with the teacher made."""
        values = {**self.depends_on, "measure": self.measure, "probe": self.frame_probe, "code": code_hash()}
        if self.shapes is None:
            return fingerprint_of({**values, "files": self._stamps()})
        sizes = {key: value for key, value in vars(self.shapes).items() if key != "common"}
        return fingerprint_of({**values, "seed": self.seed, "shapes": sizes})

    def run(self) -> dict[str, Any]:
        """Make, train, precompute and measure what is missing."""
        if self.shapes is not None:
            self._make_shapes(self.shapes)
        content: dict[str, dict[str, str]] = {}
        splits: list[dict[str, list[int]]] = []
        trained: set[str] = set()
        for stores, settings in self.readers:
            recipe = recipe_with_stores(self.recipe, settings, stores)
            for section in recipe.teachers:
                if section.training is not None and section.checkpoint not in trained:
                    self._train_teacher(recipe, section)
                    trained.add(section.checkpoint)
            hashes, sizes = _store(recipe)
            content.setdefault(stores, {}).update(hashes)
            splits.append(sizes)
        result = {"content": content, "splits": splits[0]}
        if self.measure:
            result |= _measure(load_recipe(self.recipe, self.settings), frame_probe=self.frame_probe)
        return result

    def _make_shapes(self, shapes: ShapesPlan) -> None:
        options: dict[str, Any] = {} if shapes.preset == "default" else {"preset": shapes.preset}
        sizes = {"train_videos": shapes.train_videos, "test_videos": shapes.test_videos}
        options |= {name: count for name, count in sizes.items() if count is not None}
        make_shapes(
            self.places()["SHAPES_ROOT"],
            seed=self.seed,
            workers=1,
            clip_from=shapes.common,
            progress=False,
            **options,
        )
        if shapes.texts:
            path = Path(self.places()["TEACHCLIP_RUNS"]) / "shapes_texts.txt"
            write_atomic(path, "".join(f"{text}\n" for text in shapes.texts).encode())

    def _train_teacher(self, recipe: Recipe, section: TeacherSection) -> None:
        """Train a teacher: on Shapes always, with the seed of the dataset; otherwise where there is no checkpoint."""
        if self.shapes is not None and section.training is not None:
            training = section.training.model_copy(update={"seed": self.seed})
            train_teacher(recipe, teacher=section.model_copy(update={"training": training}))
        elif not TeacherHandle(section, torch.device("cpu")).exists():
            train_teacher(recipe, teacher=section)

    def _stamps(self) -> FileStamps:
        """Return the stamps of the files that the recipes name, and of those below the folders that they name."""
        paths: set[Path | None] = set()
        for stores, settings in self.readers:
            recipe = recipe_with_stores(self.recipe, settings, stores)
            data = recipe.data
            paths |= {data.annotations, data.videos, data.train, data.test, Path(recipe.student.backbone)}
            paths |= {data.validation.list if data.validation else None, recipe.student.text_teaching.texts}
            paths |= {Path(recipe.student.text_backbone)} if recipe.student.text_backbone else set()
            paths |= {Path(teacher.checkpoint) for teacher in recipe.teachers}
        return file_stamps(*paths)


@dataclass(frozen=True)
class Train(_SeedTrial):
    """Train a student and measure it: `tune` on validation, without the test split, or `test` on test.

    The result has `step`, `seconds` of the whole run (None if it continued after an interruption), `parameters` that
    were trained, `validation`, `test`, and where the recipe tries them `temperature_scaling` and `wise_ft`; with
    `factors` also `factors`, the evaluation at each pooling factor; and with `frame_probe` the attention weight by
    kind of frame, `frames`, in each of those, or beside them if there are none.
    """

    kind: str = "tune"
    variant: str = ""
    stores: str = ""
    factors: tuple[float, ...] = ()
    frame_probe: bool = False

    @property
    def name(self) -> str:
        """Name of the trial's file and run folder."""
        return f"{self.kind}-{self.seed}-{self.variant}-{self.fingerprint[:10]}"

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on."""
        measured = {"factors": list(self.factors), "probe": self.frame_probe}
        values = {"kind": self.kind, "seed": self.seed, "depends_on": dict(self.depends_on), "measured": measured}
        return fingerprint_of({**values, "code": code_hash()})

    @property
    def output(self) -> Path:
        """Folder of the run, until it is measured."""
        return self.folder / "runs" / self.name

    def overrides(self) -> Settings:
        """Return all overrides of the recipe but for the output."""
        return (*self.settings, f"seed={self.seed}")

    def run(self) -> dict[str, Any]:
        """Train with the main command; only the numbers are kept."""
        output = self.output
        settings = (*self.overrides(), f"output={output}")
        if self.kind == "tune":
            read = load_recipe(self.recipe, settings).data.format
            settings = (*settings, f"data.format={without_test(str(read))}")
        recipe = recipe_with_stores(self.recipe, settings, self.stores)
        is_whole, started = not output.exists(), time.monotonic()
        queries: list[PerQuery] = []
        results = distill(recipe, keep_queries=queries.append)
        if queries:
            results["test"]["queries"] = queries_of(queries[0])
        seconds = time.monotonic() - started if is_whole else None
        kept: dict[str, Any] = {
            key: results[key]
            for key in ("step", "validation", "test", "temperature_scaling", "wise_ft", "conditions")
            if key in results
        }
        kept |= {"seconds": seconds, "parameters": _trained_parameters(output)}
        if self.factors or self.frame_probe:
            split = "validation" if self.kind == "tune" else "test"
            kept |= measure_student(recipe, split, self.factors, frame_probe=self.frame_probe)
        shutil.rmtree(output)
        return kept


def recipe_with_stores(path: Path, settings: Settings, stores: str) -> Recipe:
    """Return a recipe whose stores are those of a name; "" is the recipe's own."""
    recipe = load_recipe(path, settings)
    return load_recipe(path, [*settings, f"stores={recipe.stores}-{stores}"]) if stores else recipe


def file_stamps(*paths: Path | None) -> FileStamps:
    """Return size and time of files, and of all files below folders; what does not exist is skipped."""
    roots = [path for path in paths if path is not None]
    files = sorted({file for root in roots for file in (root, *root.rglob("*")) if file.is_file()})
    stats = {str(file): file.stat() for file in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def measure_student(
    recipe: Recipe, split_name: str, factors: Sequence[float], *, frame_probe: bool
) -> dict[str, Any]:
    """Measure the exported student of a run, with frozen encoders, at every pooling factor.

    A factor f multiplies the trained attention scores before the pooling softmax, so it divides the pooling
    temperature; 1 is the student as trained. Returns `factors`, by factor as text what `evaluate_split` returns; with
    `frame_probe` each has `frames`, the mean attention weight on the frames of each kind (Shapes only). Without
    factors `frames` of the student as exported is all that is returned.
    """
    recipe = as_trained(recipe)
    work = _workspace(recipe)
    split = work.split(split_name)
    inputs = work.feature_inputs(split, work.backbone)
    student = (
        load_student(recipe.output / "student", trust_remote_code=recipe.student.trust_remote_code)
        .eval()
        .to(work.device)
    )
    measured: dict[str, Any] = {}
    for factor in factors:
        set_pooling_temperature(student, recipe.student.pooling_temperature / factor)
        ranks: list[Ranks] = []
        metrics = evaluate_split(
            student, inputs, split, build.build_blocks(recipe), work.device, keep_ranks=ranks.append
        )
        if split_name == "test":
            metrics["queries"] = queries_of(per_query(ranks[0], split))
        measured[f"{factor:g}"] = metrics | (
            {"frames": attention_by_kind(student, work, split)} if frame_probe else {}
        )
    return {"factors": measured} if factors else {"frames": attention_by_kind(student, work, split)}


def _workspace(recipe: Recipe) -> Workspace:
    accelerator = build_accelerator()
    return build_workspace(recipe, processes_of(accelerator), accelerator.device)


def _store(recipe: Recipe) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Store frames, features and relevance, so that students find them.

    Returns the hashes of what they depend on, and the number of videos and captions of every split.
    """
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
    test_content = {"test": fingerprint_of(work.provenance(test, work.backbone, {}))}
    sizes = {split.name: [len(split.videos), len(split.captions)] for split in work.catalog.splits}
    return {**training_content(work), **test_content}, sizes


def _measure(recipe: Recipe, *, frame_probe: bool) -> dict[str, Any]:
    """Evaluate on test what needs no student: zero-shot, and the teachers that score themselves."""
    handles = open_teachers(recipe, torch.device("cpu"))
    labels = [label for label, handle in handles.items() if not (handle.reads_relevance or handle.scores_shortlist)]
    result: dict[str, Any] = {
        "zero_shot": _with_queries(recipe, "zero_shot"),
        "teachers": {label: _with_queries(recipe, label) for label in labels},
    }
    if frame_probe:
        work = _workspace(recipe)
        for label in labels:
            result["teachers"][label]["frames"] = teacher_frames(work, label)
        result["event_frames"] = event_frames_only(work)
    return result


def _with_queries(recipe: Recipe, model: str) -> dict[str, Any]:
    """Evaluate a model on test, and keep the rank of each query."""
    queries: list[PerQuery] = []
    results: dict[str, Any] = evaluate(recipe, model=model, keep_queries=queries.append)["test"]
    return results | ({"queries": queries_of(queries[0])} if queries else {})


def _trained_parameters(output: Path) -> int:
    """Return how many numbers the optimizer of a run moved: the sizes of the first moments that it kept."""
    newest = newest_checkpoint(output / "checkpoints", "step")
    if newest is None:
        return 0
    with safe_open(newest / "optimizer.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("exp_avg.")]  # noqa: SIM118  (not a mapping)
        return sum(prod(file.get_slice(name).get_shape()) for name in names)
