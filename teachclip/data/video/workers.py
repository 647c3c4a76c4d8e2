"""Decode videos in guarded worker processes, so that a hang or a crash costs one video and not the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import TimeoutError as TaskTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from typing import Any, Literal, NamedTuple

import numpy as np
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from teachclip.data.annotations.records import Video
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
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

OnError = Literal["skip", "use_decodable"]
"""What becomes of a damaged video: a failure, or the frames of it that can be decoded."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


class Decoded(NamedTuple):
    """The frames of a video, uint8 (frames, 3, size, size), and why some are missing ("" if none is)."""

    frames: np.ndarray
    remark: str = ""


@dataclass(frozen=True)
class Decoding:
    """How videos become frames.

    workers: processes, 0 for one per core; each file takes at most `time_limit` seconds and `memory_limit` bytes.
    """

    sampling: FrameSampling
    transform: FrameTransform
    on_error: OnError = "skip"
    workers: int = 0
    time_limit: float = 60.0
    memory_limit: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of a video: (frames, 3, size, size)."""
        return self.sampling.count, 3, self.transform.size, self.transform.size

    def provenance(self, *, jittered: bool = False) -> dict[str, Any]:
        """Return what frames depend on beside the files; only `jittered` views depend on the seed of the jitter."""
        sampling = asdict(self.sampling)
        seed = sampling.pop("augmentation_seed", 0)
        found = {
            "content": "frames",
            "sampling": sampling,
            "size": self.transform.size,
            "transform": self.transform.describe(),
        }
        return {**found, "augmentation_seed": seed} if jittered else found

    def run(self, videos: Iterable[tuple[Video, int]]) -> Generator[Decoded | Failure, None, None]:
        """Yield the frames of every (video, view), or why there are none, in order.

        Close the iterator if you leave it early.
        """
        waiting: deque[tuple[Video, int]] = deque()

        def items() -> Iterator[tuple[Any, ...]]:
            for video, view in videos:
                waiting.append((video, view))
                yield self._item(video, view, "skip")

        outcomes = self._map(items(), self.workers)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                video, view = waiting.popleft()
                yield self._second_look(outcome, video, view) if isinstance(outcome, Failure) else Decoded(outcome)

    def _second_look(self, failure: Failure, video: Video, view: int) -> Decoded | Failure:
        """Take what can be decoded of a damaged video, if that is wanted. A file that hangs or kills is let alone."""
        if self.on_error == "skip" or is_transient(failure.reason):
            return failure
        with contextlib.closing(self._map([self._item(video, view, self.on_error)], 1)) as outcomes:
            found = next(outcomes)
        return found if isinstance(found, Failure) else Decoded(found, failure.reason)

    def _item(self, video: Video, view: int, on_error: str) -> tuple[Any, ...]:
        return str(video.path), self.sampling, self.transform, video.start, video.end, on_error, view

    def _map(self, items: Iterable[tuple[Any, ...]], workers: int) -> Generator[Any, None, None]:
        limits = {"time_limit": self.time_limit, "memory_limit": self.memory_limit}
        return guarded_map(decode_file, items, workers=workers, **limits)  # type: ignore[arg-type]


def is_transient(reason: str) -> bool:
    """Whether a failure may be the machine's (busy, too little memory) and not the file's."""
    return reason.startswith(TRANSIENT)


def decode_file(
    path: str,
    sampling: FrameSampling,
    size: int | FrameTransform,
    start: float | None = None,
    end: float | None = None,
    on_error: OnError = "skip",
    view: int = 0,
) -> np.ndarray:
    """Decode one file, or its seconds `start` to `end`, and make its frames square: uint8 (frames, 3, size, size).

    `view` 0 is the sampling itself, any other the sampling with jitter. Raises VideoError.
    """
    transform = FrameTransform(size) if isinstance(size, int) else size
    return transform(decode_frames(path, sampling, start=start, end=end, on_error=on_error, view=view)).numpy()


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
