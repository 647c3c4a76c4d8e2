"""`teachclip study`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count, positive_number

DESCRIPTION = (
    "Compare variants, ways to train the student of a recipe, on your own data or on Shapes datasets. Every variant "
    "gets the same number of trials on validation; what is chosen there is trained once on every test seed and "
    "measured on the test split, which is never used for selection. After an interruption the same command "
    "continues. recipes/studies holds study files to start from."
)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Tune every variant on the dev seeds, run the chosen settings on the test seeds, and report."""
    parser = CommandParser(prog="teachclip study", description=DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", nargs="?", help="study file, or the name of one in recipes/studies")
    parser.add_argument(
        "--auto",
        metavar="RECIPE",
        help="in place of a study file: find out which of four standing recipes to take for the data of this one, "
        "and at which rate, by successive halving on validation; writes it, and measures it on test once",
    )
    parser.add_argument(
        "--trainings", type=positive_number, help="with --auto: budget in whole trainings of a student (default 20)"
    )
    parser.add_argument("--minutes", type=positive_number, help="with --auto: budget in minutes of training instead")
    parser.add_argument(
        "--rates", nargs="+", type=positive_number, help="with --auto: base rates to try (default 1e-4 3e-4 1e-3)"
    )
    parser.add_argument("--test-seeds", type=positive_count, help="with --auto: seeds to measure on test (default 3)")
    parser.add_argument(
        "--combine",
        nargs="+",
        type=path_argument,
        metavar="FOLDER",
        help="in place of a study file: the differences over data sets, from folders of one study, a data set each",
    )
    parser.add_argument("--recipe", type=path_argument, help="recipe in place of the one that the study file names")
    parser.add_argument(
        "--out",
        type=path_argument,
        help="folder of the study (default runs/studies/STUDY[-RECIPE][-PRESET][-quick]), or of what --combine finds",
    )
    parser.add_argument("--preset", help="another preset of the Shapes dataset than the study file names")
    parser.add_argument("--processes", type=positive_count, help="trials at once (default: all cores; with a GPU 1)")
    parser.add_argument("--quick", action="store_true", help="20 steps, 2 settings, 2 seeds: shows that it runs")
    parser.add_argument("--dry-run", action="store_true", help="check every override, print the plan, and stop")
    parser.add_argument("--keys", action=_Keys, nargs=0, help="print the keys of a study file, and stop")
    args = parser.parse_args(argv)
    if args.combine is not None:
        _combine(parser, args)
        return
    if args.auto is not None:
        _auto(parser, args)
        return
    for name in ("trainings", "minutes", "rates", "test_seeds"):
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --auto RECIPE")
    if args.study is None:
        parser.error("the following arguments are required: STUDY")
    from teachclip.studies.run import study

    study(
        args.study,
        recipe=args.recipe,
        out=args.out,
        preset=args.preset,
        processes=args.processes,
        quick=args.quick,
        dry_run=args.dry_run,
    )


def _auto(parser: CommandParser, args: argparse.Namespace) -> None:
    """Choose one of the standing recipes."""
    _refuse(parser, args, ("study", "recipe", "preset", "quick"), "--auto")
    if args.trainings is not None and args.minutes is not None:
        parser.error("give --trainings or --minutes, not both")
    from teachclip.studies.auto import RATES, auto

    auto(
        args.auto,
        trainings=args.trainings,
        minutes=args.minutes,
        rates=args.rates or RATES,
        test_seeds=args.test_seeds or 3,
        out=args.out,
        processes=args.processes,
        dry_run=args.dry_run,
    )


def _combine(parser: CommandParser, args: argparse.Namespace) -> None:
    """Print what one study says over several data sets."""
    training = ("auto", "trainings", "minutes", "rates", "test_seeds", "recipe", "preset", "processes", "quick")
    _refuse(parser, args, ("study", *training, "dry_run"), "--combine")
    from teachclip.studies.combined import combine

    combine(args.combine, args.out)


def _refuse(parser: CommandParser, args: argparse.Namespace, names: Sequence[str], way: str) -> None:
    """End with a usage error if one of these arguments was given."""
    for name in names:
        if getattr(args, name):
            option = "STUDY" if name == "study" else f"--{name.replace('_', '-')}"
            parser.error(f"{option} is not for {way}")


class _Keys(argparse.Action):
    """Prints the keys of a study file and stops."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from teachclip.recipe.loading import describe_keys
        from teachclip.studies.study_file import StudyFile

        print("keys of a study file:\n" + "\n".join(describe_keys(StudyFile)))
        parser.exit()
