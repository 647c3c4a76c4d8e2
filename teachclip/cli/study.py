"""`teachclip study`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count

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
    parser.add_argument("study", metavar="STUDY", help="study file, or the name of one in recipes/studies")
    parser.add_argument("--recipe", type=path_argument, help="recipe in place of the one that the study file names")
    parser.add_argument(
        "--out", type=path_argument, help="folder of the study (default runs/studies/STUDY[-RECIPE][-PRESET][-quick])"
    )
    parser.add_argument("--preset", help="another preset of the Shapes dataset than the study file names")
    parser.add_argument("--processes", type=positive_count, help="trials at once (default: all cores; with a GPU 1)")
    parser.add_argument("--quick", action="store_true", help="20 steps, 2 settings, 2 seeds: shows that it runs")
    parser.add_argument("--dry-run", action="store_true", help="check every override, print the plan, and stop")
    parser.add_argument("--keys", action=_Keys, nargs=0, help="print the keys of a study file, and stop")
    args = parser.parse_args(argv)
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


class _Keys(argparse.Action):
    """Prints the keys of a study file and stops."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from teachclip.recipe.loading import describe_keys
        from teachclip.studies.study_file import StudyFile

        print("keys of a study file:\n" + "\n".join(describe_keys(StudyFile)))
        parser.exit()
