"""Run a function on many items in worker processes, so that a hang or a crash costs one item and not the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import TimeoutError as TaskTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from teachclip.errors import DataError, TeachclipError
from teachclip.processes import usable_cores

TASKS_PER_WORKER = 500
"""A worker is replaced after so many items: C libraries may leak."""

AHEAD = 3
"""Items given out per worker before the first result is taken; bounds the memory that results wait in."""

PRELOADED = "teachclip.data.frames.store"

WATCH_SECONDS = 0.05
"""How often a worker looks at its memory; what fills a gigabyte a second goes 50 MB beyond the limit."""

OUT_OF_MEMORY = 86
"""Exit status of a worker that used too much memory; no usual program ends with it."""

TRANSIENT = ("took longer than", "its process died", "used more than")
"""How the reasons begin that may be the machine's and not the item's."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


def guarded_map(
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    time_limit: float,
    memory_limit: int | None = None,
) -> Generator[Any, None, None]:
    """Yield `function(*item)` or a `Failure` for every item, in order.

    `function` must be importable by name. It runs in `workers` processes (0: one per core), at most `time_limit`
    seconds on an item, and in at most `memory_limit` bytes of resident memory per process (None: no limit; not
    watched on Windows). An item that goes beyond that is tried once more: what it was given may be what the items
    before it leaked. Close the iterator if you leave it early. Raises DataError if no worker can start.
    """
    pool = ProcessPool(
        max_workers=workers or usable_cores(),
        max_tasks=TASKS_PER_WORKER,
        context=_context(),
        initializer=_prepare_worker,
        initargs=(memory_limit,),
    )
    waiting: deque[tuple[tuple[Any, ...], ProcessFuture[Any]]] = deque()

    def give_out(item: tuple[Any, ...]) -> ProcessFuture[Any]:
        return pool.schedule(function, args=item, timeout=time_limit)

    def take() -> Any:
        item, future = waiting.popleft()
        if _ran_out_of_memory(future):
            future = give_out(item)
        return _outcome(future, time_limit, memory_limit)

    try:
        for item in items:
            waiting.append((item, give_out(item)))
            if len(waiting) >= AHEAD * (workers or usable_cores()):
                yield take()
        while waiting:
            yield take()
    finally:
        pool.stop()
        pool.join()


def _context() -> BaseContext:
    """Return how workers start: never by a fork of this process, whose threads and device would break in the child.

    A fork server imports the decoders once and then makes workers in milliseconds. Windows has only `spawn`.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _prepare_worker(memory_limit: int | None) -> None:
    """Use one thread per worker, watch its memory, and keep what C libraries print off the progress bar."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)
    if memory_limit is not None:
        threading.Thread(target=_watch_memory, args=(memory_limit,), daemon=True).start()


def _watch_memory(limit: int) -> None:
    """End this process as soon as it uses more than `limit` bytes; a C library would not listen to less."""
    while (used := resident_memory()) is not None:
        if used > limit:
            os._exit(OUT_OF_MEMORY)
        time.sleep(WATCH_SECONDS)


def resident_memory() -> int | None:
    """Return the bytes of memory that this process holds (on macOS: has held at most), None where nobody says."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _ran_out_of_memory(future: ProcessFuture[Any]) -> bool:
    """Wait for an item and return whether its process used too much memory."""
    try:
        error = future.exception()
    except Exception:  # of the pool; `_outcome` sorts them
        return False
    return isinstance(error, ProcessExpired) and error.exitcode == OUT_OF_MEMORY


def _outcome(future: ProcessFuture[Any], time_limit: float, memory_limit: int | None) -> Any:
    """Return a result or why there is none. Whatever goes wrong inside a worker belongs to its item."""
    try:
        return future.result()
    except TaskTimeoutError:
        return Failure(f"{TRANSIENT[0]} {time_limit:g} seconds")
    except ProcessExpired as error:
        if error.exitcode == OUT_OF_MEMORY and memory_limit is not None:
            return Failure(f"{TRANSIENT[2]} {memory_limit / 1e9:g} GB of memory")
        return Failure(f"{TRANSIENT[1]} ({_exit_name(error.exitcode)})")
    except BrokenProcessPool as error:
        hint = "a script must call this below `if __name__ == '__main__':`"
        raise DataError(f"worker processes cannot start ({error}); see what they printed above; {hint}") from error
    except TeachclipError as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")


def _exit_name(code: int) -> str:
    """Return the signal or the status that a process ended with."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"
