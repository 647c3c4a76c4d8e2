"""Decode videos in guarded worker processes, so that a hang or a crash costs one video and not the run."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import TimeoutError as TaskTimeoutError
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pebble import ProcessExpired, ProcessFuture

from teachclip.data.annotations.records import Video
from teachclip.data.video.decode import HINT, decode_frames
from teachclip.data.video.pool import OUT_OF_MEMORY, guarded_pool
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.video_file import TRANSIENT, is_transient
from teachclip.errors import DataError, TeachclipError
from teachclip.processes import usable_cores

QUEUED_PER_WORKER = 3
"""Items submitted per worker before the first result is taken; bounds the memory of waiting results."""

STUCK_SECONDS = 120.0
"""Beyond the time limits of items an answer may take so long, as processes must start, and be ended."""

OnError = Literal["skip", "use_decodable"]
"""What a damaged video gives: a failure, or the frames of it that can be decoded."""


@dataclass(frozen=True)
class Failure:
    """An item without a result, and the error in one line."""

    error: str


class Decoded(NamedTuple):
    """The frames of a video, uint8 (frames, 3, size, size); `error`: why it is partially decoded, "" if it is not."""

    frames: np.ndarray
    error: str = ""


@dataclass(frozen=True)
class Decoding:
    """How videos become frames.

    sampling, transform: which frames, and how they become squares of one size. on_error: see `OnError`.
    workers: processes, 0 for one per core. time_limit: seconds per file. memory_limit: bytes per process, None for
    no limit.
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

    def provenance(self, *, augmented: bool = False) -> dict[str, Any]:
        """Return what frames depend on besides the files; only `augmented` views depend on the augmentation seed."""
        sampling = self.sampling.describe()
        seed = sampling.pop("augmentation_seed", 0)
        provenance = {
            "content": "frames",
            "sampling": sampling,
            "size": self.transform.size,
            "transform": self.transform.describe(),
        }
        return {**provenance, "augmentation_seed": seed} if augmented else provenance

    def run(self, videos: Iterable[tuple[Video, int]]) -> Generator[Decoded | Failure, None, None]:
        """Yield the frames of every (video, view), or the failure, in order.

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
                yield self._retry_damaged(outcome, video, view) if isinstance(outcome, Failure) else Decoded(outcome)

    def _retry_damaged(self, failure: Failure, video: Video, view: int) -> Decoded | Failure:
        """Decode what is decodable of a damaged video, if `on_error` says so. Transient failures are not retried."""
        if self.on_error == "skip" or is_transient(failure.error):
            return failure
        with contextlib.closing(self._map([self._item(video, view, self.on_error)], 1)) as outcomes:
            outcome = next(outcomes)
        return outcome if isinstance(outcome, Failure) else Decoded(outcome, failure.error.replace(HINT, ""))

    def _item(self, video: Video, view: int, on_error: str) -> tuple[Any, ...]:
        return str(video.path), self.sampling, self.transform, video.start, video.end, on_error, view

    def _map(self, items: Iterable[tuple[Any, ...]], workers: int) -> Generator[Any, None, None]:
        limits = {"time_limit": self.time_limit, "memory_limit": self.memory_limit}
        return guarded_map(decode_file, items, workers=workers, **limits)  # type: ignore[arg-type]


def decode_file(
    path: str,
    sampling: FrameSampling,
    size: int | FrameTransform,
    start: float | None = None,
    end: float | None = None,
    on_error: OnError = "skip",
    view: int = 0,
) -> np.ndarray:
    """Decode one file, or its seconds `start` to `end`, to square frames: uint8 (frames, 3, size, size).

    `view` 0 is the frame sampling itself, above 0 an augmented view. Raises VideoError.
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
    seconds per item, and in at most `memory_limit` bytes of resident memory per process (None: no limit). An item
    that exceeds the memory is retried once, since earlier items may have leaked it. Close the iterator if you leave
    it early. Raises DataError if no worker can start.
    """
    work = _Work(function, workers, time_limit, memory_limit)
    try:
        for item in items:
            work.submit(item)
            if len(work.waiting) >= QUEUED_PER_WORKER * (workers or usable_cores()):
                yield work.take()
        while work.waiting:
            yield work.take()
    finally:
        work.stop()


class _Work:
    """The items of a `guarded_map` that are on their way, oldest first, and the processes that work on them."""

    def __init__(
        self, function: Callable[..., Any], workers: int, time_limit: float, memory_limit: int | None
    ) -> None:
        self.function, self.workers, self.time_limit, self.memory_limit = function, workers, time_limit, memory_limit
        self.pool = guarded_pool(workers, memory_limit)
        self.waiting: deque[tuple[tuple[Any, ...], ProcessFuture[Any]]] = deque()

    def submit(self, item: tuple[Any, ...]) -> None:
        """Add an item."""
        self.waiting.append((item, self._schedule(item)))

    def take(self, *, retry: bool = True) -> Any:
        """Return the result or the failure of the oldest item; `retry` it once if it ran out of memory."""
        if self._is_stuck():
            self._start_again()
            if self._is_stuck():
                self.waiting.popleft()
                self._start_again()
                return Failure(f"{TRANSIENT[1]} while it gave its result")
        item, future = self.waiting.popleft()
        if retry and _ran_out_of_memory(future):
            self.waiting.appendleft((item, self._schedule(item)))
            return self.take(retry=False)
        return _outcome(future, self.time_limit, self.memory_limit)

    def stop(self) -> None:
        """End the processes."""
        self.pool.stop()
        self.pool.join()

    def _schedule(self, item: tuple[Any, ...]) -> ProcessFuture[Any]:
        return self.pool.schedule(self.function, args=item, timeout=self.time_limit)

    def _is_stuck(self) -> bool:
        """Whether the oldest item has not come although its time is over.

        A process that dies while it sends a result (the system may end one when memory is short) leaves half a
        message, and the lock of the channel: none of the others can answer, and the pool waits for ever.
        """
        _, future = self.waiting[0]
        turns = QUEUED_PER_WORKER + 1  # an item that is retried is the last in line
        return bool(wait([future], timeout=turns * self.time_limit + STUCK_SECONDS).not_done)

    def _start_again(self) -> None:
        """Give all items to new processes."""
        self.stop()
        self.pool = guarded_pool(self.workers, self.memory_limit)
        self.waiting = deque((item, self._schedule(item)) for item, _ in self.waiting)


def _ran_out_of_memory(future: ProcessFuture[Any]) -> bool:
    """Wait for an item and return whether its process exceeded the memory limit."""
    try:
        error = future.exception()
    except Exception:  # of the pool; `_outcome` handles them
        return False
    return isinstance(error, ProcessExpired) and error.exitcode == OUT_OF_MEMORY


def _outcome(future: ProcessFuture[Any], time_limit: float, memory_limit: int | None) -> Any:
    """Return a result or the failure. Any error inside a worker is the failure of its item."""
    try:
        return future.result()
    except TaskTimeoutError:
        return Failure(f"{TRANSIENT[0]} {time_limit:g} seconds")
    except ProcessExpired as error:
        if error.exitcode == OUT_OF_MEMORY and memory_limit is not None:
            return Failure(f"{TRANSIENT[2]} {memory_limit / 1e9:g} GB of memory")
        return Failure(f"{TRANSIENT[1]} ({_exit_name(error.exitcode)})")
    except BrokenProcessPool as error:
        hint = "a script must call this under `if __name__ == '__main__':`"
        raise DataError(f"worker processes cannot start ({error}); see their output above; {hint}") from error
    except TeachclipError as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")


def _exit_name(code: int) -> str:
    """Return the name of the signal, or the exit status, of a process."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"
