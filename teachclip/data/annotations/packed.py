"""Records of a dataset as bytes in scratch arrays: an object is made when a record is read, and none is kept."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np

from teachclip.store.scratch import Growing, blocks

T = TypeVar("T")

AT_ONCE = 1024
"""Records that are packed or read at a time."""


class Packed(Sequence[T], Generic[T]):
    """Records that were given once, in their order; memory does not grow with them. Slices are tuples.

    `pack` returns the `fields` strings that a record consists of, of which `unpack` makes an equal one.
    """

    def __init__(
        self,
        records: Iterable[T],
        *,
        fields: int,
        pack: Callable[[T], tuple[str, ...]],
        unpack: Callable[..., T],
    ) -> None:
        self._fields, self._unpack = fields, unpack
        data, ends, size = Growing(np.uint8), Growing(np.int64, fields), 0
        coming = iter(records)
        while some := list(islice(coming, AT_ONCE)):
            parts = [text.encode("utf-8", "surrogatepass") for record in some for text in pack(record)]
            ends.append(size + np.cumsum([len(part) for part in parts]).reshape(-1, fields))
            data.append(np.frombuffer(b"".join(parts), np.uint8))
            size += sum(map(len, parts))
        self._data, self._ends = data.array(), ends.array()

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[T]:
        for rows in blocks(len(self), AT_ONCE):
            yield from self._read(rows)

    @overload
    def __getitem__(self, rows: int) -> T: ...

    @overload
    def __getitem__(self, rows: slice) -> tuple[T, ...]: ...

    def __getitem__(self, rows: int | slice) -> T | tuple[T, ...]:
        if not isinstance(rows, slice):
            row = operator.index(rows)
            if not -len(self) <= row < len(self):
                raise IndexError(f"there is no record {row} of {len(self)}")
            row %= len(self)
            return next(self._read(slice(row, row + 1)))
        places = range(*rows.indices(len(self)))
        if places.step == 1:
            return tuple(self._read(slice(places.start, places.stop)))
        return tuple(self[row] for row in places)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(own == its for own, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def _read(self, rows: slice) -> Iterator[T]:
        """Yield the records of a slice with a step of 1."""
        ends = self._ends[rows].ravel().tolist()
        first = int(self._ends[rows.start - 1, -1]) if rows.start else 0
        data = self._data[first : ends[-1] if ends else first].tobytes()
        starts = [first, *ends[:-1]]
        texts = [
            data[start - first : end - first].decode("utf-8", "surrogatepass")
            for start, end in zip(starts, ends, strict=False)
        ]
        for place in range(0, len(texts), self._fields):
            yield self._unpack(*texts[place : place + self._fields])
