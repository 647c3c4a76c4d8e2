"""`teachclip diagnose`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser
from teachclip.errors import RecipeError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Diagnose a student from the command line."""
    parser = recipe_parser(
        "diagnose",
        "Show where the gap between a student and its teacher comes from: frame selection, one vector per "
        "video, or the features; how far both agree; and the queries on which the student fails. Writes "
        "diagnosis.html and diagnosis.json.",
    )
    parser.add_argument(
        "--student",
        type=path_argument,
        help="folder or file of a student (default: the exported one of the recipe's run)",
    )
    parser.add_argument("--teacher", metavar="LABEL", help="a teacher of the recipe (default: the first)")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument(
        "--worst", type=int, default=20, metavar="N", help="number of queries that are shown (default 20)"
    )
    parser.add_argument("--out", type=path_argument, help="folder to write (default: <output>/diagnosis)")
    args = parser.parse_intermixed_args(argv)
    if args.worst < 0:
        raise RecipeError(f"--worst is {args.worst}; allowed: 0 or more")
    from teachclip.diagnosis.diagnose import diagnose

    diagnose(
        args.recipe,
        args.overrides,
        student=args.student,
        teacher=args.teacher,
        split=args.split,
        worst=args.worst,
        out=args.out,
    )
