"""`teachclip init`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.start.folder import require_folder


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a recipe for a folder of videos, with or without captions."""
    parser = CommandParser(
        prog="teachclip init",
        description="Write a recipe for a folder of your own videos, and say the one command to run next. It asks "
        "nothing. Captions are found if there are any: a table, or a text or subtitles beside each video. Without "
        "captions the student learns from a teacher which texts fit which videos; backbone, teacher and training are "
        "chosen by rules that rest on what was measured, and a short probe estimates minutes and gigabytes.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=path_argument, help="folder with the videos")
    parser.add_argument("--captions", type=path_argument, help="file of captions; default: the only one in FOLDER")
    parser.add_argument(
        "--texts",
        type=path_argument,
        help="file of texts, one per line, such as queries, for videos without captions (default: texts.txt or "
        "queries.txt in FOLDER, or names, tags and everyday words)",
    )
    parser.add_argument("--out", type=path_argument, help="recipe to write (default: FOLDER/recipe.yaml)")
    parser.add_argument("--backbone", help="what the student starts from: hub id or folder of a dual encoder")
    parser.add_argument("--teacher", help="dual encoder that teaches: hub id or folder")
    args = parser.parse_args(argv)
    require_folder(args.folder)
    from teachclip.start.init import init

    options = {"captions": args.captions, "texts": args.texts, "out": args.out}
    init(args.folder, **options, backbone=args.backbone, teacher=args.teacher)
