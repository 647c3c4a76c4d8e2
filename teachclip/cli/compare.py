"""`teachclip compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.console import log


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compare two models query by query and print a table."""
    parser = CommandParser(
        prog="teachclip compare",
        description="Compare two models on the same queries: the difference of their recalls, its 95 % interval over "
        "the videos, and the p value of a permutation test.",
    )
    parser.add_argument("first", type=path_argument, help="what `teachclip evaluate --queries` wrote for one model")
    parser.add_argument("second", type=path_argument, help="the same for the other; differences are second - first")
    parser.add_argument("--out", type=path_argument, help="also write the differences as JSON to this file")
    args = parser.parse_args(argv)
    from teachclip.evaluation.comparison import compare
    from teachclip.evaluation.per_query import read_per_query
    from teachclip.reports.tables import comparison_table
    from teachclip.store.files import write_atomic

    found = compare(read_per_query(args.first), read_per_query(args.second))
    print(comparison_table(found), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps([item.as_dict() for item in found], indent=1).encode())
        log(f"differences: {args.out}")
