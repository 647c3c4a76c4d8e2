"""`teachclip bench-search`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.errors import DataError

if TYPE_CHECKING:
    from teachclip.search.index import VideoIndex


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure ways to search, on the vectors of an index."""
    parser = CommandParser(
        prog="teachclip bench-search",
        description="Measure a search of an index against its text tower and LanceDB alone, and ways to search in "
        "LanceDB on its vectors: milliseconds per query, the share of the true 10 nearest rows that is found (R@10), "
        "memory and bytes. Where more rows are asked for than the index has, they are made between near real ones, "
        "with noise; with --videos they are real ones.",
    )
    parser.add_argument("index", type=path_argument, metavar="INDEX", help="folder that `teachclip index` made")
    parser.add_argument("texts", type=path_argument, metavar="TEXTS", help="file with one query per line")
    parser.add_argument("--rows", type=positive_count, nargs="*", default=[10_000], help="sizes (default 10000)")
    parser.add_argument(
        "--dim", type=positive_count, help="of the vectors (default: 512, with --videos the student's)"
    )
    parser.add_argument("--queries", type=positive_count, default=100, help="how many (default 100)")
    parser.add_argument("--structures", nargs="+", help="which of them (default: all)")
    parser.add_argument(
        "--videos", type=path_argument, help="rows are the student's vectors of random frames of videos below this"
    )
    parser.add_argument(
        "--keep", type=path_argument, help=".npy file that keeps the rows of --videos; read if it is there"
    )
    parser.add_argument(
        "--large-tower", action="store_true", help="also search with a random text tower of CLIP ViT-B/32's size"
    )
    parser.add_argument("--films", type=path_argument, help="also time indexing the films below this folder")
    parser.add_argument("--out", type=path_argument, help="also write the measurements as JSON to this file")
    args = parser.parse_args(argv)
    from teachclip.search.index import VideoIndex

    texts = [text for text in args.texts.read_text(encoding="utf-8").splitlines() if text.strip()]
    texts = list(dict.fromkeys(texts))[: args.queries]
    with VideoIndex.open(args.index) as index:
        content: dict[str, Any] = {"query": _measure_queries(index, texts[:20], args.large_tower)}
        content["index"] = _measure_indexing(args.films, index.settings.model) if args.films else {}
        content["measured"] = _measure_structures(index, texts, args) if args.rows else []
    if args.out is not None:
        args.out.write_text(json.dumps(content, indent=1))


def _measure_queries(index: VideoIndex, texts: Sequence[str], large: bool) -> dict[str, Any]:
    from teachclip.search.throughput import measure_queries, tower_of_vit_b_32

    found = {"student": measure_queries(index, texts)}
    if large:
        with tempfile.TemporaryDirectory() as folder:
            queries = tower_of_vit_b_32(index, Path(folder) / "tower")
            found["vit-b-32"] = measure_queries(index, texts, queries=queries)
    for name, row in found.items():
        print(
            f"query, text tower of {name}: {row['search']:.2f} ms; text tower {row['text']:.2f} ms, LanceDB "
            f"{row['engine']:.2f} ms; ratio to both {row['ratio']:.2f}"
        )
    return found


def _measure_indexing(films: Path, model: str) -> dict[str, float]:
    from teachclip.search.throughput import measure_indexing

    row = measure_indexing(films, model)
    print(
        f"index: {row['index']:.0f} frames/s; decoding alone {row['decode']:.0f}, video tower alone "
        f"{row['tower']:.0f}, ratio to the slower {row['ratio']:.2f}; "
        f"before that {row['first_s']:.1f} s for the first film, with what an index needs once"
    )
    return row


def _measure_structures(index: VideoIndex, texts: Sequence[str], args: Any) -> list[dict[str, Any]]:
    import numpy as np

    from teachclip.search.benchmark import STRUCTURES, describe, measure
    from teachclip.search.benchmark_vectors import multiplied, rotation

    queries, found = index.queries().texts(texts), []
    own = index.settings.dim
    dim = args.dim or (own if args.videos else 512)
    if dim < own:
        raise DataError(f"--dim is {dim}, expected at least the {own} numbers of the index's vectors")
    real = _vectors_of_videos(index, args) if args.videos else np.stack(list(index.vectors().values()))
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            made = real[:rows] @ rotation(own, dim) if args.videos else multiplied(real, rows, dim)
            asked = queries @ rotation(own, dim)
            found += measure(made, asked, Path(folder), args.structures or list(STRUCTURES))
    for row in found:
        print(describe(row))
    return found


def _vectors_of_videos(index: VideoIndex, args: Any) -> Any:
    import numpy as np

    from teachclip.search.benchmark_vectors import vectors_of_frames
    from teachclip.search.queries import load_for_search

    count = max(args.rows)
    if args.keep is not None and args.keep.exists():
        real = np.load(args.keep, allow_pickle=False)
        dim = index.settings.dim
        if real.ndim != 2 or real.shape[1] != dim or real.dtype.kind != "f":
            raise DataError(
                f"{args.keep}: its rows are not vectors of {dim} numbers, as the index has; remove it to make it anew"
            )
        if len(real) < count:
            raise DataError(f"{args.keep}: has {len(real)} rows, --rows asks for {count}; remove it to make it anew")
        return real
    real = vectors_of_frames(load_for_search(index.settings.model), args.videos, count)
    if args.keep is not None:
        np.save(args.keep, real)
    return real
