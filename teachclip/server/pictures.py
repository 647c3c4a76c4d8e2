"""Pictures of videos, decoded by guarded worker processes and kept for a while."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import TimeoutError as TaskTimeoutError
from typing import Any

from pebble import ProcessExpired

from teachclip.data.video.picture import picture_of
from teachclip.data.video.pool import guarded_pool
from teachclip.errors import VideoError

KEPT_BYTES = 64 << 20
"""Pictures that are kept in memory: some 5,000 of 320 pixels."""

TIME_LIMIT = 30.0
"""Seconds for one picture."""

MEMORY_LIMIT = 2 * 10**9
"""Bytes of memory of a worker process."""


class Pictures:
    """Makes JPEGs of frames. May be used by several threads. `close` ends its worker processes."""

    def __init__(self, workers: int = 2) -> None:
        self._workers = workers
        self._pool: Any = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, bytes] = OrderedDict()
        self._size = 0

    def get(self, key: str, path: str, seconds: float, width: int) -> bytes:
        """Return the JPEG of the frame at `seconds` of the file `path`; `key` stands for the content of the file.

        Raises VideoError if the file cannot be decoded.
        """
        return self._cached((key, round(seconds, 3), width), lambda: self._decode(path, round(seconds, 3), width))

    def _cached(self, key: Any, make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = picture
                self._size += len(picture)
            while self._size > KEPT_BYTES:
                self._size -= len(self._kept.popitem(last=False)[1])
        return picture

    def _decode(self, path: str, seconds: float, width: int) -> bytes:
        with self._lock:
            if self._pool is None:
                self._pool = guarded_pool(self._workers, MEMORY_LIMIT, picture_of.__module__)
            future = self._pool.schedule(picture_of, args=(path, seconds, width), timeout=TIME_LIMIT)
        try:
            return bytes(future.result())
        except TaskTimeoutError as error:
            raise VideoError(f"{path}: no picture in {TIME_LIMIT:g} seconds") from error
        except ProcessExpired as error:
            raise VideoError(f"{path}: no picture can be made: the decoding process died") from error

    def close(self) -> None:
        """End the worker processes."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()
                self._pool = None
