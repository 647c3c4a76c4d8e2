"""Rows that are keyed by content: the key of an item, and which rows a store gets when its items change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from teachclip.store.manifest import KEY_BYTES
from teachclip.store.scratch import AT_ONCE, Growing, blocks, scratch_array


def row_keys(contents: Iterable[Any]) -> np.ndarray:
    """Return the key of each item, uint8 (items, 16): half the sha256 of its content, in bytes or as JSON.

    The content is all that the item's row depends on, besides what the provenance of the store says.
    """
    data = (content if isinstance(content, bytes) else json.dumps(content).encode() for content in contents)
    keys = Growing(np.uint8, KEY_BYTES)
    while digests := [hashlib.sha256(content).digest()[:KEY_BYTES] for content in islice(data, AT_ONCE)]:
        keys.append(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES))
    return keys.array()


def as_bytes(keys: np.ndarray) -> list[bytes]:
    """Return keys, uint8 (items, 16), as objects that a dictionary takes."""
    data = np.ascontiguousarray(keys).tobytes()
    return [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]


PLACE_BYTES = 8
"""The length of a place behind its key: big-endian, so that sorting the bytes sorts equal keys by their places."""


class KeyPlaces:
    """Finds keys among `keys`, uint8 (items, 16): sorted, each with its place behind it, in a scratch array."""

    def __init__(self, keys: np.ndarray) -> None:
        self._entries = scratch_array((len(keys), KEY_BYTES + PLACE_BYTES), np.uint8)
        for rows in blocks(len(keys)):
            self._entries[rows, :KEY_BYTES] = keys[rows]
            self._entries[rows, KEY_BYTES:] = (
                np.arange(rows.start, rows.stop, dtype=">i8").view(np.uint8).reshape(-1, 8)
            )
        self._sorted = _as_strings(self._entries)
        self._sorted.sort()

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the place of each key, uint8 (items, 16), the last of several: (items,) int64, -1 for none."""
        places = scratch_array(len(wanted), np.int64)
        for rows in blocks(len(wanted)):
            places[rows] = self._find(wanted[rows])
        return places

    def _find(self, wanted: np.ndarray) -> np.ndarray:
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        behind_all = np.full((len(wanted), KEY_BYTES + PLACE_BYTES), 0xFF, np.uint8)
        behind_all[:, :KEY_BYTES] = wanted
        found = self._entries[np.searchsorted(self._sorted, _as_strings(behind_all), side="right") - 1]
        return np.where((found[:, :KEY_BYTES] == wanted).all(axis=1), _places(found), -1)

    def firsts(self) -> np.ndarray:
        """Return the first place of each distinct key, ascending: (distinct keys,) int64."""
        is_first, before = scratch_array(len(self._entries), np.bool_), np.empty((0, KEY_BYTES), np.uint8)
        for rows in blocks(len(self._entries)):
            keys = np.concatenate([before, self._entries[rows, :KEY_BYTES]])
            differs = np.ones(rows.stop - rows.start, np.bool_)
            differs[len(differs) + 1 - len(keys) :] = (keys[1:] != keys[:-1]).any(axis=1)
            is_first[_places(self._entries[rows])[differs]] = True
            before = keys[-1:]
        firsts = Growing(np.int64)
        for rows in blocks(len(is_first)):
            firsts.append(rows.start + np.flatnonzero(is_first[rows]))
        return firsts.array()


def _places(entries: np.ndarray) -> np.ndarray:
    """Return the places in some entries: (entries,) int64."""
    return np.ascontiguousarray(entries[:, KEY_BYTES:]).view(">i8")[:, 0].astype(np.int64)


def _as_strings(entries: np.ndarray) -> np.ndarray:
    """Return rows of bytes as one item each, which numpy compares byte by byte: (rows,)."""
    return entries.view(f"S{entries.shape[1]}")[:, 0]


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
    gone, starts = set(missing), np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    written = _of_shards(keys, starts, [shard for shard in range(len(sizes)) if shard not in gone])
    planned = _of_shards(keys, starts, sorted(gone))
    places_wanted = KeyPlaces(wanted)
    items = _taken(wanted, places_wanted.firsts())
    new = _lacking(KeyPlaces(written), items)
    if not len(_lacking(KeyPlaces(planned), new)) and not len(_lacking(places_wanted, planned)):
        return None
    last = len(sizes)
    while last - 1 in gone:
        last -= 1
    joined, shard_sizes, used = Growing(np.uint8, KEY_BYTES), [], 0
    for shard in range(last):
        rows, first = keys[starts[shard] : starts[shard + 1]], used
        if shard in gone:
            used = min(used + len(rows), len(new))
            again = np.arange(len(rows) - (used - first) if len(items) else 0)
            rows = np.concatenate([new[first:used], items[again % max(1, len(items))]])
        joined.append(rows)
        shard_sizes.append(len(rows))
    for rest in blocks(len(new) - used, rows_per_shard):
        joined.append(new[used + rest.start : used + rest.stop])
        shard_sizes.append(rest.stop - rest.start)
    left = len(_lacking(places_wanted, _taken(written, KeyPlaces(written).firsts())))
    return RowPlan(joined.array(), tuple(shard_sizes), len(new), len(items) - len(new), left)


def _of_shards(keys: np.ndarray, starts: np.ndarray, shards: Sequence[int]) -> np.ndarray:
    """Return the keys of the rows of some shards, which begin at the rows `starts`."""
    if len(shards) == len(starts) - 1:
        return keys
    joined = Growing(np.uint8, KEY_BYTES)
    for shard in shards:
        joined.append(keys[starts[shard] : starts[shard + 1]])
    return joined.array()


def _taken(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the keys at some places."""
    joined = Growing(np.uint8, KEY_BYTES)
    for rows in blocks(len(places)):
        joined.append(keys[places[rows]])
    return joined.array()


def _lacking(places: KeyPlaces, keys: np.ndarray) -> np.ndarray:
    """Return those of some keys, in their order, that are not among those of `places`."""
    joined = Growing(np.uint8, KEY_BYTES)
    for rows in blocks(len(keys)):
        joined.append(keys[rows][places.find(keys[rows]) < 0])
    return joined.array()
