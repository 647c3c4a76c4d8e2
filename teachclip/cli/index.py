"""`teachclip index`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.console import interruptible, log

DEFAULT = Path("video-index")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="teachclip index",
        description="Make a searchable index of all videos below some folders, or bring it up to date: only what is "
        "new or changed is encoded. Without FOLDER, the folders of the index are looked through again. After an "
        "interruption the same command continues. With another --model, --parts, --window, --stride, --precision or "
        "--keyframes all videos are encoded anew, while the index goes on answering as before.",
    )
    parser.add_argument("folders", nargs="*", type=path_argument, metavar="FOLDER", help="folders of videos")
    parser.add_argument(
        "--index", type=path_argument, default=DEFAULT, help=f"folder of the index (default {DEFAULT})"
    )
    parser.add_argument("--model", help="the student: a folder that `export` wrote, a file or a hub id")
    parser.add_argument("--parts", choices=["windows", "shots"], help="what films are cut into (default windows)")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="longest part (default 10)")
    parser.add_argument("--stride", type=float, metavar="SECONDS", help="from window to window (default half of one)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="what encoders compute in (float32)")
    parser.add_argument(
        "--keyframes",
        action=argparse.BooleanOptionalAction,
        help="read the nearest keyframes alone, fast where videos are large (default: as the student was trained)",
    )
    parser.add_argument(
        "--forget", nargs="+", type=path_argument, default=[], metavar="FOLDER", help="take folders out"
    )
    parser.add_argument(
        "--table", type=path_argument, metavar="CSV", help="gives files columns that filters may name"
    )
    parser.add_argument(
        "--export",
        type=path_argument,
        metavar="PARQUET",
        help="write all vectors to a file; without FOLDER only this",
    )
    parser.add_argument("--retry", action="store_true", help="try broken files again although they did not change")
    parser.add_argument("--engine", choices=["lance", "milvus"], help="what keeps the vectors (default lance)")
    parser.add_argument("--uri", help="address of the engine's server")
    parser.add_argument("--device", help="where the student runs, such as cpu or cuda:1 (default: a GPU if any)")
    parser.add_argument(
        "--workers", type=positive_count, default=0, help="processes that decode (default: one per core)"
    )
    parser.add_argument("--time-limit", type=float, default=300.0, metavar="SECONDS", help="per file (default 300)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Make an index of folders of videos, or bring it up to date."""
    args = _parser().parse_intermixed_args(argv)
    from teachclip.search.columns import set_columns
    from teachclip.search.index import VideoIndex
    from teachclip.search.limits import Limits
    from teachclip.search.update import Wanted, describe, update_index
    from teachclip.search.vectors_file import export_vectors

    wanted = Wanted(
        args.model,
        args.parts,
        args.window,
        args.stride,
        args.engine,
        args.uri,
        args.device,
        args.precision,
        args.keyframes,
    )
    limits = Limits(workers=args.workers, time_limit=args.time_limit)
    if args.folders or args.export is None:
        with interruptible():
            report = update_index(
                args.index, args.folders, wanted, forget=args.forget, retry=args.retry, limits=limits
            )
        for line in describe(report):
            log(line)
    with VideoIndex.open(args.index) as index:
        if args.table is not None:
            log(f"{args.table}: {set_columns(index, args.table):,} files have its columns")
        if args.export is not None:
            log(f"{args.export}: {export_vectors(index, args.export):,} vectors")
    print(f'teachclip search {shlex.quote(str(args.index))} "a text"', flush=True)
