"""`teachclip precompute`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, recipe_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Decode all videos, store features of frozen encoders, and store each teacher's relevance."""
    parser = recipe_parser(
        "precompute",
        "Decode all videos of a recipe and store the relevance of its teachers for the training pairs. What is "
        "stored already is not computed again. Several processes: accelerate launch, as for distill.",
    )
    parser.add_argument("--verify", action="store_true", help="check all checksums and compute a sample again")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline.precompute import precompute

    precompute(args.recipe, args.overrides, verify=args.verify)
