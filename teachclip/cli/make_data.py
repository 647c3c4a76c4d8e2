"""`teachclip make-data`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.console import log


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults other than None, and one line per preset."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Make a data set from the command line."""
    parser = CommandParser(
        prog="teachclip make-data",
        description="Make a data set to try things on: small videos with captions, and a tiny CLIP pre-trained on "
        "single frames. A second call makes only the files that are missing.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="DATASET", required=True, parser_class=CommandParser)
    _add_shapes(kinds)
    _add_babyai(kinds)
    _add_pictograms(kinds)
    args = parser.parse_args(argv)
    {"shapes": _make_shapes, "babyai": _make_babyai, "pictograms": _make_pictograms}[args.kind](args)


def _add_shapes(kinds: argparse._SubParsersAction[CommandParser]) -> None:
    from teachclip.shapes.presets import PRESETS

    parser = kinds.add_parser(
        "shapes",
        help="coloured shapes that come and go; drawn by this project",
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
        help="also write test queries, parallel texts and a text encoder with random weights for these languages; "
        "a later call with others replaces the last two",
    )


def _add_babyai(kinds: argparse._SubParsersAction[CommandParser]) -> None:
    parser = kinds.add_parser(
        "babyai",
        help="MiniGrid's BabyAI: a bot fulfils missions; needs teachclip[datasets]",
        description="Make a BabyAI dataset: MiniGrid's bot fulfils missions such as `open the red door after you\n"
        "pick up a key`; the videos show what it sees, the captions are the missions.",
        formatter_class=_Help,
    )
    _add_common(parser, "babyai")
    parser.add_argument("--view", default="agent", choices=["agent", "full"], help="what the agent sees, or the grid")
    parser.add_argument("--teacher-videos", type=int, default=800, help="further training videos for teachers only")
    parser.add_argument(
        "--clip-episodes", type=int, default=1200, help="episodes that the tiny CLIP is pre-trained on"
    )
    parser.add_argument("--clip-steps", type=int, default=1000, help="steps of the tiny CLIP's pre-training")


def _add_pictograms(kinds: argparse._SubParsersAction[CommandParser]) -> None:
    parser = kinds.add_parser(
        "pictograms",
        help="a font's pictograms that move, called by their Unicode names; needs teachclip[datasets]",
        description="Make a pictograms dataset: emoji of a colour font move, grow or spin, three in a video;\n"
        "the captions, such as `a red apple grows, then a frog face rises`, call them by their Unicode names.",
        formatter_class=_Help,
    )
    _add_common(parser, "pictograms")
    parser.add_argument(
        "--font", type=path_argument, help="a colour font (default: Noto Color Emoji where it is found)"
    )


def _add_common(parser: CommandParser, name: str) -> None:
    folder = Path("runs") / name
    parser.add_argument("--out", type=path_argument, default=folder, help="folder of the dataset")
    for split, count in (("train", 400), ("val", 150), ("test", 300)):
        parser.add_argument(f"--{split}-videos", type=int, default=count, help=f"videos of the split {split}")
    parser.add_argument("--seed", type=int, default=0, help="seed of videos and captions")
    parser.add_argument("--clip-seed", type=int, default=0, help="seed of the tiny CLIP's pre-training")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")


def _make_shapes(args: argparse.Namespace) -> None:
    from teachclip.datasets.folder import read_manifest
    from teachclip.shapes.dataset import make_shapes
    from teachclip.shapes.presets import find_preset

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
    results = read_manifest(args.out, "Shapes")["results"]
    _log_made(args.out, made)
    log(f"tiny CLIP: text-to-frame R@1 {results['clip']['frame_recall_at_1']:.0f} % on 500 single frames")
    bound = results["oracle_recall_at_1"]
    log(f"upper bound of text-to-video R@1 on test: {bound:.0f} %, as some captions are true of several videos")
    overrides = find_preset(args.preset).overrides
    if overrides:
        log(f"recipes for preset {args.preset} need: {' '.join(overrides)}")


def _make_babyai(args: argparse.Namespace) -> None:
    from teachclip.datasets.babyai.dataset import CLIP, BabyAISettings, log_facts, make_babyai

    settings = BabyAISettings(
        train_videos=args.train_videos,
        val_videos=args.val_videos,
        test_videos=args.test_videos,
        teacher_videos=args.teacher_videos,
        clip_episodes=args.clip_episodes,
        seed=args.seed,
        view=args.view,
        clip=replace(CLIP, seed=args.clip_seed, steps=args.clip_steps),
    )
    _log_made(args.out, make_babyai(args.out, settings, workers=args.workers))
    log_facts(args.out)


def _make_pictograms(args: argparse.Namespace) -> None:
    from teachclip.datasets.pictograms.dataset import CLIP, PictogramsSettings, log_facts, make_pictograms
    from teachclip.datasets.pictograms.font import NOTO

    settings = PictogramsSettings(
        train_videos=args.train_videos,
        val_videos=args.val_videos,
        test_videos=args.test_videos,
        seed=args.seed,
        clip=replace(CLIP, seed=args.clip_seed),
    )
    _log_made(args.out, make_pictograms(args.out, settings, font=args.font or NOTO, workers=args.workers))
    log_facts(args.out)


def _log_made(folder: Path, made: bool) -> None:
    log(f"{folder}: {'made' if made else 'already complete, nothing to do'}")
