"""Distil the teachers of a recipe into its student."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from teachclip.console import log
from teachclip.data.annotations.records import Catalog
from teachclip.errors import CheckpointError, RecipeError
from teachclip.evaluation.per_query import PerQuery, per_query
from teachclip.evaluation.retrieval import Ranks
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import StudentModel
from teachclip.pipeline import build
from teachclip.pipeline.conditions import (
    Measured,
    conditions_of,
    keep_measurement,
    kept_measurement,
    measure,
    possible_recipes,
)
from teachclip.pipeline.encoders import prepare_encoders, speed_up
from teachclip.pipeline.export import write_student_folder
from teachclip.pipeline.lora import merge_lora
from teachclip.pipeline.order import build_joined, build_swapped
from teachclip.pipeline.relevance import check_relevance, training_content
from teachclip.pipeline.run_report import write_run_report
from teachclip.pipeline.selection import LAST_STEP, selects_last
from teachclip.pipeline.task import Teachers, build_frame_sets, build_task, build_teachers
from teachclip.pipeline.taught import write_taught
from teachclip.pipeline.teachers import TeacherHandles, check_teachers, open_teachers
from teachclip.pipeline.temperature_scaling import scale_temperature
from teachclip.pipeline.tracking import start_trackers, track_results
from teachclip.pipeline.uncaptioned import evaluate_any, teacher_choices
from teachclip.pipeline.unpaired import Unpaired, build_unpaired, check_unpaired
from teachclip.pipeline.wise_ft import interpolate_encoders
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, dump_recipe, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.reports.tables import results_table
from teachclip.scorer import FeatureScorer, gives_frame_relevance
from teachclip.scoring.inputs import SWAPPED, Inputs
from teachclip.store.files import write_atomic
from teachclip.training.batches import TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.frame_sets import FrameSetSampler
from teachclip.training.loop import fit
from teachclip.training.more_texts import MoreTexts
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask


def distill(
    recipe: RecipeSource, overrides: Sequence[str] = (), *, keep_queries: Callable[[PerQuery], object] | None = None
) -> dict[str, Any]:
    """Run a whole recipe: decode and precompute what is missing, train, select, evaluate, export.

    `recipe`: path of a recipe file, its content as a dict, or a `Recipe`; `overrides`: "section.key=value" texts.
    `keep_queries` gets the results of each query of the test split, where there are captions.
    A run that was interrupted continues when it is called again. Returns the student's results, which are also in
    `output/results.json`; the exported student is in `output/student`. Raises RecipeError, DataError and the other
    errors of `teachclip.errors`.
    """
    recipe = load_recipe(recipe, overrides)
    train = recipe.train
    precision = build.build_precision(train)
    accelerator = build_accelerator(
        mixed_precision=precision,
        trackers=train.trackers,
        output=str(recipe.output),
        tf32=train.tf32,
    )
    work, unpaired, run, measured = _prepare(recipe, processes_of(accelerator), accelerator.device)
    with run.opened():
        if work.processes.is_main:
            write_atomic(recipe.output / "recipe.yaml", dump_recipe(work.recipe).encode())
            if measured is not None:
                keep_measurement(recipe, measured)
        results = _train(work, unpaired, run, accelerator, keep_queries, measured)
        work.processes.wait()
    accelerator.end_training()  # ends the trackers and, in several processes, their connection
    return results


def _train(
    work: Workspace,
    unpaired: Unpaired | None,
    run: Run,
    accelerator: Accelerator,
    keep_queries: Callable[[PerQuery], object] | None,
    measured: Measured | None,
) -> dict[str, Any]:
    """Train and select, evaluate and export the student. Returns its results."""
    recipe, train = work.recipe, work.recipe.train
    student = build.build_student(recipe.student, work.backbone, seed=recipe.seed, frames=recipe.frames.count)
    select = _evaluation(work, student, "selection")
    prepare_encoders(student, recipe)
    if not work.catalog.train.is_paired:
        write_taught(work)
    speed_up(student, train)
    task, batches = build_training(work, student, unpaired)
    start_trackers(accelerator, recipe)
    last = selects_last(work.selection_split())
    progress = fit(
        task,
        build.build_optimizer_for(student, recipe.optimizer),
        batches,
        accelerator,
        run,
        build.build_schedule(
            train,
            recipe.optimizer,
            batches_per_epoch=batches.sampler.batches_per_epoch,
            seed=recipe.order_seed,
            select_last=last,
        ),
        select,
    )
    task.load_state_dict(run.best_weights())
    if train.encoders == "lora":
        merge_lora(student)
    chosen: dict[str, Any] = {} if measured is None else {"conditions": measured}
    if last and progress.best_step == progress.step:
        chosen["selected_by"] = LAST_STEP
    results = _measure(work, student, select, keep_queries, step=progress.best_step, **chosen)
    track_results(accelerator, results, progress.step)
    if work.processes.is_main:
        _export(work, student, results)
    return results


def _prepare(
    recipe: Recipe, processes: Processes, device: torch.device
) -> tuple[Workspace, Unpaired | None, Run, Measured | None]:
    """Check everything that can be checked, and read and decode the data. The run is not opened yet.

    The workspace has the recipe that is trained, without conditions; what decided is returned beside it.
    """
    measured = processes.gather(kept_measurement(recipe))[0]
    possible = possible_recipes(recipe, measured)
    teachers = open_teachers(recipe, device)
    _check_run(possible, processes)
    for each in possible:
        check_teachers(each, teachers)
        check_unpaired(each)

    def check(catalog: Catalog) -> None:
        build.check_uncaptioned(recipe, catalog)
        for each in possible:
            build.check_student_training(each, catalog, processes)
            check_relevance(each, teachers.values(), catalog.train)

    work = build_workspace(
        recipe,
        processes,
        device,
        teachers=teachers,
        check=check,
    )
    if conditions_of(recipe) and measured is None:
        measured = measure(work)  # of the backbone as it is, before anything trains
    (recipe,) = possible_recipes(recipe, measured)
    if measured is not None:
        _check_teaching(recipe, teachers)
    work = replace(work, recipe=recipe)
    run = Run(recipe.output, build.run_settings(recipe), processes)
    run.check()
    unpaired = build_unpaired(work) if recipe.losses.uses_frame_sets else None
    content = training_content(work) | (unpaired.content() if unpaired else {})
    return work, unpaired, Run(recipe.output, {**run.settings, "content": content}, processes), measured


def _check_run(possible: Sequence[Recipe], processes: Processes) -> None:
    """Raise CheckpointError, before anything is decoded, if a folder holds a run of none of these recipes."""
    problems = []
    for recipe in possible:
        try:
            return Run(recipe.output, build.run_settings(recipe), processes).check()
        except CheckpointError as error:
            problems.append(error)
    raise min(problems, key=lambda error: len(str(error)))  # of the recipe with the fewest differences


def _check_teaching(recipe: Recipe, teachers: TeacherHandles) -> None:
    """Raise RecipeError if what a condition changed leaves the teachers nothing to teach."""
    video_text = recipe.losses.video_text.is_used
    if teachers and not video_text and not any(gives_frame_relevance(handle.model) for handle in teachers.values()):
        raise RecipeError(
            f"{recipe.name}: if_late_interaction leaves the teachers nothing to teach: losses.video_text.weight is "
            "0, and none of them gives frame relevance; remove losses.video_text.weight=0 there"
        )


def build_training(
    work: Workspace, student: StudentModel, unpaired: Unpaired | None
) -> tuple[DistillationTask, TrainingBatches]:
    """Return what one step computes and what it reads; what teachers know of the data is stored by then."""
    recipe, split = work.recipe, work.catalog.train
    # of the backbone, not the student: its logit scale trains, and stored features would no longer be found
    inputs = work.inputs(split, work.backbone, encoders=recipe.train.encoders, views=work.views)
    joined = build_joined(work, split, inputs)  # before teachers compute for hours: it may find too few pairs
    teachers = build_teachers(work, split)
    sets, frame_set_scorer = build_frame_sets(work, split, inputs, unpaired)
    first_sets = None
    first = _stored_features(work, teachers, unpaired)
    if first is not None:
        first_sets, _ = build_frame_sets(work, split, first)
    for handle in work.teachers.values():
        handle.release()  # the task keeps those that run in every step
    sampler = build.build_sampler(recipe.train, split, seed=recipe.order_seed, views=work.views)
    extras = dict(teachers.extras)
    if (swapped := build_swapped(work, split)) is not None:
        extras[SWAPPED] = swapped
    count = recipe.losses.video_text.more_texts if build.uses_more_texts(recipe) else 0

    def batches_of(read: Inputs, sets: FrameSetSampler | None) -> TrainingBatches:
        more = MoreTexts(read, count, recipe.order_seed) if count else None
        return TrainingBatches(read, split, sampler, work.processes, teachers.stored, extras, sets, joined, more)

    batches = batches_of(inputs, sets)
    if first is not None:
        batches.begin_with(batches_of(first, first_sets), recipe.train.frozen_steps)
    return build_task(recipe, student, teachers, frame_set_scorer), batches


def _stored_features(work: Workspace, teachers: Teachers, unpaired: Unpaired | None) -> Inputs | None:
    """Return stored features to read in the steps in which encoders do not move yet, where nothing needs pixels.

    Features of all videos are stored for them, so only where these steps see as many; and in one process alone, as
    DistributedDataParallel wants the same graph in every step.
    """
    recipe, train, losses = work.recipe, work.recipe.train, work.recipe.losses
    videos = train.frozen_steps * train.batch_size // train.captions_per_video
    if videos < len(work.catalog.train.videos) * work.views or train.chunk_size is not None:
        return None
    if work.processes.count > 1 or teachers.online or unpaired is not None:
        return None
    if losses.joined_clips.is_used or losses.contrastive.swapped_clauses:
        return None
    if recipe.frames.store == "none" or recipe.student.text_backbone is not None:
        return None
    return work.feature_inputs(work.catalog.train, work.backbone, work.views)


def _evaluation(
    work: Workspace,
    student: FeatureScorer,
    split_name: str,
    *,
    final: bool = False,
    keep_ranks: Callable[[Ranks], object] | None = None,
) -> Callable[[], dict[str, Any]]:
    """Return a function that evaluates the student as it is then on a split, or on the selection split."""
    split = work.selection_split() if split_name == "selection" else work.split(split_name)
    inputs = work.inputs(split, work.backbone, encoders=work.recipe.train.encoders)
    choices = [] if split.is_paired else teacher_choices(work, split)
    options: dict[str, Any] = {"final": final} | ({"keep_ranks": keep_ranks} if keep_ranks else {})
    return lambda: evaluate_any(work, student, inputs, split, choices, **options)


def _measure(
    work: Workspace,
    student: StudentModel,
    select: Callable[[], dict[str, Any]],
    keep_queries: Callable[[PerQuery], object] | None,
    **chosen: Any,
) -> dict[str, Any]:
    """Mix encoders and scale the pooling temperature if the recipe says so; return the trained student's results.

    `chosen`: what the results say of its checkpoint.
    """
    student.float()  # what is measured here is what is exported, whatever `clip_weights` was
    results: dict[str, Any] = work.stamp(model="student", **chosen)
    shares, factors = work.recipe.student.wise_ft, work.recipe.student.temperature_scaling
    if shares:
        start = work.backbone.state_dict()
        results["wise_ft"] = interpolate_encoders(student, start, shares, select, work.processes)
    if factors:
        results["temperature_scaling"] = scale_temperature(student, factors, select, work.processes)
    for name, split in (("validation", work.catalog.validation), ("test", work.catalog.test)):
        if split is not None:
            kept: list[Ranks] = []
            keep = kept.append if name == "test" and keep_queries and split.is_paired else None
            results[name] = _evaluation(work, student, name, final=True, keep_ranks=keep)()
            if kept and keep_queries:
                keep_queries(per_query(kept[0], split))
    last = "test" if "test" in results else "validation"
    if last in results:  # what the student is compared with in its card
        results["zero_shot"] = {last: _evaluation(work, MeanPooling(work.backbone).to(work.device), last)()}
    return results


def _export(work: Workspace, student: StudentModel, results: dict[str, Any]) -> None:
    """Write the results and the student, and print the results."""
    output = work.recipe.output
    write_atomic(output / "results.json", json.dumps(results, indent=1).encode())
    student.processor = work.processor
    write_student_folder(student.cpu(), output / "student", results=results, recipe=work.recipe)
    print(results_table([results]), flush=True)
    write_run_report(work.recipe, results)
    log(f"student: {output / 'student'}  (results in {output / 'results.json'})")
