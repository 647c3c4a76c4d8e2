"""`teachclip bench`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure training steps from the command line."""
    parser = CommandParser(
        prog="teachclip bench",
        description="Measure training steps on random weights and made-up data: the student alone, with 1 to 4 "
        "stored teachers, with teachers in every step (the official order of work), with several captions per video, "
        "in chunks, in bfloat16. All are measured in turn in one run, so that other work on the machine slows all.",
    )
    parser.add_argument("--size", default="tiny", help="of CLIP: tiny (default) or vit-b-32")
    parser.add_argument("--sides", nargs="+", help="which of them, by their names in the table (default: all)")
    parser.add_argument("--captions", type=positive_count, default=18_000, help="20 a video (default 18000)")
    parser.add_argument("--batch-size", type=positive_count, default=24, help="pairs per step (default 24)")
    parser.add_argument("--steps", type=positive_count, default=5, help="of each side in a round (default 5)")
    parser.add_argument("--rounds", type=positive_count, default=5, help="(default 5)")
    parser.add_argument("--threads", type=positive_count, help="of torch (default: its own)")
    parser.add_argument("--folder", type=path_argument, help="keep the made-up stores here")
    parser.add_argument("--json", type=path_argument, help="write the results to this file")
    args = parser.parse_args(argv)
    import torch

    from teachclip.pipeline.benchmark import benchmark_steps

    if args.threads:
        torch.set_num_threads(args.threads)
    benchmark_steps(
        args.size,
        sides=args.sides,
        captions=args.captions,
        batch_size=args.batch_size,
        steps=args.steps,
        rounds=args.rounds,
        folder=args.folder,
        json_file=args.json,
    )
