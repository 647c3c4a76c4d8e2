"""`teachclip soup`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Average students."""
    parser = recipe_parser(
        "soup",
        "Average the weights of several students of a recipe, greedily: the best one on the selection split, and "
        "each other one with which it does not get worse. They must have started from the same weights: runs of one "
        "seed with other rates, or with another batch_seed.",
    )
    parser.add_argument(
        "--students", nargs="+", required=True, metavar="FOLDER", help="folders of students, as distill writes them"
    )
    parser.add_argument("--out", type=path_argument, required=True, help="folder of the student to write")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline.soup import soup

    soup(args.recipe, args.students, args.out, args.overrides)
