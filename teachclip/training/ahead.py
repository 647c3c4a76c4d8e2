"""Items that a thread makes while the ones before them are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def made_ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield `items` in order; a thread makes up to `count` of them in advance, one of them at a time.

    An error of the iterator is raised when its item is asked for. The thread has ended when the generator is
    exhausted or closed.
    """
    made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(count), threading.Event()

    def work() -> None:
        try:
            room.acquire()
            for item in items:
                made.put(("item", item))
                room.acquire()
                if stopped.is_set():
                    return
            made.put(("end", None))
        except BaseException as error:  # of any type: it is raised where the item is asked for
            made.put(("error", error))

    thread = threading.Thread(target=work, name="batches made ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            room.release()
            yield value
    finally:
        stopped.set()
        room.release()
        thread.join()
