"""The demo: every stage on the Shapes dataset, several student seeds, and a report of what was measured."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from teachclip.console import interruptible, log
from teachclip.demo.child_processes import Job, run_shown, run_together
from teachclip.demo.plan import VARIANTS, Demo
from teachclip.demo.report import write_report
from teachclip.demo.search_index import index_videos
from teachclip.demo.stage_record import Stage
from teachclip.processes import environment

MOST_PARALLEL = 4
"""Students trained at once: each child takes about a gigabyte."""


def demo(runs: Path, *, seeds: int = 3, threads: int) -> None:
    """Run the demo, or what is missing of it, in the folder `runs`, with `seeds` student seeds per variant."""
    places = {"TEACHCLIP_RUNS": str(runs), "SHAPES_ROOT": str(runs / "shapes")}
    defaults = {"TEACHCLIP_RUNS": "runs", "SHAPES_ROOT": "runs/shapes"}
    shown = {key: value for key, value in places.items() if os.environ.get(key, defaults[key]) != value}
    with environment({**places, "HF_HUB_OFFLINE": "1"}), interruptible():
        run(Demo.build(runs, range(1, seeds + 1), threads, shown))


def run(demo: Demo) -> None:
    """Run what is missing, write the report, and print it."""
    started = time.monotonic()
    for name in demo.record.discard_changed():
        log(f"{name}: made by another version or recipe, removed")
    for number, name in enumerate(("shapes", "teacher", "precompute"), start=1):
        _run_alone(demo, f"{number}/6 {name}", demo.stages[name])
    _run_students(demo, "4/6 students")
    _evaluate(demo, "5/6 evaluate")
    log("[6/6 report]")
    write_report(demo)
    index_videos(demo)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    log(f"done in {minutes} min {seconds} s" if minutes else f"done in {seconds} s")


def _run_alone(demo: Demo, heading: str, stage: Stage) -> None:
    if _skip(demo, heading, stage):
        return
    log(f"[{heading}] {stage.shown(demo.shown)}")
    demo.record.start(stage)
    environment = {"OMP_NUM_THREADS": str(demo.threads)}
    run_shown(_job(demo, stage), environment)


def _run_students(demo: Demo, heading: str) -> None:
    stages = [demo.stages[f"{variant}-{seed}"] for seed in demo.seeds for variant in VARIANTS]
    missing = [stage for stage in stages if not demo.record.is_done(stage)]
    if len(missing) < len(stages):
        log(f"[{heading}] {len(stages) - len(missing)} of {len(stages)} skipped: already done")
    if not missing:
        return
    parallel = max(1, min(demo.threads, MOST_PARALLEL, len(missing)))
    threads = max(1, demo.threads // parallel)
    log(f"[{heading}] {len(missing)} runs, {parallel} at a time, {threads} thread(s) each:")
    for stage in missing:
        log(f"  {stage.shown(demo.shown)}")
        demo.record.start(stage)
    run_together(
        [_job(demo, stage, demo.folder / stage.name) for stage in missing],
        {"OMP_NUM_THREADS": str(threads)},
        parallel=parallel,
        label="students",
    )


def _evaluate(demo: Demo, heading: str) -> None:
    """Evaluate zero-shot CLIP, the teacher and an exported student, and weigh a video's frames, in one process."""
    for name in ("zero_shot", "teacher_result", "student_result"):
        stage = demo.stages[name]
        if not _skip(demo, heading, stage):
            log(f"[{heading}] {stage.shown(demo.shown)}")
            _here(demo, stage)
    stage = demo.stages["frames"]
    if not _skip(demo, heading, stage):
        log(f"[{heading}] frame weights of a test video")
        _here(demo, stage)


def _here(demo: Demo, stage: Stage) -> None:
    """Run an evaluation in this process: starting another one would take longer than the work."""
    from teachclip.demo.measure import evaluate_here, weigh_frames

    demo.record.start(stage)
    started = time.monotonic()
    if stage.name == "frames":
        weigh_frames(demo)
    else:
        evaluate_here(demo.recipe, stage, demo.threads)
    demo.record.finish(stage, time.monotonic() - started)


def _skip(demo: Demo, heading: str, stage: Stage) -> bool:
    if not demo.record.is_done(stage):
        return False
    log(f"[{heading}] skipped: already done ({', '.join(map(str, stage.outputs[:2]))})")
    return True


def _job(demo: Demo, stage: Stage, run_folder: Path | None = None) -> Job:
    return Job(
        name=stage.name,
        argv=[sys.executable, "-m", "teachclip", *stage.command],
        log=demo.folder / "logs" / f"{stage.name}.log",
        steps=demo.recipe.train.steps or 1,
        progress=lambda: steps_logged(run_folder / "log.jsonl") if run_folder else 0,
        finished=lambda seconds: demo.record.finish(stage, seconds),
    )


def steps_logged(log: Path) -> int:
    """Return the last step in a run's `log.jsonl`; 0 before there is one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError):  # a line that is being written
            return int(json.loads(line)["step"])
    return 0
