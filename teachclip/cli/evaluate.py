"""`teachclip evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser
from teachclip.console import log


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a model on a split and print a table."""
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
    parser.add_argument("--out", type=path_argument, help="also write the results as JSON to this file")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pipeline.evaluate import evaluate
    from teachclip.reports.tables import results_table
    from teachclip.store.files import write_atomic

    results = evaluate(args.recipe, args.overrides, model=args.model, split=args.split)
    print(results_table([results]), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps(results, indent=1).encode())
        log(f"results: {args.out}")
