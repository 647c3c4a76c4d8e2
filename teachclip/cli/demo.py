"""`teachclip demo`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.processes import usable_cores


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo, or what is missing of it."""
    parser = CommandParser(
        prog="teachclip demo",
        description="Make the Shapes dataset, train the teacher, precompute, distil, evaluate, export and report. "
        "Finished stages are recognised and skipped; after an interruption the same command continues.",
    )
    default = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    parser.add_argument(
        "--runs", type=path_argument, default=default, help="folder of everything that is made (default runs)"
    )
    parser.add_argument("--seeds", type=positive_count, default=3, help="student seeds per variant (default 3)")
    parser.add_argument("--threads", type=positive_count, default=usable_cores(), help="cores to use (default: all)")
    args = parser.parse_args(argv)
    from teachclip.demo.demo import demo

    demo(args.runs, seeds=args.seeds, threads=args.threads)
