"""`teachclip train-teacher`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a teacher as its section `training` says, and write its checkpoint."""
    parser = recipe_parser(
        "train-teacher",
        "Train a teacher of a recipe, as its section `training` says, and write its checkpoint. After an "
        "interruption the same command continues. Several processes: accelerate launch, as for distill.",
    )
    parser.add_argument("--teacher", help="which one, if several teachers of the recipe have a section `training`")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline.train_teacher import train_teacher

    train_teacher(args.recipe, args.overrides, teacher=args.teacher)
