"""`teachclip bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from teachclip.cli.arguments import CommandParser, UsageError, command, path_argument, positive_count

_COMMON: Mapping[str, Any] = {"size": "tiny", "rounds": 5, "threads": None}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "steps": {
        **_COMMON,
        **{"batch_size": 24, "sides": None, "captions": 18_000, "steps": 5, "folder": None, "figure": None},
    },
    "encoding": {**_COMMON, "batch_size": 8, "files": 16, "height": 240, "seconds": 15},
    "decoding": {
        **{"rounds": 5, "heights": (240, 720, 1080, 2160), "processes": (1, 2)},
        **{"files": 2, "seconds": 10, "folder": None},
    },
    "query": _COMMON,
    "memory": {"captions": 10_000},
}
"""Which options each of the measurements has beside `--json`, and what holds if they are not given."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure training steps, or encoding, from the command line."""
    parser = CommandParser(
        prog="teachclip bench",
        description="Measure speed on random weights and made-up data, all ways in turn in one run, so that other "
        "work on the machine slows all. steps: a training step of the student alone, with 1 to 4 stored teachers, "
        "with teachers in every step (the official order of work), with several captions per video, in chunks, in "
        "bfloat16. encoding: precompute, evaluate and encoding of mp4 files, against the bare tower and decoding. "
        "decoding: videos of several heights in 1 and 2 processes, keyframes alone, made smaller. query: one text "
        "against the bare tower, and a process's first. memory: peaks of every stage, also with ten times the data.",
    )
    parser.add_argument("what", nargs="?", choices=tuple(DEFAULTS), default="steps", help="default: steps")
    parser.add_argument("--size", help="steps, encoding, query: of CLIP: tiny (default) or vit-b-32")
    parser.add_argument(
        "--sides", nargs="+", help="steps: which of them, by their names (default: all but compiled ones)"
    )
    parser.add_argument("--captions", type=positive_count, help="steps, memory: 20 a video (default 18000, 10000)")
    parser.add_argument("--batch-size", type=positive_count, help="steps: pairs (default 24); encoding: videos (8)")
    parser.add_argument("--steps", type=positive_count, help="steps: of each side in a round (default 5)")
    parser.add_argument("--rounds", type=positive_count, help="of all but memory (default 5)")
    parser.add_argument(
        "--files", type=positive_count, help="encoding: videos (default 16); decoding: of each height and process (2)"
    )
    parser.add_argument("--height", type=positive_count, help="encoding: their pixels (default 240)")
    parser.add_argument(
        "--heights", type=positive_count, nargs="+", help="decoding: in pixels (default 240 720 1080 2160)"
    )
    parser.add_argument("--processes", type=positive_count, nargs="+", help="decoding: how many (default 1 2)")
    parser.add_argument("--seconds", type=positive_count, help="encoding, decoding: their length (default 15, 10)")
    parser.add_argument("--threads", type=positive_count, help="steps, encoding, query: of torch (default: its own)")
    parser.add_argument("--folder", type=path_argument, help="steps, decoding: keep what is made up here")
    parser.add_argument("--json", type=path_argument, help="write the results to this file")
    parser.add_argument("--figure", type=path_argument, help="steps: draw where the time goes into this PNG file")
    args = parser.parse_args(argv)
    own = _own_options(args)
    import torch

    from teachclip.data_check.benchmark_decoding import benchmark_decoding
    from teachclip.data_check.benchmark_encoding import benchmark_encoding
    from teachclip.data_check.benchmark_memory import benchmark_memory
    from teachclip.data_check.benchmark_query import benchmark_query
    from teachclip.pipeline.benchmark import benchmark_steps

    if threads := own.pop("threads", None):
        torch.set_num_threads(threads)
    measurements: Mapping[str, Callable[..., Any]] = {
        "steps": benchmark_steps,
        "encoding": benchmark_encoding,
        "decoding": benchmark_decoding,
        "query": benchmark_query,
        "memory": benchmark_memory,
    }
    measurements[args.what](**own, json_file=args.json)


def _own_options(args: Any) -> dict[str, Any]:
    """Return the options of the chosen measurement alone. Raises UsageError for those of the others."""
    own = DEFAULTS[args.what]
    others = [name for options in DEFAULTS.values() for name in options if name not in own]
    refused = [_flag(name) for name in dict.fromkeys(others) if getattr(args, name) is not None]
    if refused:
        known = ", ".join(map(_flag, own))
        raise UsageError(f"{', '.join(refused)}: not of `bench {args.what}`, which has {known}")
    return {name: default if getattr(args, name) is None else getattr(args, name) for name, default in own.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
