"""The processes that work on one job together, seen from the parts that must not know Accelerate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def _alone(item: Any) -> list[Any]:
    return [item]


def _no_wait() -> None:
    return None


@dataclass(frozen=True)
class Processes:
    """This process among its fellows. The default is a process on its own.

    `wait` returns when all processes have called it; `gather` returns every process's object, in process order.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = _no_wait
    gather: Callable[[Any], list[Any]] = _alone

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.index == 0

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on the main process, then on the others, which find done what it wrote."""
        if self.is_main:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def share(self, items: int) -> range:
        """Return this process's contiguous share of the row numbers 0 to items - 1; the first ones get one more."""
        each, more = divmod(items, self.count)
        start = self.index * each + min(self.index, more)
        return range(start, start + each + (self.index < more))


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, for this process and its children, until the block ends."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
