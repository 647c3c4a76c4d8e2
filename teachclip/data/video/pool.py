"""Processes that can be trusted with any file: started without a fork of this one, watched for their memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Any

import psutil
from pebble import ProcessPool

from teachclip.processes import usable_cores

TASKS_PER_WORKER = 500
"""A worker process is replaced after so many items: C libraries may leak memory."""

PRELOADED = "teachclip.data.frames.store"
"""What a fork server imports once for all workers."""

WATCH_SECONDS = 0.05
"""Interval at which a worker checks its memory; at a gigabyte per second it exceeds the limit by 50 MB."""

OUT_OF_MEMORY = 86
"""Exit status of a worker that used too much memory; usual programs do not use it."""


def guarded_pool(workers: int, memory_limit: int | None, preloaded: str = PRELOADED) -> ProcessPool:
    """Return processes for items that come one by one. `stop` and `join` end them.

    A process that uses more than `memory_limit` bytes ends with `OUT_OF_MEMORY`. `preloaded`: see `start_context`.
    """
    return ProcessPool(
        max_workers=workers or usable_cores(),
        max_tasks=TASKS_PER_WORKER,
        context=start_context(preloaded),
        initializer=_prepare_worker,
        initargs=(memory_limit,),
    )


_HIDING = threading.Lock()


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the module of the running script: a new process would run it again, and the script start new processes.

    Workers need nothing of it: what they run is imported by name.
    """
    with _HIDING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


_SERVED = "forkserver" in multiprocessing.get_all_start_methods()
_START = multiprocessing.get_context("forkserver" if _SERVED else "spawn")


class _Worker(_START.Process):  # type: ignore[name-defined,misc]
    """A process that does not import the module of the running script."""

    @staticmethod
    def _Popen(process: Any) -> Any:
        with _hidden_main():
            return _START.Process._Popen(process)  # type: ignore[attr-defined]


class _Context(type(_START)):  # type: ignore[misc]
    """How workers start: never by a fork of this process, as threads and CUDA do not survive a fork.

    A fork server imports the decoders once and then starts workers in milliseconds. Windows only has `spawn`.
    """

    Process = _Worker


def start_context(preloaded: str = PRELOADED) -> BaseContext:
    """Return how processes start here: never by a fork of this process, in which libraries may have threads.

    A lock that such a thread holds at that moment stays locked in a fork for ever. What a process gets is pickled.
    `preloaded`: the module that the fork server imports for all processes; the first one of this process counts.
    """
    context: BaseContext = _Context()
    if _SERVED:
        context.set_forkserver_preload([preloaded])
    return context


def _prepare_worker(memory_limit: int | None) -> None:
    """Use one thread per worker, watch its memory, and discard what C libraries print into the progress bar."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    if memory_limit is not None:
        threading.Thread(target=_watch_memory, args=(memory_limit,), daemon=True).start()


def _watch_memory(limit: int) -> None:
    """End this process as soon as it uses more than `limit` bytes: a C library cannot be interrupted otherwise."""
    while resident_memory() <= limit:
        time.sleep(WATCH_SECONDS)
    os._exit(OUT_OF_MEMORY)


def resident_memory() -> int:
    """Return the bytes of resident memory of this process."""
    return int(psutil.Process().memory_info().rss)
