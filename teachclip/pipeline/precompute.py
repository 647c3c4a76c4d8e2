"""Decode the videos and store the teachers' relevance."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import StoreError
from teachclip.recipe.loading import load_recipe


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Decode all videos, store features of frozen towers, and store each teacher's relevance."""
    parser = recipe_arguments(
        "Decode all videos of a recipe once, and store the relevance of its teachers for the training pairs.\n"
        "What is there already is not computed again; after an interruption the same command goes on.\n"
        "Start it with: accelerate launch tools/precompute.py RECIPE"
    )
    parser.add_argument("--verify", action="store_true", help="check all checksums and compute a sample again")
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)

    from teachclip.pipeline import teacher_files
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.training.distributed import build_accelerator, processes_of

    accelerator = build_accelerator()
    teacher_files.check_teachers(recipe)
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    features = []
    if recipe.train.towers == "frozen":
        views = {"train": work.views}  # the other splits are seen in view 0 alone
        features = [
            work.feature_inputs(split, work.backbone, views.get(split.name, 1)) for split in work.catalog.splits
        ]
    problems: list[str] = []
    for section in recipe.teachers:
        store = work.relevance(section)
        say(f"{section.label}: {store.path} ({store.rows} captions)")
        if args.verify:
            problems += work.verify(section, store)
    if args.verify:
        for inputs in features:
            problems += [*inputs.text_store.verify(), *inputs.video_store.verify()]
        problems += work.frames.verify()
        if problems:
            raise StoreError("\n".join(problems))
        say("verified: every checksum is right and a recomputed sample agrees")
