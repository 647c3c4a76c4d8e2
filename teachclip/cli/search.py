"""`teachclip search`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.console import log, one_line

if TYPE_CHECKING:
    from teachclip.search.results import Found


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="teachclip search",
        description="Search an index by a text, an example or both. A row of the table is a video: its score (the "
        "cosine of its best part), its file, and its best moments.",
        epilog="Filters: path, folder, date (of the last change), length (seconds), bytes and columns of tables, "
        "with = != < <= > >= or ~ (contains), such as 'length>=60' or folder=holiday. All must hold.",
    )
    parser.add_argument("index", type=path_argument, metavar="INDEX", help="folder that `teachclip index` made")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to search")
    parser.add_argument(
        "--like", metavar="FILE[@TIME]", help="an example: a video, a moment such as @0:42, a picture"
    )
    parser.add_argument("--minus", metavar="TEXT", help="what to turn away from")
    parser.add_argument("--filter", action="append", default=[], metavar="CONDITION", help="see below; repeatable")
    parser.add_argument("--within", metavar="VIDEO", help="search the moments of one video, by its path or id")
    parser.add_argument("--limit", type=positive_count, default=10, help="how many videos (default 10)")
    parser.add_argument("--parts", type=positive_count, default=3, help="how many moments of each (default 3)")
    parser.add_argument("--open", action="store_true", help="open the best moment in a player")
    parser.add_argument("--clip", type=path_argument, metavar="MP4", help="cut the best moment out into this file")
    parser.add_argument("--json", action="store_true", help="print JSON with all that is known of each part")
    parser.add_argument(
        "--rerank",
        metavar="TEACHER",
        help="who orders the best videos anew: the label of a teacher of --recipe, or the folder or hub id of a "
        "CrossEncoder of Sentence Transformers",
    )
    parser.add_argument("--recipe", help="the recipe that names the teacher of --rerank; a CrossEncoder needs none")
    parser.add_argument("--top", type=positive_count, default=50, help="how many videos --rerank orders (default 50)")
    parser.add_argument("--model", help="the student of the index, if its folder was moved")
    parser.add_argument("--device", help="where the student runs (default: a GPU if there is one)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Search an index and print a table."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    from teachclip.search.index import VideoIndex

    if args.rerank and not args.text:
        parser.error("--rerank needs a TEXT")
    with VideoIndex.open(args.index, model=args.model, device=args.device) as index:
        found = index.search(
            args.text,
            like=args.like,
            minus=args.minus,
            filters=args.filter,
            within=args.within,
            limit=max(args.limit, args.top) if args.rerank else args.limit,
            parts=args.parts,
        )
        if args.rerank:
            from teachclip.pipeline.rerank import open_reranker

            reranker = open_reranker(index, args.rerank, recipe=args.recipe, device=args.device)
            found = [*reranker.rerank(index, args.text, found[: args.top]), *found[args.top :]][: args.limit]
    if args.json:
        print(json.dumps([video.to_dict() for video in found], indent=1))
    else:
        print("\n".join(table(found)) if found else "nothing found", flush=True)
    if found and args.clip is not None:
        from teachclip.data.video.clip import cut_clip

        best = found[0].parts[0]
        cut_clip(found[0].path, best.start, best.end, args.clip)
        log(f"{args.clip}: {found[0].path} from {best.start:.1f} to {best.end:.1f} seconds")
    if found and args.open:
        from teachclip.search.players import open_moment

        open_moment(found[0].path, found[0].parts[0].start)


def table(found: Sequence[Found]) -> list[str]:
    """Return lines of a table: score, file and moments of each video."""
    from teachclip.search.results import clock

    paths = [one_line(_shown(video.path)) for video in found]
    width = max(map(len, ["file", *paths]))
    lines = [f"{'score':>6}  {'file':{width}}  best moments, @ the frame that counts most"]
    for video, path in zip(found, paths, strict=True):
        moments = ", ".join(f"{clock(part.start)}-{clock(part.end)} @{clock(part.best)}" for part in video.parts)
        lines.append(f"{video.score:6.3f}  {path:{width}}  {moments}")
    return lines


def _shown(path: str) -> str:
    """Return a path below the current folder without it."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)
