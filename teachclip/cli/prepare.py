"""`teachclip prepare` and `teachclip prepare init`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command, recipe_arguments


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Examine the data of a recipe, or write a recipe for a folder of own videos."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["init"]:
        _init(arguments[1:])
        return
    parser = recipe_arguments(
        "Find and probe every video of a recipe, decode the frames that training will read, and say what is\n"
        "missing, unreadable or odd, how captions and tokens are distributed, what stands twice, and what can be\n"
        "trained on. Writes prepare.json and prepare.html, with pictures of the sampled frames, into the recipe's\n"
        "output folder. Frames are kept in the frame store, so that training need not decode them again.\n\n"
        "  prepare init FOLDER      write a recipe for a folder of your own videos (prepare init --help)"
    )
    args = parser.parse_args(arguments)
    from teachclip.data_check.prepare import prepare

    prepare(args.recipe, args.overrides)


def _init(argv: Sequence[str]) -> None:
    """Write a recipe for a folder. Raises DataError if no captions are found, RecipeError if the recipe is there."""
    from teachclip.data_check.init_recipe import STUDENT, TEACHER, init_recipe

    parser = argparse.ArgumentParser(
        prog="prepare init",
        description="Write a recipe for a folder with your own videos and their captions: a CSV, JSONL or Parquet "
        "file of video,caption[,start,end,split], or one text file per video beside it, a caption per line.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with the videos, in sub-folders or not")
    parser.add_argument("--captions", type=Path, help="file of captions; default: the only one in FOLDER")
    parser.add_argument("--out", type=Path, help="recipe to write (default: FOLDER/recipe.yaml)")
    parser.add_argument("--backbone", default=STUDENT, help=f"what the student starts from (default: {STUDENT})")
    parser.add_argument("--teacher", default=TEACHER, help=f"dual encoder that teaches, or none (default: {TEACHER})")
    args = parser.parse_args(argv)
    init_recipe(args.folder, captions=args.captions, out=args.out, backbone=args.backbone, teacher=args.teacher)
