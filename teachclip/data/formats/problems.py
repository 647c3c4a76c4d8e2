"""All problems of a file in one report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from teachclip.errors import DataError

MAX_SHOWN = 20
"""How many problems a report shows; the number of the others follows."""


class Problems:
    """Collects what is wrong with a file, so that a user can fix all of it at once."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._more = 0

    def add(self, problem: str) -> None:
        """Add one line: where, what was got, what is allowed."""
        if len(self._shown) < MAX_SHOWN:
            self._shown.append(problem)
        else:
            self._more += 1

    @property
    def count(self) -> int:
        """How many problems there are."""
        return len(self._shown) + self._more

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Add the DataError of a block instead of raising it."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def raise_all(self) -> None:
        """Raise one DataError with all problems, one per line; return if there are none."""
        if self._more:
            raise DataError("\n".join([*self._shown, f"... and {self._more:,} more problems"]))
        if self._shown:
            raise DataError("\n".join(self._shown))
