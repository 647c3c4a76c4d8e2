"""Many small trainings: each one a trial in a worker process, kept as one small file, and not run twice.

A finished trial is a JSON file with what it depends on. After an interruption the same command goes on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from teachclip.console import log
from teachclip.errors import LaunchError, TeachclipError, TrainingError
from teachclip.store.files import make_folder, read_json, write_atomic


@functools.cache
def code_hash() -> str:
    """Return the hash of the code of this project, so that results of different versions are not mixed.

    A teacher or reader that a recipe names as `module:name` is not part of it.
    """
    digest = hashlib.sha256()
    for package in ("teachclip", "teachers"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Trial(ABC):
    """What is run and kept. It is sent to a worker process, so its fields are plain values."""

    folder: Path
    """Folder of the whole study."""
    settings: tuple[str, ...]
    """Overrides of the recipe."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the trial's file, which identifies it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that the result depends on."""

    @abstractmethod
    def places(self) -> dict[str, str]:
        """Return the environment in which the recipe finds its data and stores."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the work and return the result, which is JSON."""

    @property
    def result_file(self) -> Path:
        """Where the result is kept."""
        return self.folder / "trials" / f"{self.name}.json"

    def result(self) -> dict[str, Any] | None:
        """Return the result of an earlier run of exactly this trial, or None."""
        try:
            kept = read_json(self.result_file)
            return dict(kept["result"]) if kept["fingerprint"] == self.fingerprint else None
        except (OSError, ValueError, LookupError, TypeError):
            return None


Results = dict[str, dict[str, Any]]


def start_worker(log_folder: str, threads: int, offline: bool) -> None:
    """Set a worker process up: its own log instead of the terminal, its share of the cores, `offline` no network."""
    import torch

    path = Path(log_folder) / f"worker-{os.getpid()}.log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(threads)


def run_trial(trial: Trial, code: str | None = None) -> dict[str, Any]:
    """Run a trial, unless its result is there, keep the result and return it.

    `code`: the `code_hash` of the caller; None: whatever it is here. Raises TrainingError that names the trial if
    anything goes wrong, or if the code has changed since; the worker's log has the details.
    """
    if code not in (None, code_hash()):
        raise TrainingError(f"{trial.name}: the code was changed meanwhile; start the study again")
    kept = trial.result()
    if kept is not None:
        return kept
    print(f"== {trial.name}: {' '.join(trial.settings)}", flush=True)
    os.environ.update(trial.places())
    started = time.monotonic()
    try:
        result = trial.run()
    except KeyboardInterrupt:
        if multiprocessing.parent_process() is not None:
            os._exit(130)  # a worker that only raised it would start the next trial
        raise
    except TeachclipError as error:
        raise TrainingError(f"{trial.name}: {error}") from error
    except Exception as error:
        traceback.print_exc()
        raise TrainingError(
            f"{trial.name}: {type(error).__name__}: {error}; see the logs in {trial.folder}"
        ) from error
    record = {
        "name": trial.name,
        "settings": list(trial.settings),
        "fingerprint": trial.fingerprint,
        "seconds": round(time.monotonic() - started, 1),
        "result": result,
    }
    trial.result_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(trial.result_file, json.dumps(record, indent=1).encode())
    return result


def run_trials(
    trials: Sequence[Trial],
    processes: int,
    label: str,
    *,
    on_progress: Callable[[int, float], None] | None = None,
    threads: int = 1,
) -> Results:
    """Run trials in worker processes of few `threads`; what was finished earlier is read. Returns results by name.

    `on_progress(done, seconds)` is called after each of those that run. Raises TrainingError if one fails, after the
    running trials have ended; what they finished is kept.
    """
    known = {trial.name: trial for trial in trials}
    results = {name: kept for name, trial in known.items() if (kept := trial.result()) is not None}
    missing = [trial for name, trial in known.items() if name not in results]
    if results:
        log(f"[{label}] {len(results)} of {len(known)} skipped: already done")
    if not missing:
        return results
    logs = missing[0].folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    started = time.monotonic()
    pool = ProcessPoolExecutor(
        min(processes, len(missing)),
        multiprocessing.get_context("spawn"),
        start_worker,
        (str(logs), threads, bool(missing[0].places())),
    )
    try:
        futures: dict[Future[dict[str, Any]], Trial] = {
            pool.submit(run_trial, trial, code_hash()): trial for trial in missing
        }
        # smoothing=0: the time left from the mean rate, as trials differ in length
        bar = tqdm(as_completed(futures), total=len(missing), desc=label, unit="trial", smoothing=0)
        for done, future in enumerate(bar, start=1):
            results[futures[future].name] = future.result()
            if on_progress is not None:
                on_progress(done, time.monotonic() - started)
    except BrokenProcessPool as error:
        raise TrainingError(
            f"{label}: a worker process died, perhaps because it ran out of memory; its log is in {logs}"
        ) from error
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def seconds_by_kind(folder: Path) -> dict[str, list[float]]:
    """Return how long the finished trials of a study took, in seconds, by the first word of their names."""
    seconds: dict[str, list[float]] = {}
    for path in sorted((folder / "trials").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # of another version, or damaged
            taken = float(read_json(path)["seconds"])
            seconds.setdefault(path.stem.partition("-")[0], []).append(taken)
    return seconds


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder of a study. Raises LaunchError if another process runs a study there.

    Where files cannot be locked, as on some network file systems, nothing is checked.
    """
    make_folder(folder)
    lock = FileLock(folder / "lock")
    with contextlib.ExitStack() as stack:
        try:
            lock.acquire(timeout=0)
            stack.callback(lock.release)
        except Timeout as error:
            raise LaunchError(f"{folder}: another study runs there; wait for it, or give another --out") from error
        except (NotImplementedError, OSError):  # no locks there, as in `store.files.locked_folder`
            pass
        yield


def seed_places(folder: Path, seed: int) -> dict[str, str]:
    """Return the environment in which a recipe of the Shapes dataset finds the dataset and the stores of a seed."""
    home = folder / f"seed-{seed}"
    return {"SHAPES_ROOT": str(home / "shapes"), "TEACHCLIP_RUNS": str(home)}
