"""Compare ways to train a student fairly: every arm tuned alike on validation, then run once on fresh seeds."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teachclip.cli.arguments import command, positive_count
from teachclip.console import interruptible, log
from teachclip.processes import usable_cores
from teachclip.recipe.loading import describe_keys, find_recipe
from teachclip.studies.checks import check_own_data, check_plan
from teachclip.studies.plan import Plan, build_plan
from teachclip.studies.quick import quick
from teachclip.studies.study_file import ArmsFile, load_comparison, with_preset
from teachclip.studies.trials import only_one, run_trials

DESCRIPTION = (
    "Compare arms, ways to train the student of a recipe, on your own data or on embedded worlds. Every arm gets the "
    "same number of trials on validation; what is chosen there is trained once on every fresh seed and measured on "
    "test, which nothing is chosen on. After an interruption the same command goes on. recipes/ablations holds files "
    "of arms to start from."
)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Tune every arm on the tuning seeds, run the chosen settings on fresh seeds, and report."""
    parser = argparse.ArgumentParser(
        prog="teachclip ablate",
        description=textwrap.fill(DESCRIPTION, 100),
        epilog="keys of a file of arms:\n" + "\n".join(describe_keys(ArmsFile)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file, such as recipes/shapes_xpool.yaml")
    parser.add_argument(
        "--arms", type=Path, required=True, metavar="FILE", help="file of arms, or one of recipes/ablations by name"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the comparison (default runs/ablations/RECIPE-FILE[-PRESET][-quick], RECIPE alone if FILE is "
        "named like it)",
    )
    parser.add_argument("--preset", help="another preset of embedded worlds than the file of arms names")
    parser.add_argument("--processes", type=positive_count, help="trials at once (default: all cores; with a GPU 1)")
    parser.add_argument("--quick", action="store_true", help="20 steps, 2 settings, 2 seeds: shows that it runs")
    parser.add_argument("--dry-run", action="store_true", help="check every override, print the plan, and stop")
    args = parser.parse_args(argv)
    runs = Path(os.environ.get("TEACHCLIP_RUNS", "runs"))
    names = [args.recipe.stem, args.arms.stem, args.preset, "quick" if args.quick else None]
    folder = args.out or runs / "ablations" / "-".join(filter(None, dict.fromkeys(names)))
    bare = not args.arms.suffix and args.arms.name == str(args.arms)
    arms = find_recipe(f"ablations/{args.arms}.yaml") if bare else args.arms
    comparison = load_comparison(arms)
    if args.preset:
        comparison = with_preset(comparison, args.preset)
    plan = build_plan(folder, args.recipe, comparison, runs / "shapes")
    if args.quick:
        plan = quick(plan)
    check_plan(plan)
    check_own_data(plan)
    _say_plan(plan, settings=args.dry_run)
    if args.dry_run:
        log("dry run passed; nothing was run")
        return
    with interruptible(), only_one(folder):
        compare(plan, args.processes or _processes())


def compare(plan: Plan, processes: int) -> dict[str, Any]:
    """Run what is missing of a plan, write its report and return it."""
    from teachclip.studies.report import build_ablation_report, write_ablation_report

    started = time.monotonic()
    if plan.world is not None and not (plan.world.common / "clip" / "model.safetensors").exists():
        from teachclip.shapes.dataset import make_shapes

        log(f"making {plan.world.common}, whose CLIP all seeds share")
        make_shapes(plan.world.common, workers=processes)
    preparing, counts = plan.preparing(), plan.counts()
    threads = 1 if plan.world else usable_cores()
    prepared = run_trials(preparing, processes, "1/3 prepare", threads=threads)
    tuning = plan.tuning(prepared)
    told = _teller(sum(job.result() is None for job in tuning), counts["test"], processes)
    tuned = run_trials(tuning, processes, "2/3 tune on validation", told=told)
    candidates = plan.candidates(tuned, prepared)
    tests = run_trials(plan.testing(plan.chosen(candidates), prepared), processes, "3/3 fresh seeds, test")
    report = build_ablation_report(plan, prepared, candidates, tests)
    report["run"] = {"processes": processes, "minutes of this run": round((time.monotonic() - started) / 60, 1)}
    write_ablation_report(report, plan.folder)
    return report


def _say_plan(plan: Plan, *, settings: bool) -> None:
    """Print the arms and how many trials there are; with `settings` also what each arm may choose from."""
    for arm in plan.comparison.arms:
        log(f"arm {arm.name}: {' '.join(arm.fixed) or 'the recipe as it is'}")
        for setting in arm.grid if settings else ():
            log(f"  {' '.join(setting) or 'no further setting'}")
    arms, count = len(plan.comparison.arms), len(plan.comparison.arms[0].grid)
    seeds, tune = (", ".join(map(str, found)) for found in (plan.comparison.seeds, plan.tune_seeds))
    tuning = f"tuning {arms} x {count} settings x {len(plan.tune_seeds)} seeds ({tune})" if tune else "no tuning"
    log(f"{tuning}; test {arms} x {len(plan.comparison.seeds)} seeds ({seeds})")
    trials = plan.counts()
    log(f"{trials['tune'] + trials['test']} students, after {trials['prepare']} preparation(s), in {plan.folder}")


def _teller(tuning: int, tests: int, processes: int) -> Callable[[int, float], None]:
    """Return a function that says, once after the first few trials, about how long the rest will take."""
    few = min(tuning, max(3, 2 * processes))

    def told(done: int, seconds: float) -> None:
        if done == few:
            left = seconds / done * (tuning - done), seconds / done * tests
            said = f"about {_minutes(left[0])} of tuning left, then {_minutes(left[1])} of test, by the first {done}"
            tqdm.write(said, file=sys.stderr)  # above the progress bar

    return told


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _processes() -> int:
    import torch

    return 1 if torch.cuda.is_available() else usable_cores()
