"""`teachclip compress`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, UsageError, command, path_argument, positive_count
from teachclip.console import log

DEFAULT_MOST = 1000


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure smaller forms of an index's vectors, and choose one."""
    parser = CommandParser(
        prog="teachclip compress",
        description="Measure smaller forms of an index's vectors (rungs) on queries of your own: what is found, "
        "bytes, time. Rungs: float32 (as it is), float16, int8, binary, binary+40 and binary+100 (so many of the "
        "best rows are compared again by their whole vectors), pcaN and pcaN+int8 (N principal components), prefixN "
        "and prefixN+int8 (the first N numbers, of a student trained with student.matryoshka). The table, JSON and "
        "a picture go into the folder of the index. --use chooses a rung, by which the index is searched from then "
        "on; --use float32 undoes it.",
    )
    parser.add_argument("--index", type=path_argument, required=True, help="folder that `teachclip index` made")
    parser.add_argument(
        "--queries",
        type=path_argument,
        metavar="FILE",
        help="a query per line; or a .csv or .tsv with a column `caption` and perhaps `video`, the file it describes",
    )
    parser.add_argument("--use", metavar="RUNG", help="search the index by this rung from now on")
    parser.add_argument(
        "--out", type=path_argument, metavar="FOLDER", help="where the table goes (default: the index)"
    )
    parser.add_argument(
        "--most", type=positive_count, default=DEFAULT_MOST, help=f"queries at most (default {DEFAULT_MOST})"
    )
    parser.add_argument("--model", help="the student of the index, if its folder was moved")
    parser.add_argument("--device", help="where the student runs (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if args.queries is None and args.use is None:
        raise UsageError("nothing to do: give --queries FILE to measure, --use RUNG to choose, or both")
    from teachclip.search.compressed import chosen_rung, use_rung
    from teachclip.search.compression import rung_named
    from teachclip.search.compression_measure import measure_index, page, write_report
    from teachclip.search.compression_queries import read_queries, trained_prefixes
    from teachclip.search.index import VideoIndex

    with VideoIndex.open(args.index, model=args.model, device=args.device) as index:
        if args.use is not None:
            rung_named(args.use, index.settings.dim)  # a mistake is told before minutes of measuring
        if args.queries is not None:
            queries = read_queries(args.queries, index, args.most)
            prefixes = trained_prefixes(args.model or index.settings.model)
            report = measure_index(index, queries.texts, queries.videos, prefixes)
            print(page(report), flush=True)
            for line in write_report(report, args.out or args.index):
                log(line)
        if args.use is not None:
            use_rung(args.index, args.use)
        log(f"{args.index}: is searched as {chosen_rung(index.generation)}")
