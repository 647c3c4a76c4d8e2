"""`teachclip precompute`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_arguments


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Decode all videos, store features of frozen encoders, and store each teacher's relevance."""
    parser = recipe_arguments(
        "Decode all videos of a recipe once, and store the relevance of its teachers for the training pairs.\n"
        "What is there already is not computed again; after an interruption the same command goes on.\n"
        "Start it with: accelerate launch tools/precompute.py RECIPE"
    )
    parser.add_argument("--verify", action="store_true", help="check all checksums and compute a sample again")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline.precompute import precompute

    precompute(args.recipe, args.overrides, verify=args.verify)
