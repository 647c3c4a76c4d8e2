"""What threads do while the main one computes: make the next items, finish the last ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def made_ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield `items` in order; a thread makes up to `count` of them in advance, one of them at a time.

    An error of the iterator is raised when its item is asked for. The thread closes `items`, if they are a generator,
    and has ended when the generator here is exhausted or closed.
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
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="made ahead", daemon=True)
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


@contextmanager
def done_behind() -> Iterator[Callable[..., None]]:
    """Give a function that has a thread call `function(*arguments)` while its caller goes on.

    One call is on its way at a time: the next one waits for it, and so does the end of the block. An error of a call
    is raised there.
    """
    last: Future[Any] | None = None
    with ThreadPoolExecutor(1, "done behind") as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> None:
            nonlocal last
            if last is not None:
                last.result()
            last = pool.submit(function, *arguments)

        yield call
        if last is not None:
            last.result()
