"""`teachclip distill`: the main command."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_arguments


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Distil: decode and precompute what is missing, train, select, evaluate, export."""
    parser = recipe_arguments(
        "Distil the teachers of a recipe into its student.\n"
        "Decodes videos and stores relevance if that is not done yet, trains, selects on validation, evaluates on\n"
        "test and exports the student. The same command goes on after an interruption.\n"
        "Start it with: accelerate launch tools/distill.py RECIPE [KEY=VALUE ...]\n"
        "Without teachers (teachers=[]) it trains the same student undistilled.",
        dry_run=True,
    )
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline import distill, dry_run

    run = dry_run.dry_run if args.dry_run else distill.distill
    run(args.recipe, args.overrides)
