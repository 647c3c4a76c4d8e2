"""`teachclip evaluate`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument, recipe_parser
from teachclip.console import log
from teachclip.registry import closest

POST = ("dual_softmax", "qb_norm")


def _counts(text: str) -> list[int]:
    """Read whole numbers from 1 between commas. Raises ArgumentTypeError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) < 10**9 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: whole numbers from 1 between commas, as 10,20,50")
    return [int(part) for part in parts]


def _post(text: str) -> list[str]:
    """Read kinds of post-processing between commas. Raises ArgumentTypeError."""
    kinds = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [kind for kind in kinds if kind not in POST]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: allowed: {', '.join(POST)}{closest(unknown[0], POST)}")
    return kinds


def _parser() -> CommandParser:
    parser = recipe_parser(
        "evaluate",
        "Evaluate a model on the data of a recipe: text-to-video and video-to-text retrieval, and its cost.",
    )
    parser.add_argument(
        "--model",
        default="student",
        help="student (the exported one of the recipe's run), zero_shot (mean pooling), the label of a teacher of "
        "the recipe, or the folder (also an ONNX folder) or file of a student",
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument(
        "--rerank",
        metavar="TEACHER",
        help="who orders the best videos of each text anew: the label of a teacher of the recipe, or the folder or "
        "hub id of a CrossEncoder of Sentence Transformers",
    )
    parser.add_argument(
        "--top",
        type=_counts,
        metavar="K,...",
        help="how many videos --rerank orders anew; several for a table (default: 10,20,50,100)",
    )
    parser.add_argument(
        "--post",
        type=_post,
        metavar="KIND,...",
        default=[],
        help="also measure post-processing, in rows of its own: dual_softmax, which reads all test queries at once, "
        "and qb_norm, whose bank of queries are the training captions",
    )
    parser.add_argument("--out", type=path_argument, help="also write the results as JSON to this file")
    parser.add_argument(
        "--queries",
        type=path_argument,
        metavar="FILE.parquet",
        help="also write the rank and the score of each query to this file, for `teachclip compare`",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a model on a split and print a table."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.top and not args.rerank:
        parser.error("--top says how many videos --rerank orders anew: give both")
    from teachclip.evaluation.reranking import DEPTHS
    from teachclip.pipeline.evaluate import evaluate
    from teachclip.reports.tables import post_processing_table, reranking_table, results_table
    from teachclip.store.files import write_atomic

    results = evaluate(
        args.recipe,
        args.overrides,
        model=args.model,
        split=args.split,
        rerank=args.rerank,
        depths=args.top or DEPTHS,
        post=args.post,
        queries=args.queries,
    )
    print(results_table([results]), flush=True)
    if args.post:
        print("\n" + post_processing_table(results, args.split), flush=True)
    if args.rerank:
        print("\n" + reranking_table(results, args.split), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps(results, indent=1).encode())
        log(f"results: {args.out}")
    if args.queries is not None:
        log(f"each query: {args.queries}")
