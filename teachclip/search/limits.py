"""What decoding and encoding of files may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from teachclip.errors import DataError
from teachclip.processes import usable_cores


@dataclass(frozen=True)
class Limits:
    """workers: processes that decode, 0 for one per core. time_limit: seconds for a file, or for 32 parts of a long
    one. memory_limit: GB per process. batch_size: frames that the vision encoder gets together. Raises DataError.
    """

    workers: int = 0
    time_limit: float = 300.0
    memory_limit: float = 4.0
    batch_size: int = 96

    def __post_init__(self) -> None:
        if self.workers < 0 or not self.time_limit > 0 or not self.memory_limit > 0 or self.batch_size < 1:
            values = f"workers is {self.workers}, time_limit {self.time_limit}, memory_limit {self.memory_limit}"
            raise DataError(f"{values}, batch_size {self.batch_size}; all must be above 0, workers may be 0")

    def map(self, function: Callable[..., Any], items: Iterator[tuple[Any, ...]], most: int) -> Any:
        """Run a function on at most `most` items in guarded processes."""
        from teachclip.data.video.workers import guarded_map

        workers = max(1, min(self.workers or usable_cores(), most))
        memory = int(self.memory_limit * 1e9)
        return guarded_map(function, items, workers=workers, time_limit=self.time_limit, memory_limit=memory)
