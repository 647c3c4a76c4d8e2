"""`teachclip import-relevance`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser
from teachclip.errors import RecipeError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a teacher's relevance store from a file of scores, or the ids of the training pairs."""
    parser = recipe_parser(
        "import-relevance",
        "Let any embedder or reranker teach: check a file of scores and write it as the relevance store of a teacher "
        "named 'scores'. The formats are in teachers/README.md.\n\n"
        "  teachclip import-relevance RECIPE --write-ids FOLDER      write the ids to score\n"
        "  teachclip import-relevance RECIPE --teacher LABEL [FILE]  read a .csv, .parquet or .npy",
    )
    parser.add_argument("--teacher", metavar="LABEL", help="which teacher of the recipe; default: the only 'scores'")
    parser.add_argument("--write-ids", type=path_argument, metavar="FOLDER", help="write the ids instead")
    args = parser.parse_intermixed_args(argv)
    files = [text for text in args.overrides if "=" not in text]
    overrides = [text for text in args.overrides if "=" in text]
    from teachclip.pipeline.import_relevance import import_relevance, write_ids

    if args.write_ids is not None:
        if files or args.teacher:
            raise RecipeError("--write-ids takes no FILE and no --teacher")
        write_ids(args.recipe, args.write_ids, overrides)
        return
    if len(files) > 1:
        raise RecipeError(f"give one FILE, got {', '.join(files)}")
    import_relevance(args.recipe, overrides, teacher=args.teacher, file=files[0] if files else None)
