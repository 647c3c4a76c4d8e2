"""Distil the teachers of a recipe into its student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from teachclip.console import log
from teachclip.pipeline import build, teacher_files
from teachclip.pipeline.encoders import freeze, set_clip_weights
from teachclip.pipeline.export import write_student_folder
from teachclip.pipeline.teaching import build_frame_sets, build_task, build_teachers
from teachclip.pipeline.temperature_scaling import sharpen
from teachclip.pipeline.unpaired import build_unpaired, check_unpaired
from teachclip.pipeline.workspace import build_workspace
from teachclip.recipe.loading import RecipeSource, dump_recipe, load_recipe
from teachclip.reports.tables import results_table
from teachclip.store.files import write_atomic
from teachclip.training.batches import TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.loop import fit
from teachclip.training.run import Run


def distill(recipe: RecipeSource, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a whole recipe: decode and precompute what is missing, train, select, evaluate, export.

    `recipe`: path of a recipe file, its content as a dict, or a `Recipe`; `overrides`: "section.key=value" texts.
    A run that was interrupted continues when it is called again. Returns the student's results, which are also in
    `output/results.json`; the exported student is in `output/student`. Raises RecipeError, DataError and the other
    errors of `teachclip.errors`.
    """
    recipe = load_recipe(recipe, overrides)
    from teachclip.data.batches import BatchSampler
    from teachclip.evaluation.evaluator import evaluate

    train = recipe.train
    accelerator = build_accelerator(
        mixed_precision=train.mixed_precision, trackers=train.trackers, output=str(recipe.output)
    )
    processes, device = processes_of(accelerator), accelerator.device
    run = Run(recipe.output, build.run_settings(recipe), processes)
    run.check()
    teacher_files.check_teachers(recipe)
    check_unpaired(recipe)
    work = build_workspace(
        recipe, processes, device, check=lambda catalog: build.check_training(recipe, train, catalog, processes)
    )
    unpaired = build_unpaired(work) if recipe.losses.uses_frame_sets else None
    content = work.content(recipe.teachers) | (unpaired.content() if unpaired else {})
    run = Run(recipe.output, {**run.settings, "content": content}, processes)
    run.open()
    if processes.is_main:
        write_atomic(recipe.output / "recipe.yaml", dump_recipe(recipe).encode())
    split, selection = work.catalog.train, work.selection_split()
    student = build.build_student(recipe.student, work.backbone, seed=recipe.seed, frames=recipe.frames.count)
    clip = work.backbone  # not the student's: its logit scale trains, and stored features would no longer be found
    inputs = work.inputs(split, clip, encoders=train.encoders, views=work.views)
    selection_inputs = work.inputs(selection, clip, encoders=train.encoders)
    freeze(student, encoders=train.encoders)
    set_clip_weights(student, train.clip_weights)
    teachers = build_teachers(work, split)
    sets, frame_set_scorer = build_frame_sets(work, split, inputs, unpaired)
    sampler = BatchSampler(len(split.captions), train.batch_size, recipe.seed, work.views)

    def select() -> dict[str, Any]:
        return evaluate(student, selection_inputs, selection, build.build_blocks(recipe), device, processes)

    accelerator.init_trackers(recipe.name)
    task = build_task(recipe, student, teachers, frame_set_scorer)
    progress = fit(
        task,
        build.build_optimizer_for(student, recipe.optimizer),
        TrainingBatches(inputs, split, sampler, processes, teachers.stored, teachers.extras, sets),
        accelerator,
        run,
        build.build_schedule(train, recipe.optimizer, batches_per_epoch=sampler.batches_per_epoch, seed=recipe.seed),
        select,
    )
    task.load_state_dict(run.best_weights())
    student.float()  # what is measured below is what is exported, whatever `clip_weights` was
    results: dict[str, Any] = work.stamp(model="student", step=progress.best_step)
    if recipe.student.temperature_scaling:
        results["temperature_scaling"] = sharpen(student, recipe.student.temperature_scaling, select, processes)
    for name, target in (("validation", work.catalog.validation), ("test", work.catalog.test)):
        if target is not None:
            target_inputs = work.inputs(target, clip, encoders=train.encoders)
            results[name] = evaluate(
                student, target_inputs, target, build.build_blocks(recipe), device, processes, cost=name == "test"
            )
    if processes.is_main:
        write_atomic(recipe.output / "results.json", json.dumps(results, indent=1).encode())
        student.processor = work.processor
        write_student_folder(student.cpu(), recipe.output / "student", results=results, recipe=recipe)
        print(results_table([results]), flush=True)
        log(f"student: {recipe.output / 'student'}  (results in {recipe.output / 'results.json'})")
    processes.wait()
    accelerator.end_training()  # ends the trackers and, in several processes, their connection
    return results
