"""Run teachclip's commands as child processes: one in view, or several at once under one progress bar."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from teachclip.console import log
from teachclip.errors import LaunchError

GRACE = 20.0
"""Seconds that a child gets to save and stop."""

POLL = 0.2
LAST_LINES = 8


@dataclass
class Job:
    """One child process.

    `argv` is the whole command line. `steps` is its length for the progress bar and `progress()` how far it is.
    `finished(seconds)` is called when it ends well.
    """

    name: str
    argv: Sequence[str]
    log: Path
    steps: int = 0
    progress: Callable[[], int] = int
    finished: Callable[[float], None] = lambda seconds: None
    started: float = field(default=0.0, init=False)


def run_shown(job: Job, environment: Mapping[str, str]) -> None:
    """Run one child, show its output as it comes, and keep it in the job's log.

    Raises LaunchError if it fails, KeyboardInterrupt after stopping it on Ctrl-C.
    """
    with _children() as running:
        child = _start(job, environment, subprocess.PIPE)
        running.append(child)
        assert child.stdout is not None
        copier = threading.Thread(target=_copy, args=(child.stdout, job.log), daemon=True)
        copier.start()
        try:
            child.wait()
        except KeyboardInterrupt:
            _stop(running)
            raise
        finally:
            copier.join(timeout=GRACE)
    _check(job, child.returncode, shown=True)
    job.finished(time.monotonic() - job.started)


def run_together(jobs: Sequence[Job], environment: Mapping[str, str], *, parallel: int, label: str) -> None:
    """Run children, `parallel` at a time, under one progress bar with the time left; their output goes to their logs.

    Raises LaunchError if one fails (the others are stopped and keep what they have), KeyboardInterrupt on Ctrl-C.
    """
    waiting, total = list(jobs), sum(job.steps for job in jobs)
    done, active = 0, dict[str, tuple[Job, subprocess.Popen[bytes]]]()
    before = sum(job.progress() for job in jobs)
    # smoothing=0: the time left from the mean rate, as children report their steps in bursts
    bar = tqdm(
        total=total,
        initial=min(before, total),
        desc=label,
        unit="step",
        smoothing=0,
        miniters=0,
        mininterval=_bar_interval(),
    )
    with bar, _children() as running:
        while waiting or active:
            while waiting and len(active) < parallel:
                job = waiting.pop(0)
                job.log.parent.mkdir(parents=True, exist_ok=True)
                with open(job.log, "wb") as log:
                    child = _start(job, environment, log)
                running.append(child)
                active[job.name] = job, child
            time.sleep(POLL)
            for name, (job, child) in list(active.items()):
                if child.poll() is not None:
                    del active[name]
                    _check(job, child.returncode, bar=bar)
                    job.finished(time.monotonic() - job.started)
                    done += job.steps
            steps = done + sum(min(job.progress(), job.steps) for job, _ in active.values())
            steps += sum(min(job.progress(), job.steps) for job in waiting)
            bar.set_postfix_str(f"{len(jobs) - len(waiting) - len(active)} of {len(jobs)} done", refresh=False)
            bar.update(max(0, steps - bar.n))


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """Return the last lines of a log; a progress bar that was redrawn counts as one line."""
    text = log.read_bytes().decode("utf-8", "replace") if log.exists() else ""
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip()).split("\r")[-1] for line in text.split("\n")]
    return [line for line in lines if line][-count:]


@contextlib.contextmanager
def _children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Collect children; whatever happens, none of them outlives the block."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        yield running
    finally:
        _stop(running)


def _start(job: Job, environment: Mapping[str, str], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    size = shutil.get_terminal_size()
    screen = {"COLUMNS": str(size.columns), "LINES": str(size.lines), "PYTHONUNBUFFERED": "1"}
    screen["TQDM_MININTERVAL"] = str(_bar_interval())
    job.started = time.monotonic()
    # a session of its own: Ctrl-C reaches this process alone, which then stops every child once
    return subprocess.Popen(
        list(job.argv),
        env={**os.environ, **screen, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _bar_interval() -> float:
    """Return the seconds between two states of a progress bar: a file of them need not be long."""
    return 0.5 if sys.stderr.isatty() else 5.0


def _copy(source: IO[bytes], log: Path) -> None:
    """Copy a child's output to the terminal and to its log until the child closes it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    last = b"\n"
    with open(log, "wb") as file:
        while piece := os.read(source.fileno(), 65536):
            file.write(piece)
            file.flush()
            _show(piece)
            last = piece
    if not last.endswith(b"\n"):  # a progress bar that was cut off
        _show(b"\n")


def _show(piece: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed terminal must not stop the child
        sys.stderr.buffer.write(piece)
        sys.stderr.flush()


def _check(job: Job, code: int, *, shown: bool = False, bar: tqdm | None = None) -> None:
    if code == 0:
        return
    if bar is not None:
        bar.close()
    if not shown:
        for line in last_lines(job.log):
            log(f"  | {line}")
    how = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
    if code == -signal.SIGKILL:
        how += ", perhaps because it ran out of memory"
    raise LaunchError(f"stage {job.name} {how}; its whole output is in {job.log}")


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask children to save and stop; kill those that do not within the grace time, or at a second Ctrl-C."""
    alive = [child for child in children if child.poll() is None]
    try:
        for child in alive:
            _signal(child, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        for child in alive:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        for child in alive:
            if child.poll() is None:
                _signal(child, signal.SIGKILL)
                child.wait()


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
