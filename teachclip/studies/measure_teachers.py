"""Measure the student of the embedded world taught by every teacher: one table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command, positive_count
from teachclip.console import interruptible
from teachclip.processes import usable_cores
from teachclip.studies.gain_plan import quick, whole
from teachclip.studies.measure_gain import measure
from teachclip.studies.teacher_arms import RECIPE, teacher_family
from teachclip.studies.trials import only_one


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train every teacher and its students on fresh worlds, and write one table."""
    parser = argparse.ArgumentParser(
        prog="teachclip measure-teachers",
        description="Measure on the embedded world what each teacher of recipes/shapes_teachers.yaml teaches, and "
        "two together. A seed is new videos, captions, teachers and students; the pre-trained CLIP is common. "
        "Every arm gets the same number of trials on the validation splits of development seeds; what is chosen "
        "there is trained once on every fresh seed and measured on its test split. After an interruption the same "
        "command goes on.",
    )
    runs = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    parser.add_argument("--out", type=Path, default=runs / "teachers", help="folder (default runs/teachers)")
    parser.add_argument("--seeds", type=positive_count, default=3, help="fresh seeds to measure on (default 3)")
    parser.add_argument("--dev-seeds", type=positive_count, default=1, help="seeds to tune on (default 1)")
    parser.add_argument("--world", type=Path, default=runs / "shapes", help="world whose CLIP all start from")
    parser.add_argument(
        "--processes", type=positive_count, default=usable_cores(), help="trials at once (default: all cores)"
    )
    parser.add_argument("--quick", action="store_true", help="small worlds and grids: shows that it runs, no result")
    args = parser.parse_args(argv)
    build = quick if args.quick else whole
    plan = build(
        args.out,
        common=args.world,
        dev_seeds=args.dev_seeds,
        seeds=args.seeds,
        families=(teacher_family(),),
        recipe=RECIPE,
    )
    with interruptible(), only_one(plan.folder):
        from teachclip.studies.teachers_report import build_teachers_report, write_teachers_report

        measure(plan, args.processes, build_teachers_report, write_teachers_report)
