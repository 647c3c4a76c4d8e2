"""`teachclip make-shapes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command
from teachclip.console import log


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but where there is none nothing; keeps a line per preset."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Make a world from the command line."""
    from teachclip.shapes.presets import PRESETS, find_preset

    parser = argparse.ArgumentParser(
        prog="make_shapes",
        description="Make the embedded world: small videos with captions, and a tiny CLIP that knows what is in a\n"
        "frame. A second call makes only what is missing.",
        epilog="presets:\n" + "\n".join(f"  {name:12} {preset.summary}" for name, preset in PRESETS.items()),
        formatter_class=_Help,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder of the world")
    parser.add_argument("--preset", default="default", help="what is hard in the world; see below")
    own = "(default: the preset says)"
    parser.add_argument("--train-videos", type=int, help=f"videos with noisy captions, to train on {own}")
    parser.add_argument("--test-videos", type=int, help=f"videos with clean captions, to test on {own}")
    parser.add_argument("--seed", type=int, default=0, help="of videos and captions")
    parser.add_argument("--clip-seed", type=int, default=0, help="of the tiny CLIP's pre-training")
    parser.add_argument("--clip-from", type=Path, help="copy the CLIP of this finished world instead of training one")
    parser.add_argument("--workers", type=int, default=2, help="videos drawn and encoded at the same time")
    args = parser.parse_args(argv)
    from teachclip.shapes.make import make_shapes, read_record

    made = make_shapes(
        args.out,
        preset=args.preset,
        train_videos=args.train_videos,
        test_videos=args.test_videos,
        seed=args.seed,
        clip_seed=args.clip_seed,
        workers=args.workers,
        clip_from=args.clip_from,
    )
    results = read_record(args.out)["results"]
    log(f"{args.out}: {'made' if made else 'already made, nothing to do'}")
    found, ceiling = results["clip"]["frame_recall_at_1"], results["oracle_recall_at_1"]
    log(f"the tiny CLIP finds {found:.0f} % of 500 single frames by their captions")
    overrides = find_preset(args.preset).overrides
    if overrides:
        log(f"a recipe for it needs: {' '.join(overrides)}")
    log(f"who knows all about the test videos finds {ceiling:.0f} % of them by one caption: some fit several videos")
