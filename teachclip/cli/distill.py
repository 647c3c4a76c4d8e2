"""`teachclip distill`: the main command."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Distil: decode and precompute what is missing, train, select, evaluate, export."""
    parser = recipe_parser(
        "distill",
        "Distil the teachers of a recipe into its student: decode videos and compute relevance not yet stored, "
        "train, select on validation, evaluate on test, export. After an interruption the same command continues.\n\n"
        "  accelerate launch tools/distill.py RECIPE [KEY=VALUE ...]         in a checkout\n"
        "  accelerate launch -m teachclip distill RECIPE [KEY=VALUE ...]     installed\n\n"
        "Without teachers (teachers=[]) it trains the same student undistilled.",
        dry_run=True,
    )
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline import distill, dry_run

    run = dry_run.dry_run if args.dry_run else distill.distill
    run(args.recipe, args.overrides)
