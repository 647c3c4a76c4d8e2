"""The one on-disk store for all that is computed once: decoded frames, tokens, relevance, embeddings.

A store is a folder. Any program in any language can write one:

    manifest.json             what the store holds and what its numbers depend on
    video_text-00003.npy      array `video_text`, shard 3 (five digits or more): a plain `.npy` file, little-endian
    shard-00003.json          the commit record of shard 3: present when all arrays of the shard are whole
    .lock                     what writing processes lock; may be absent

`manifest.json` is one JSON object:

    {"format": "teachclip-store", "version": 2,
     "rows": 9000,                       rows of every array, over all shards
     "rows_per_shard": 512,              shard k holds rows k*512 .. (k+1)*512 - 1, the last one the rest
     "shard_sizes": [512, 88, 12],       optional: the rows of each shard, where they are other ones
     "keys": {"file": "keys-1f0a.npy", "sha256": "..."},   optional: what each row is of, see below
     "arrays": {"video_text": {"dtype": "float16", "shape": [9000]}},   shape of ONE row, numpy names of types
     "provenance": {...},                all that the numbers depend on, as JSON
     "fingerprint": "...",               optional: sha256 of `provenance` as JSON in UTF-8 with sorted keys,
                                         no spaces, no escapes beyond those that JSON demands (best without fractions)
     "store": "...",                     optional: any text; the commit records of this store name the same one
     "seal": "..."}                      optional: what `teachclip.store.fingerprint.seal` adds, to notice edits

`shard-00003.json` is one JSON object:

    {"shard": 3,
     "sha256": {"video_text": "..."},            of each whole `.npy` file
     "failures": {"1540": "..."},                why a row has no value; rows are counted over the whole store
     "notes": {"1541": "..."},                   optional: what to know about a row
     "keys": "...",                              of a store with keys: sha256 of the keys of its rows
     "store": "...", "seal": "..."}              as in the manifest; optional there and here

Write the arrays under temporary names ending in `.tmp`, flush them to the disk, rename them, and only then write the
commit record in the same way. So a shard exists or it does not, whenever a writer is killed; several processes may
write different shards. A shard that exists is never changed: to compute one again, delete its commit record.

A store may have keys: a `.npy` file, uint8 (rows, 16), that says by a hash which item each row is of. Its provenance
then holds for every row alike. Other items add rows for those that are new, in shards of their own, and change no row
that is there; an item that left the data keeps its row, which is not read.

Who reads checks the checksum of each file before its first row is used, so that damage is found and never trained on.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import StoreError
from teachclip.store.files import (
    explain_failed_write,
    file_hash,
    locked_folder,
    map_npy,
    open_file_limit,
    rename_all,
    write_json,
    write_npy,
)
from teachclip.store.fingerprint import describe_difference, fingerprint_of
from teachclip.store.manifest import MANIFEST, ArraySpec, CommitRecord, Manifest
from teachclip.store.row_plan import KeyPlaces, RowPlan, plan_rows
from teachclip.store.scratch import blocks, scratch_array

__all__ = ["ArraySpec", "ArrayStore", "describe_difference", "file_hash", "fingerprint_of"]

log = logging.getLogger(__name__)

Texts = Mapping[int, str] | None
MAPPED_FILES = max(256, open_file_limit() // 8)
"""Files that a store keeps mapped, each of which holds a file descriptor: all of them where the system lets it."""


class _StrangerError(StoreError):
    """A shard that is whole, but of another store."""


class ArrayStore:
    """An open store of named arrays that share their rows. Made by `open_or_create` to write or `open` to read."""

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        self.path, self.rows, self.rows_per_shard = manifest.path, manifest.rows, manifest.rows_per_shard
        self.arrays, self.provenance = manifest.arrays, manifest.provenance
        self.fingerprint, self.shards = manifest.fingerprint, manifest.shards
        self._starts = manifest.shard_starts()
        self.keys = manifest.read_keys()  # of all rows, uint8 (rows, 16); None for a store without
        self._places: tuple[np.ndarray, KeyPlaces] | None = None  # of `keys`, once they were searched
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        self._records: dict[int, CommitRecord] = {}
        self._whole: set[tuple[str, int]] = set()  # files whose checksum was found right

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ArrayStore.open, complete=False), (self.path,)  # a worker maps the files anew

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        *,
        provenance: Mapping[str, Any],
        arrays: Mapping[str, ArraySpec],
        rows_per_shard: int,
        rows: int = 0,
        keys: np.ndarray | None = None,
        what: str = "",
    ) -> ArrayStore:
        """Open the store at `path` for writing, or create it. Several processes may do so at once.

        It has `rows` rows, or with `keys`, uint8 (items, 16), a row for each of these items; a store that lacks some
        gets rows for them, and a log line says how many are new, if `what` names them. A store that exists keeps its
        own `rows_per_shard` in the shards that it has. Raises StoreError, naming the difference, if it has another
        provenance, other arrays or, without keys, another number of rows.
        """
        specs = {name: ArraySpec(spec.dtype, tuple(map(int, spec.shape))) for name, spec in arrays.items()}
        wanted = Manifest(Path(path), int(rows), int(rows_per_shard), specs, provenance)
        manifest = wanted.create_or_read()
        manifest.check_provenance(provenance)
        manifest.check_arrays(None if keys is not None else wanted.rows, specs)
        return cls(manifest) if keys is None else cls(manifest)._with_rows_of(keys, int(rows_per_shard), what)

    def _with_rows_of(self, keys: np.ndarray, rows_per_shard: int, what: str) -> ArrayStore:
        """Return the store with a row for every item; what it lacks is planned, by one process at a time."""
        if self.keys is None and self.rows:
            raise StoreError(f"{self.path} does not say what its rows are of; delete the folder and run again")
        if self._plan(keys, rows_per_shard) is None:
            return self
        with locked_folder(self.path):
            store = ArrayStore(Manifest.read(self.path))
            plan = store._plan(keys, rows_per_shard)
            if plan is None:  # another process was faster
                return store
            if what and (plan.kept or plan.removed):
                log.info("%s: %s", self.path, plan.describe(what))
            return ArrayStore(store._manifest.rewrite(plan.keys, plan.sizes))

    def _plan(self, keys: np.ndarray, rows_per_shard: int) -> RowPlan | None:
        held = np.empty((0, keys.shape[1]), np.uint8) if self.keys is None else self.keys
        return plan_rows(held, np.diff(self._starts).tolist(), self.missing_shards(), keys, rows_per_shard)

    @classmethod
    def open(
        cls, path: str | Path, *, provenance: Mapping[str, Any] | None = None, complete: bool = True
    ) -> ArrayStore:
        """Open a store for reading; `complete=False` also opens one that is still being written.

        Raises StoreError if there is no store of this format version, if it has another `provenance` than the one
        given, or if shards are missing.
        """
        manifest = Manifest.read(Path(path))
        if provenance is not None:
            manifest.check_provenance(provenance)
        store = cls(manifest)
        if complete and (missing := store.missing_shards()):
            raise StoreError(f"{path}: {len(missing)} of {store.shards} shards are missing; run the command again")
        return store

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of the items with these keys, uint8 (items, 16): (items,) int64, -1 where there is none."""
        if self.keys is None:
            return np.full(len(keys), -1)
        if self._places is None or self._places[0] is not self.keys:
            self._places = self.keys, KeyPlaces(self.keys)
        return self._places[1].find(keys)

    def keys_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the keys of some rows, uint8 (rows, 16). Raises StoreError for a store without keys."""
        if self.keys is None:
            raise StoreError(f"{self.path} does not say what its rows are of; delete the folder and run again")
        return self.keys[np.asarray(rows, dtype=np.int64)]

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Return which of the items with these keys, uint8 (items, 16), have a row that is written: bool (items,)."""
        rows, missing = self.rows_of(keys), self.missing_shards()
        written = scratch_array(len(rows), np.bool_)
        for some in blocks(len(rows)):
            shards = np.searchsorted(self._starts, rows[some], side="right") - 1
            written[some] = (rows[some] >= 0) & ~np.isin(shards, missing)
        return written

    @property
    def complete(self) -> bool:
        """Whether all shards exist."""
        return not self.missing_shards()

    def missing_shards(self, process_index: int = 0, process_count: int = 1) -> list[int]:
        """Return the missing ones of the shards `process_index`, `process_index + process_count`, ..., ascending."""
        names = set(os.listdir(self.path))
        mine = range(process_index, self.shards, process_count)
        return [shard for shard in mine if not names.issuperset(file.name for file in self._files(shard))]

    def shard_rows(self, shard: int) -> range:
        """Return the rows of one shard. Raises StoreError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise StoreError(f"{self.path} has no shard {shard}, only 0 to {self.shards - 1}")
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def shard_of(self, row: int) -> int:
        """Return the shard that holds a row."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def write_shard(
        self, shard: int, arrays: Mapping[str, np.ndarray], *, failures: Texts = None, notes: Texts = None
    ) -> None:
        """Write all arrays of one shard, each (rows of the shard, ...); a shard that exists is left as it is.

        `failures` maps rows (counted over the whole store) that could not be computed to their errors; what the
        arrays hold there is never read. `notes` by row are kept with them. Raises StoreError for arrays of another
        shape or dtype or with values that are not finite, and if the disk is full; then no temporary file remains.
        """
        failures = failures or {}
        self._manifest.check_shard(self.shard_rows(shard), arrays, failures)
        *files, record = self._files(shard)
        temporaries: dict[Path, Path] = {}
        checksums = {}
        try:
            for name, file in zip(self.arrays, files, strict=True):
                temporary, checksums[name] = write_npy(file, arrays[name])
                temporaries[temporary] = file
            store, keys = self._manifest.store, self._keys_hash(shard)
            content = CommitRecord(shard, store, checksums, failures, notes or {}, keys)
            temporary, _ = write_json(record, content.to_json())
            temporaries[temporary] = record
            with locked_folder(self.path):
                if not all(file.exists() for file in temporaries.values()):
                    rename_all(temporaries)
                for stale in self.path.glob(f"*-{shard:05d}.*.tmp"):  # of a writer of this shard that was killed
                    stale.unlink(missing_ok=True)
        except OSError as error:
            need = sum(array.nbytes for array in arrays.values())
            raise explain_failed_write(error, self.path, f"shard {shard}", need) from error
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            self._forget(shard)

    def discard(self, shard: int) -> None:
        """Delete the commit record of a shard, so that the shard counts as missing and can be written again."""
        self._files(shard)[-1].unlink(missing_ok=True)
        self._forget(shard)

    def read(
        self, name: str, rows: slice | Sequence[int] | np.ndarray, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the given rows of one array, (len(rows), ...), in their order; rows may repeat.

        `columns`: which numbers of each row along its first axis, in this order; None: all. No others are read.
        Raises StoreError for a name or row that the store does not have, for a shard that is missing or damaged, and
        for a row that could not be computed, with its error.
        """
        if name not in self.arrays:
            raise StoreError(f"{self.path} has no array {name!r}, only {', '.join(self.arrays)}")
        wanted = np.arange(*rows.indices(self.rows)) if isinstance(rows, slice) else np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise StoreError(f"{self.path}: rows must be a list of integers, got {wanted.dtype} {wanted.shape}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.rows:
            raise StoreError(f"{self.path}: rows {wanted.min()} to {wanted.max()} of {self.rows} do not exist")
        spec = self.arrays[name]
        if wanted.size:  # a manifest may name rows of any size: see that they exist before taking memory for them
            self._map(name, self.shard_of(int(wanted[0])))
        shape = spec.shape if columns is None else (len(columns), *spec.shape[1:])
        result = np.empty((len(wanted), *shape), spec.dtype)
        if columns is not None and len(columns) and not 0 <= columns.min() <= columns.max() < spec.shape[0]:
            raise StoreError(f"{self.path}: {name} has {spec.shape[0]} columns, not all of those that are asked for")
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        offsets = wanted.astype(np.int64) - self._starts[shards]
        order = np.argsort(shards, kind="stable")
        firsts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        bounds = [*firsts.tolist(), len(order)]
        for shard, start, stop in zip(shards[order[firsts]].tolist(), bounds, bounds[1:], strict=False):
            places = order[start:stop]
            if failures := self._record(shard).failures:
                self._check_rows(wanted[places].tolist(), failures)
            block, found = self._map(name, shard), offsets[places]
            if columns is None:
                result[places] = block[found]
            elif len(places) > 1:
                result[places] = block[found[:, None], columns]
            else:  # as a batch has it in a store of many shards: several times as fast as the line above
                block[found[0]].take(columns, axis=0, out=result[places[0]], mode="clip")
        return result

    def _check_rows(self, rows: Sequence[int], failures: Mapping[int, str]) -> None:
        """Raise StoreError if one of the rows could not be computed."""
        if failed := [row for row in rows if row in failures]:
            raise StoreError(f"{self.path}: row {failed[0]} could not be computed: {failures[failed[0]]}")

    def failures(self) -> dict[int, str]:
        """Return the error of every row that could not be computed, over all shards that exist."""
        return {row: error for record in self._all_records() for row, error in record.failures.items()}

    def notes(self) -> dict[int, str]:
        """Return the notes by row, over all shards that exist."""
        return {row: note for record in self._all_records() for row, note in record.notes.items()}

    def verify(self) -> list[str]:
        """Read every file; compare its checksum, and see that its numbers are finite.

        Returns one line per problem, none if the store is whole.
        """
        missing = self.missing_shards()
        problems = [f"{self.path}: {len(missing)} of {self.shards} shards are missing"] if missing else []
        present = sorted(set(range(self.shards)) - set(missing))
        strangers = []
        try:
            self.keys = self._manifest.read_keys()
        except StoreError as error:  # which says more than each of its shards could
            return [*problems, str(error)]
        for shard in present:
            self._forget(shard)
            try:
                failures = self._record(shard).failures
                arrays = {name: self._map(name, shard) for name in self.arrays}
                self._manifest.check_shard(self.shard_rows(shard), arrays, failures)
            except _StrangerError as error:
                strangers.append(str(error))
            except StoreError as error:
                problems.append(str(error))
        if len(strangers) == len(present) > 1:  # then it is the manifest that does not belong here
            manifest = self.path / MANIFEST
            strangers = [f"{manifest} is of another store than all shards beside it; delete the folder and run again"]
        return problems + strangers

    def _files(self, shard: int) -> list[Path]:
        names = [f"{name}-{shard:05d}.npy" for name in self.arrays]
        return [self.path / name for name in (*names, f"shard-{shard:05d}.json")]

    def _all_records(self) -> list[CommitRecord]:
        return [self._record(shard) for shard in sorted(set(range(self.shards)).difference(self.missing_shards()))]

    def _record(self, shard: int) -> CommitRecord:
        if shard not in self._records:
            file = self._files(shard)[-1]
            try:
                self._records[shard] = CommitRecord.read(file)
            except FileNotFoundError as error:
                raise StoreError(f"{self.path}: shard {shard} is missing; run the command again") from error
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise self._damaged(file, shard, repr(error)[:200]) from error
            self._check_belongs(self._records[shard], file, shard)
        return self._records[shard]

    def _check_belongs(self, record: CommitRecord, file: Path, shard: int) -> None:
        """Raise StoreError unless a record is of this store and this shard."""
        keys = self._keys_hash(shard)
        if record.shard == shard and record.store == self._manifest.store and record.keys == keys:
            return
        del self._records[shard]
        if record.shard != shard:
            raise self._damaged(file, shard, f"it is the record of shard {str(record.shard)[:20]}")
        if record.store == self._manifest.store:
            raise self._damaged(file, shard, f"it is of other rows than {MANIFEST} says")
        raise _StrangerError(str(self._damaged(file, shard, f"it is of another store than {MANIFEST}")))

    def _keys_hash(self, shard: int) -> str | None:
        """Return the sha256 of the keys of a shard's rows; None for a store without keys."""
        if self.keys is None:
            return None
        return hashlib.sha256(self.keys[self._starts[shard] : self._starts[shard + 1]].tobytes()).hexdigest()

    def _map(self, name: str, shard: int) -> np.ndarray:
        """Return one shard of one array, memory-mapped: (rows of the shard, ...)."""
        array = self._maps.get((name, shard))
        if array is None:
            checksums = self._record(shard).checksums
            file = self._files(shard)[list(self.arrays).index(name)]
            try:
                array = map_npy(file)
            except ValueError as error:
                raise self._damaged(file, shard, str(error)) from error
            shape = (len(self.shard_rows(shard)), *self.arrays[name].shape)
            if array.dtype != np.dtype(self.arrays[name].dtype) or array.shape != shape:
                raise self._damaged(file, shard, f"it holds {array.dtype} {array.shape}, not {shape}")
            if (name, shard) not in self._whole:
                if file_hash(file) != checksums.get(name):
                    raise self._damaged(file, shard, "its checksum differs")
                self._whole.add((name, shard))
            if len(self._maps) >= MAPPED_FILES:
                self._maps.pop(list(self._maps)[0], None)  # noqa: RUF015 a list is made at once: threads may read too
            self._maps[name, shard] = array
        return array  # not from the dictionary: another thread may have taken it out

    def _forget(self, shard: int) -> None:
        self._records.pop(shard, None)
        for name in self.arrays:
            self._maps.pop((name, shard), None)
            self._whole.discard((name, shard))

    def _damaged(self, file: Path, shard: int, cause: str) -> StoreError:
        record = self._files(shard)[-1].name
        return StoreError(f"{file} is damaged ({cause}); delete {record} and run the command again")
