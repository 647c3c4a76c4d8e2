"""`teachclip prepare` and `teachclip prepare init`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument, recipe_parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Examine the data of a recipe, or write a recipe for a folder of own videos."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["init"]:
        _init(arguments[1:])
        return
    parser = recipe_parser(
        "prepare",
        "Check the data of a recipe: find, probe and decode every video, and report what is missing, unreadable or "
        "suspicious, duplicates, the lengths of captions, and what can be trained on. Writes prepare.json and "
        "prepare.html into the recipe's output folder. Training does not decode these videos again.\n\n"
        "  teachclip prepare init FOLDER      write a recipe for a folder of your own videos\n"
        "  teachclip prepare init --help      where it is written, and other choices",
    )
    args = parser.parse_args(arguments)
    from teachclip.data_check.prepare import prepare

    prepare(args.recipe, args.overrides)


def _init(argv: Sequence[str]) -> None:
    """Write a recipe for a folder. Raises DataError if no captions are found, RecipeError if the recipe is there."""
    from teachclip.data_check.init_recipe import STUDENT, TEACHER, init_recipe

    parser = CommandParser(
        prog="prepare init",
        description="Write a recipe for a folder with your own videos and their captions: a table (.csv, .tsv, "
        ".xlsx, .jsonl or .parquet) of video,caption[,start,end,split], or a text beside each video with a caption "
        "in each line, or subtitles (.srt, .vtt). How they were understood is printed with the first rows.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=path_argument, help="folder with the videos, in sub-folders or not"
    )
    parser.add_argument("--captions", type=path_argument, help="file of captions; default: the only one in FOLDER")
    parser.add_argument("--out", type=path_argument, help="recipe to write (default: FOLDER/recipe.yaml)")
    parser.add_argument("--backbone", default=STUDENT, help=f"what the student starts from (default: {STUDENT})")
    parser.add_argument("--teacher", default=TEACHER, help=f"dual encoder that teaches, or none (default: {TEACHER})")
    args = parser.parse_args(argv)
    init_recipe(args.folder, captions=args.captions, out=args.out, backbone=args.backbone, teacher=args.teacher)
