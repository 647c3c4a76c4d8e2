"""Train a teacher of a recipe and write its checkpoint in the layout its authors published."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from teachclip.console import log
from teachclip.data.annotations.files import UNREADABLE, file_facts
from teachclip.data.annotations.records import Catalog, Split
from teachclip.errors import CheckpointError, DataError, RecipeError
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.checkpoints import save_checkpoint
from teachclip.models.clip import load_clip
from teachclip.pipeline import build
from teachclip.pipeline.encoders import check_clip, freeze, set_clip_weights, speed_up
from teachclip.pipeline.frames import hashes_file
from teachclip.pipeline.relevance import training_content
from teachclip.pipeline.selection import LAST_STEP, selects_last
from teachclip.pipeline.teachers import new_teacher, trainable_factory
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe, TeacherTraining
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import FeatureScorer
from teachclip.training.batches import TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.loop import fit
from teachclip.training.run import Run
from teachclip.training.teacher_task import TeacherTask

logger = logging.getLogger(__name__)


def _choose(recipe: Recipe, name: str | None) -> TeacherSection:
    trainable = [teacher for teacher in recipe.teachers if teacher.training is not None]
    chosen = [teacher for teacher in trainable if name in (None, teacher.label)]
    if len(chosen) != 1:
        names = ", ".join(teacher.label for teacher in trainable) or "none"
        excluded = "" if recipe.teaching.only is None else "; teaching.only excludes the others"
        raise RecipeError(
            f"choose one teacher with --teacher LABEL; with a section `training` there are: {names}{excluded}"
        )
    return chosen[0]


def train_teacher(
    recipe: RecipeSource, overrides: Sequence[str] = (), *, teacher: str | TeacherSection | None = None
) -> Path:
    """Train one teacher, select it on validation, and write its checkpoint in the layout its authors published.

    `recipe`, `overrides`: as of `distill`. `teacher`: its label or section; None if only one has a section
    `training`. Returns the checkpoint's path. Raises RecipeError if no teacher or several fit, CheckpointError if the
    checkpoint exists and no run of ours made it, DataError if its own annotations have nothing that the recipe does
    not validate or test on.
    """
    recipe = build.without_text_backbone(load_recipe(recipe, overrides))
    section = teacher if isinstance(teacher, TeacherSection) else _choose(recipe, teacher)
    training = section.training
    if training is None:
        raise RecipeError(f"teacher {section.label!r} has no section `training`")
    trainable_factory(section)
    checkpoint = Path(section.checkpoint)
    folder = checkpoint.parent / f"{checkpoint.stem}-run"
    accelerator = build_accelerator(
        mixed_precision=build.build_precision(training.train),
        trackers=training.train.trackers,
        output=str(folder),
        tf32=training.train.tf32,
        same_graph=False,
    )
    if checkpoint.exists() and not (folder / "settings.json").exists():
        raise CheckpointError(f"{section.checkpoint} exists and no run of ours made it; it is not overwritten")
    processes, catalog = processes_of(accelerator), None
    if training.annotations is not None:
        data = recipe.data.model_copy(update={"annotations": training.annotations})
        of_student, recipe = recipe, recipe.model_copy(update={"data": data})
        catalog = processes.main_first(lambda: _other_catalog(of_student, recipe))
    work, run = _prepare(recipe, section, training, folder, processes, accelerator.device, catalog)
    with run.opened():
        _train(work, section, training, run, accelerator, checkpoint)
        work.processes.wait()
    accelerator.end_training()  # ends the trackers and, in several processes, their connection
    return checkpoint


def _other_catalog(recipe: Recipe, changed: Recipe) -> Catalog:
    """Return what a teacher learns from by annotations of its own, without videos that the recipe measures on.

    Of its training split those of the recipe's validation and test go, of its validation those of test, unless the
    recipe selects on it: by id and by content of the file. A file that the recipe trains on too counts by its id
    alone. Raises DataError if none is left.
    """
    of_student, other = build.build_catalog(recipe), build.build_catalog(changed)
    known, other_known = _identities(recipe, of_student), _identities(recipe, other)
    trained = {identity for video in of_student.train.videos for identity in known[video.id]}

    def without(split: Split, *measured: Split | None) -> Split:
        videos = [video for part in measured if part is not None for video in part.videos]
        used = {identity for video in videos for identity in known[video.id]} - trained
        dropped = [video.id for video in split.videos if not used.isdisjoint(other_known[video.id])]
        what = f"{len(dropped)} {split.name} videos of {changed.data.annotations}: the recipe measures on them"
        if len(dropped) == len(split.videos):
            raise DataError(f"all {what}, so that none is left for its teacher")
        if dropped:
            logger.warning("excluded %s: %s", what, ", ".join(dropped[:3]))
        return split.without(set(dropped))

    validation = other.validation
    if validation is not None and recipe.data.select_on == "validation":
        validation = without(validation, of_student.test)
    train = without(other.train, of_student.validation, of_student.test)
    return replace(other, train=train, validation=validation)


def _identities(recipe: Recipe, catalog: Catalog) -> dict[str, set[str]]:
    """Return by what a video is known, by its id: the id, and the hash of its file or, unreadable, the path."""
    facts = file_facts(catalog.videos, hashes_file(recipe), progress=False, time_limit=recipe.frames.time_limit)
    hashes = {video.id: facts[video.id]["sha256"] for video in catalog.videos}
    return {
        video.id: {video.id, str(video.path) if hashes[video.id] == UNREADABLE else hashes[video.id]}
        for video in catalog.videos
    }


def _train(
    work: Workspace,
    section: TeacherSection,
    training: TeacherTraining,
    run: Run,
    accelerator: Accelerator,
    checkpoint: Path,
) -> None:
    """Train and select the teacher, and write its checkpoint."""
    model, batches, select = _build_training(work, section, training)
    selection = work.selection_split()
    last = selects_last(selection)
    accelerator.init_trackers(work.recipe.name)
    progress = fit(
        TeacherTask(model),
        build.build_optimizer_for(model, training.optimizer),
        batches,
        accelerator,
        run,
        build.build_schedule(
            training.train,
            training.optimizer,
            batches_per_epoch=batches.sampler.batches_per_epoch,
            seed=training.seed,
            select_last=last,
        ),
        select,
    )
    TeacherTask(model.cpu()).load_state_dict(run.best_weights())
    if work.processes.is_main:
        save_checkpoint(model.float().checkpoint(), checkpoint)
        chosen = LAST_STEP if last and progress.best_step == progress.step else f"chosen on {selection.name}"
        log(f"teacher: {section.checkpoint} (step {progress.best_step}, {chosen})")


def _prepare(
    recipe: Recipe,
    section: TeacherSection,
    training: TeacherTraining,
    folder: Path,
    processes: Processes,
    device: torch.device,
    catalog: Catalog | None,
) -> tuple[Workspace, Run]:
    """Read and decode the data, or that of a catalogue. The run of the teacher is not opened yet."""
    run = Run(folder, build.run_settings(recipe, teacher=section), processes)
    run.check()
    work = build_workspace(
        recipe,
        processes,
        device,
        teachers={},
        check=lambda found: build.check_training(recipe, training.train, found, processes),
        catalog=catalog,
    )
    return work, Run(folder, {**run.settings, "content": training_content(work)}, processes)


def _build_training(
    work: Workspace, section: TeacherSection, training: TeacherTraining
) -> tuple[Any, TrainingBatches, Callable[[], dict[str, Any]]]:
    """Return the new teacher, its batches, and a function that evaluates it on the selection split."""
    recipe, split, selection = work.recipe, work.catalog.train, work.selection_split()
    for part in (split, selection):
        part.require_captions("a teacher learns from captions")
    clip = load_clip(training.clip) if training.clip else work.backbone
    check_clip(clip, work.backbone, section)
    sizes = {"frames": recipe.frames.count, "tokens": recipe.text.max_tokens}
    model = new_teacher(section, clip, seed=training.seed, **sizes)
    freeze(model, encoders=training.train.encoders)
    set_clip_weights(model, training.train.clip_weights)
    speed_up(model, training.train)
    encoders = training.train.encoders
    if encoders == "frozen" and not isinstance(model, FeatureScorer):
        log(f"{section.name} reads more of its encoders than one feature per text and frame: they run in every step")
        encoders = "finetuned"  # of the inputs only: their weights stay frozen
    inputs = work.inputs(split, clip, encoders=encoders, views=work.views)
    sampler = build.build_sampler(training.train, split, seed=training.seed, views=work.views)
    selection_inputs = work.inputs(selection, clip, encoders=encoders)
    blocks = build.build_blocks(recipe)
    return (
        model,
        TrainingBatches(inputs, split, sampler, work.processes),
        lambda: evaluate_split(model, selection_inputs, selection, blocks, work.device, work.processes),
    )
