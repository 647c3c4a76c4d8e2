"""`teachclip import-relevance`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command, recipe_arguments
from teachclip.errors import RecipeError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a teacher's relevance store from a file of scores, or the ids of the training pairs."""
    parser = recipe_arguments(
        "Let any embedder or reranker teach: write the relevance store of a teacher named 'scores' from a file, and\n"
        "check every id in it.\n\n"
        "  import_relevance RECIPE --write-ids FOLDER      captions.csv (caption_id,video_id,text) and videos.csv\n"
        "                                                  (video_id,path,start,end) of the training pairs\n"
        "  import_relevance RECIPE --teacher LABEL [FILE]  .csv or .parquet of caption_id,video_id,score, or a .npy\n"
        "                                                  (captions x videos); default: the teacher's checkpoint\n\n"
        "The readers that come with teachclip call a caption VIDEO:NUMBER, counted from 0 for each video in the\n"
        "order of the annotations. What a file of scores may hold is in the docstrings of teachers/scores.py and\n"
        "teachers/score_files.py."
    )
    parser.add_argument("--teacher", metavar="LABEL", help="which teacher of the recipe; default: the only 'scores'")
    parser.add_argument("--write-ids", type=Path, metavar="FOLDER", help="write the ids instead")
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
