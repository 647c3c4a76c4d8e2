"""Train a teacher of a recipe and write its checkpoint in the layout its authors published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import CheckpointError, RecipeError
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a teacher as its section `training` says, and write its checkpoint."""
    parser = recipe_arguments(
        "Train a teacher of the recipe, as its section `training` says, and write its checkpoint.\n"
        "Start it with: accelerate launch tools/train_teacher.py RECIPE"
    )
    parser.add_argument("--teacher", help="which one, if several teachers of the recipe have a section `training`")
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    train_teacher(recipe, _choose(recipe, args.teacher))


def _choose(recipe: Recipe, name: str | None) -> TeacherSection:
    trainable = [teacher for teacher in recipe.teachers if teacher.training is not None]
    chosen = [teacher for teacher in trainable if name in (None, teacher.label)]
    if len(chosen) != 1:
        names = ", ".join(teacher.label for teacher in trainable) or "none"
        raise RecipeError(f"choose one teacher with --teacher LABEL; with a section `training` there are: {names}")
    return chosen[0]


def train_teacher(recipe: Recipe, section: TeacherSection) -> Path:
    """Train one teacher, select it on validation, and write its checkpoint. Returns the checkpoint's path."""
    from teachclip.data.batches import BatchPlan
    from teachclip.evaluation.evaluator import evaluate
    from teachclip.models.checkpoints import save_checkpoint
    from teachclip.models.clip import load_clip
    from teachclip.pipeline import build, teacher_files
    from teachclip.pipeline.encoders import check_clip, freeze, set_clip_weights
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.scorer import FeatureScorer
    from teachclip.training.batches import TrainingBatches
    from teachclip.training.distributed import build_accelerator, processes_of
    from teachclip.training.loop import fit
    from teachclip.training.run import Run
    from teachclip.training.task import TeacherTask

    training = section.training
    assert training is not None
    checkpoint = Path(section.checkpoint)
    folder = checkpoint.parent / f"{checkpoint.stem}-run"
    accelerator = build_accelerator(
        mixed_precision=training.train.mixed_precision, trackers=training.train.trackers, output=str(folder)
    )
    processes = processes_of(accelerator)
    if checkpoint.exists() and not (folder / "settings.json").exists():
        raise CheckpointError(f"{section.checkpoint} exists and no run of ours made it; it is not overwritten")
    run = Run(folder, build.run_settings(recipe, teacher=section), processes)
    run.check()
    work = build_workspace(
        recipe,
        processes,
        accelerator.device,
        check=lambda catalog: build.check_training(recipe, training.train, catalog, processes),
    )
    run = Run(folder, {**run.settings, "content": work.content([])}, processes)
    run.open()
    clip = load_clip(training.clip) if training.clip else work.backbone
    check_clip(clip, work.backbone, section)
    sizes = {"frames": recipe.frames.count, "tokens": recipe.text.max_tokens}
    teacher = teacher_files.new_teacher(section, clip, seed=training.seed, **sizes)
    freeze(teacher, towers=training.train.towers)
    set_clip_weights(teacher, training.train.clip_weights)
    towers = training.train.towers
    if towers == "frozen" and not isinstance(teacher, FeatureScorer):
        say(f"{section.name} reads more of its towers than one feature per text and frame: they run in every step")
        towers = "tuned"  # of the inputs only: their weights stay frozen
    inputs = work.inputs(work.catalog.train, clip, towers=towers, views=work.views)
    split = work.catalog.train
    plan = BatchPlan(len(split.captions), training.train.batch_size, training.seed, work.views)
    accelerator.init_trackers(recipe.name)
    selection = work.selection_split()
    selection_inputs = work.inputs(selection, clip, towers=towers)
    progress = fit(
        TeacherTask(teacher),
        build.build_optimizer_for(teacher, training.optimizer),
        TrainingBatches(inputs, split, plan, processes),
        accelerator,
        run,
        build.build_schedule(
            training.train, training.optimizer, batches_per_epoch=plan.batches_per_epoch, seed=training.seed
        ),
        lambda: evaluate(
            teacher, selection_inputs, selection, build.build_blocks(recipe), accelerator.device, processes
        ),
    )
    TeacherTask(teacher.cpu()).load_state_dict(run.best_weights())
    if processes.is_main:
        save_checkpoint(teacher.float().checkpoint(), checkpoint)
        say(f"teacher: {section.checkpoint} (step {progress.best_step}, chosen on {selection.name})")
    processes.wait()
    accelerator.end_training()  # ends the trackers and, in several processes, their connection
    return checkpoint
