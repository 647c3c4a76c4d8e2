"""`teachclip make-shapes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.console import log


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults other than None, and one line per preset."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Make a Shapes dataset from the command line."""
    from teachclip.shapes.presets import PRESETS, find_preset

    parser = CommandParser(
        prog="teachclip make-shapes",
        description="Make the synthetic Shapes dataset: small videos with captions, and a tiny CLIP pre-trained on\n"
        "single frames. A second call makes only the files that are missing.",
        epilog="presets:\n" + "\n".join(f"  {name:12} {preset.summary}" for name, preset in PRESETS.items()),
        formatter_class=_Help,
    )
    parser.add_argument("--out", type=path_argument, default=Path("runs/shapes"), help="folder of the dataset")
    parser.add_argument("--preset", default="default", help="what is hard in the dataset; see below")
    default = "(default: that of the preset)"
    parser.add_argument("--train-videos", type=int, help=f"training videos, with noisy captions {default}")
    parser.add_argument("--test-videos", type=int, help=f"test videos, with clean captions {default}")
    parser.add_argument("--seed", type=int, default=0, help="seed of videos and captions")
    parser.add_argument("--clip-seed", type=int, default=0, help="seed of the tiny CLIP's pre-training")
    parser.add_argument(
        "--clip-from", type=path_argument, help="copy the CLIP of this Shapes dataset instead of training one"
    )
    parser.add_argument("--workers", type=int, default=2, help="videos that are drawn and encoded at the same time")
    parser.add_argument(
        "--languages",
        nargs="+",
        choices=["de", "fr"],
        default=[],
        help="also write test queries, parallel texts and a text encoder with random weights for these languages",
    )
    args = parser.parse_args(argv)
    from teachclip.shapes.dataset import make_shapes, read_manifest

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
    if args.languages:
        from teachclip.shapes.languages import write_languages

        write_languages(args.out, args.languages)
    results = read_manifest(args.out)["results"]
    log(f"{args.out}: {'made' if made else 'already complete, nothing to do'}")
    log(f"tiny CLIP: text-to-frame R@1 {results['clip']['frame_recall_at_1']:.0f} % on 500 single frames")
    bound = results["oracle_recall_at_1"]
    log(f"upper bound of text-to-video R@1 on test: {bound:.0f} %, as some captions are true of several videos")
    overrides = find_preset(args.preset).overrides
    if overrides:
        log(f"recipes for preset {args.preset} need: {' '.join(overrides)}")
