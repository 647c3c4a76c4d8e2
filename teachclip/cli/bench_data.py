"""`teachclip bench-data`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.processes import usable_cores


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Benchmark decoding and stored frames from the command line."""
    parser = CommandParser(
        prog="teachclip bench-data",
        description="Decode files with bare decord and with decode_frames, file by file in turn and in the same "
        "worker processes, then read the same frames from a store. Ratios are of one run, so other work on the "
        "machine slows both sides.",
    )
    parser.add_argument("--files", type=positive_count, default=64, help="files to decode (default 64)")
    parser.add_argument(
        "--processes", type=positive_count, default=usable_cores(), help="worker processes (default: all cores)"
    )
    parser.add_argument("--videos", type=path_argument, help="folder of your own videos (default: synthetic ones)")
    parser.add_argument(
        "--kind",
        choices=("realistic", "small"),
        default="realistic",
        help="which synthetic videos (default realistic)",
    )
    parser.add_argument("--frames", type=positive_count, default=12, help="frames per video (default 12)")
    parser.add_argument("--json", type=path_argument, help="write the results to this file")
    args = parser.parse_args(argv)
    from teachclip.data_check.benchmark import benchmark

    benchmark(
        files=args.files,
        processes=args.processes,
        videos=args.videos,
        kind=args.kind,
        frames=args.frames,
        json_file=args.json,
    )
