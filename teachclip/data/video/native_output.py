"""Hear what a C library prints, which is all that some of them say about damage."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator

_LOCK = threading.Lock()


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what the process prints to its standard error; the function that is yielded returns it.

    It is the process's and not Python's stream that is caught, so one thread at a time can do it, and what other
    threads print meanwhile is caught as well.
    """
    with _LOCK, tempfile.TemporaryFile() as file:
        number = file.fileno()
        before = os.dup(2)
        os.dup2(number, 2)
        try:
            yield lambda: os.pread(number, 4096, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)
