"""Measure what teaching gains: every arm tuned alike on validation, then run once on fresh seeds."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachclip.cli.arguments import command, positive_count
from teachclip.console import interruptible, log
from teachclip.processes import usable_cores
from teachclip.studies.comparison import Candidate
from teachclip.studies.gain_arms import FAMILIES
from teachclip.studies.gain_plan import Plan, quick, whole
from teachclip.studies.trials import only_one, run_trials

Candidates = Mapping[tuple[str, str], Sequence[Candidate]]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Tune every arm on development seeds, run the chosen settings on fresh seeds, and report."""
    parser = argparse.ArgumentParser(
        prog="teachclip measure-gain",
        description="Measure on the embedded world what teaching gains. A seed is new videos, captions, a new "
        "teacher and new students; the pre-trained CLIP is common. Every arm gets the same number of trials on the "
        "validation splits of development seeds; what is chosen there is trained once on every fresh seed and "
        "measured on its test split. After an interruption the same command goes on.",
    )
    runs = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    parser.add_argument(
        "--out", type=Path, default=runs / "gain", help="folder of the measurement (default runs/gain)"
    )
    parser.add_argument("--seeds", type=positive_count, default=8, help="fresh seeds to measure on (default 8)")
    parser.add_argument(
        "--dev-seeds", type=positive_count, default=2, help="development seeds to tune on (default 2)"
    )
    parser.add_argument(
        "--train-videos",
        type=positive_count,
        default=400,
        help="videos to train on, beside 300 for validation (default 400)",
    )
    parser.add_argument("--control", action="store_true", help="also measure the student without temporal blocks")
    parser.add_argument(
        "--world",
        type=Path,
        default=runs / "shapes",
        help="world whose CLIP all start from (default runs/shapes)",
    )
    parser.add_argument(
        "--processes", type=positive_count, default=usable_cores(), help="trials at once (default: all cores)"
    )
    parser.add_argument("--quick", action="store_true", help="small worlds and grids: shows that it runs, no result")
    args = parser.parse_args(argv)
    families = FAMILIES if args.control else FAMILIES[:1]
    shared = {"common": args.world, "dev_seeds": args.dev_seeds, "seeds": args.seeds, "families": families}
    plan = quick(args.out, **shared) if args.quick else whole(args.out, train_videos=args.train_videos, **shared)
    with interruptible(), only_one(plan.folder):
        from teachclip.studies.gain_report import build_gain_report, write_gain_report

        measure(plan, args.processes, build_gain_report, write_gain_report)


def measure(plan: Plan, processes: int, build: Callable[..., dict[str, Any]], write: Callable[..., None]) -> None:
    """Run what is missing of a plan and write its report.

    `build(plan, worlds, candidates, tests)` makes the report's data, `write(data, folder)` its files.
    """
    from teachclip.shapes.dataset import make_shapes

    started = time.monotonic()
    if not (plan.common / "clip" / "model.safetensors").exists():
        log(f"making {plan.common}, whose CLIP all seeds share")
        make_shapes(plan.common, workers=processes)
    worlds = run_trials(plan.worlds(), processes, "1/3 worlds and teachers")
    tuned = run_trials(plan.tuning(), processes, "2/3 tuning on validation")
    candidates = gather_candidates(plan, tuned)
    tests = run_trials(plan.testing(candidates), processes, "3/3 fresh seeds, test")
    report = build(plan, worlds, candidates, tests)
    report["run"] = {"processes": processes, "minutes of this run": round((time.monotonic() - started) / 60, 1)}
    write(report, plan.folder)


def gather_candidates(plan: Plan, tuned: Mapping[str, Mapping[str, Any]]) -> Candidates:
    """Return, per family and arm, every setting at every sharpness with its validation recall at 1 per dev seed."""
    found: dict[tuple[str, str], list[Candidate]] = {}
    for family in plan.families:
        for arm in family.arms:
            entries = found.setdefault((family.name, arm.name), [])
            for setting in arm.grid:
                runs = [tuned[plan.tune_job(seed, family, arm, setting).name] for seed in plan.dev_seeds]
                for factor in runs[0]["sharpness"]:
                    scores = tuple(run["sharpness"][factor]["t2v"]["recall_at_1"] for run in runs)
                    entries.append(Candidate(setting, float(factor), scores))
    return found
