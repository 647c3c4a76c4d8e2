"""`teachclip bench-search`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure ways to search, on the vectors of an index."""
    parser = CommandParser(
        prog="teachclip bench-search",
        description="Measure ways to search in LanceDB on the vectors of an index: milliseconds per query, the share "
        "of the true 10 nearest rows that is found (R@10), and bytes. Where more rows are asked for than the index "
        "has, they are made between near real ones, with noise.",
    )
    parser.add_argument("index", type=path_argument, metavar="INDEX", help="folder that `teachclip index` made")
    parser.add_argument("texts", type=path_argument, metavar="TEXTS", help="file with one query per line")
    parser.add_argument("--rows", type=positive_count, nargs="+", default=[10_000], help="sizes (default 10000)")
    parser.add_argument("--dim", type=positive_count, default=512, help="of the vectors (default 512)")
    parser.add_argument("--queries", type=positive_count, default=100, help="how many (default 100)")
    parser.add_argument("--structures", nargs="+", help="which of them (default: all)")
    parser.add_argument("--films", type=path_argument, help="also time indexing the films below this folder")
    parser.add_argument("--out", type=path_argument, help="also write the measurements as JSON to this file")
    args = parser.parse_args(argv)
    from teachclip.search.benchmark import STRUCTURES, measure, multiplied, rotation
    from teachclip.search.index import VideoIndex
    from teachclip.search.throughput import measure_indexing, measure_queries

    texts = list(dict.fromkeys(args.texts.read_text(encoding="utf-8").splitlines()))[: args.queries]
    import numpy as np

    with VideoIndex.open(args.index) as index:
        vectors = np.stack(list(index.vectors().values()))
        queries = index.queries().texts([text for text in texts if text.strip()])
        asking = measure_queries(index, texts[:20])
        model = index.settings.model
    print(
        f"query: {asking['search']:.2f} ms; text tower {asking['text']:.2f} ms, engine {asking['engine']:.2f} ms, "
        f"ratio to both {asking['ratio']:.2f}"
    )
    indexing = measure_indexing(args.films, model) if args.films else {}
    if indexing:
        print(
            f"index: {indexing['index']:.0f} frames/s; decoding alone {indexing['decode']:.0f}, video tower alone "
            f"{indexing['tower']:.0f}, ratio to the slower {indexing['ratio']:.2f}; "
            f"before that {indexing['first_s']:.1f} s for the first film, with what an index needs once"
        )
    found = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            made = multiplied(vectors, rows, args.dim)
            asked = queries @ rotation(vectors.shape[1], args.dim)
            found += measure(made, asked, Path(folder), args.structures or list(STRUCTURES))
    for row in found:
        print(
            f"{row['rows']:>9,} rows  {row['structure']:12}  {row['ms']:8.1f} ms  R@10 {100 * row['recall']:5.1f}  "
            f"{row['bytes'] / 1e6:7.0f} MB  built in {row['build_s']:.0f} s"
        )
    if args.out is not None:
        content = {"real": len(vectors), "measured": found, "query": asking, "index": indexing}
        args.out.write_text(json.dumps(content, indent=1))
