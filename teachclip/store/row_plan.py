"""Rows that are keyed by content: the key of an item, and which rows a store gets when its items change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from teachclip.store.manifest import KEY_BYTES


def row_keys(contents: Iterable[Any]) -> np.ndarray:
    """Return the key of each item, uint8 (items, 16): half the sha256 of its content, in bytes or as JSON.

    The content is all that the item's row depends on, besides what the provenance of the store says.
    """
    data = (content if isinstance(content, bytes) else json.dumps(content).encode() for content in contents)
    digests = [hashlib.sha256(content).digest()[:KEY_BYTES] for content in data]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES)


def as_bytes(keys: np.ndarray) -> list[bytes]:
    """Return keys, uint8 (items, 16), as objects that a dictionary takes."""
    data = np.ascontiguousarray(keys).tobytes()
    return [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]


class KeyPlaces:
    """Finds keys among `keys`, uint8 (items, 16): sorted, in far less memory than a dictionary."""

    def __init__(self, keys: np.ndarray) -> None:
        self._known = _as_strings(keys)
        self._order = np.argsort(self._known, kind="stable")

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the place of each key, uint8 (items, 16), the last of several: (items,) int64, -1 for none."""
        keys = _as_strings(wanted)
        if not len(self._known):
            return np.full(len(keys), -1, dtype=np.int64)
        rows = self._order[np.searchsorted(self._known, keys, side="right", sorter=self._order) - 1]
        return np.where(self._known[rows] == keys, rows, -1)


def _as_strings(keys: np.ndarray) -> np.ndarray:
    """Return keys as one item each, which numpy compares byte by byte: (items,)."""
    return np.ascontiguousarray(keys, dtype=np.uint8).reshape(-1, KEY_BYTES).view(f"S{KEY_BYTES}")[:, 0]


class RowPlan(NamedTuple):
    """The rows of a store for other items than it had: keys of all rows, sizes of all shards, and what changes.

    `new`, `kept`, `removed`: how many items are to be computed, are there, and are there but not wanted any more.
    """

    keys: np.ndarray
    sizes: tuple[int, ...]
    new: int
    kept: int
    removed: int

    def describe(self, what: str) -> str:
        """Say in words what changes; `what` are the items, such as videos."""
        return f"{self.new:,} {what} are new, {self.removed:,} left, {self.kept:,} kept"


def plan_rows(
    keys: np.ndarray, sizes: Sequence[int], missing: Iterable[int], wanted: np.ndarray, rows_per_shard: int
) -> RowPlan | None:
    """Return the rows of a store that is to hold items `wanted` (items, 16), or None if it has all of these rows.

    `keys` (rows, 16) and `sizes` (shards,) are those of the store, `missing` its shards that are not written yet.
    Written shards stay as they are. Missing ones at the end are planned anew; one between written ones keeps its
    size, because row numbers count over the whole store, and repeats wanted items if there are too few new ones.
    """
    gone = set(missing)
    rows, ends = as_bytes(keys), np.cumsum(sizes, dtype=np.int64).tolist()
    shards = [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    written = {key for number, shard in enumerate(shards) if number not in gone for key in shard}
    planned = {key for number in gone for key in shards[number]}
    items = dict.fromkeys(as_bytes(wanted))
    new = [key for key in items if key not in written]
    if planned.issuperset(new) and items.keys() >= planned:
        return None
    while len(shards) - 1 in gone:
        gone.remove(len(shards) - 1)
        shards.pop()
    pool = iter(new)
    for number in sorted(gone):
        size = len(shards[number])
        taken = list(islice(pool, size))
        shards[number] = taken + list(islice(cycle(items), size - len(taken)))
    rest = list(pool)
    shards += [rest[start : start + rows_per_shard] for start in range(0, len(rest), rows_per_shard)]
    joined = np.frombuffer(b"".join(key for shard in shards for key in shard), dtype=np.uint8).reshape(-1, KEY_BYTES)
    return RowPlan(joined, tuple(map(len, shards)), len(new), len(items) - len(new), len(written.difference(items)))
