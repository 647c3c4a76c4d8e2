"""The one on-disk store for all that is computed once: decoded frames, tokens, relevance, embeddings.

A store is a folder. Any program in any language can write one:

    manifest.json             what the store holds and what its numbers depend on
    video_text-00003.npy      array `video_text`, shard 3 (five digits or more): a plain `.npy` file, little-endian
    shard-00003.json          the commit mark of shard 3: present when all arrays of the shard are whole

`manifest.json` is one JSON object:

    {"format": "teachclip-store", "version": 1,
     "rows": 9000,                       rows of every array, over all shards
     "rows_per_shard": 512,              shard k holds rows k*512 .. (k+1)*512 - 1, the last shard what is left
     "arrays": {"video_text": {"dtype": "float16", "shape": [9000]}},   shape of ONE row, numpy names of types
     "provenance": {...},             all that the numbers depend on, as JSON
     "fingerprint": "..."}               may be left out: sha256 of `provenance` as JSON in UTF-8 with sorted keys,
                                         no spaces, no escapes beyond those that JSON demands (best without fractions)

What `shard-00003.json` holds is in `teachclip.store.commit_record`. Write the arrays under temporary names ending in
`.tmp`,
flush them to the disk, rename them, and only then write the mark in the same way. So a shard exists or it does not,
whenever a writer is killed; several processes may write different shards. A shard that exists is never changed: to
compute one again, delete its mark.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import StoreError
from teachclip.store.files import (
    explain_failed_write,
    file_hash,
    locked_folder,
    map_npy,
    rename_all,
    write_json,
    write_npy,
)
from teachclip.store.fingerprint import describe_difference, fingerprint_of
from teachclip.store.manifest import ArraySpec, Manifest, Mark

__all__ = ["ArraySpec", "ArrayStore", "describe_difference", "file_hash", "fingerprint_of"]

Texts = Mapping[int, str] | None
MAPPED_FILES = 256  # a mapped file holds a file descriptor, of which a process often has only 1024


class ArrayStore:
    """An open store of named arrays that share their rows. Made by `open_or_create` to write or `open` to read."""

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        self.path, self.rows, self.rows_per_shard = manifest.path, manifest.rows, manifest.rows_per_shard
        self.arrays, self.provenance = manifest.arrays, manifest.provenance
        self.fingerprint, self.shards = manifest.fingerprint, manifest.shards
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        self._marks: dict[int, Mark] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ArrayStore.open, complete=False), (self.path,)  # a worker process maps the files anew

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        *,
        provenance: Mapping[str, Any],
        arrays: Mapping[str, ArraySpec],
        rows: int,
        rows_per_shard: int,
    ) -> ArrayStore:
        """Open the store at `path` to write it, or make it. Several processes may do so at once.

        A store that exists keeps its own `rows_per_shard`. Raises StoreError, naming the difference, if it was made
        under other provenance or holds other arrays or another number of rows.
        """
        specs = {name: ArraySpec(spec.dtype, tuple(map(int, spec.shape))) for name, spec in arrays.items()}
        wanted = Manifest(Path(path), int(rows), int(rows_per_shard), specs, provenance)
        found = wanted.create_or_read()
        found.refuse_circumstances(provenance)
        found.refuse_arrays(wanted.rows, specs)
        return cls(found)

    @classmethod
    def open(
        cls, path: str | Path, *, provenance: Mapping[str, Any] | None = None, complete: bool = True
    ) -> ArrayStore:
        """Open a store to read it; `complete=False` also opens one that is still being written.

        Raises StoreError if there is no store of this format, if it was made under other provenance than those
        given, or if shards are missing.
        """
        manifest = Manifest.read(Path(path))
        if provenance is not None:
            manifest.refuse_circumstances(provenance)
        store = cls(manifest)
        if complete and (missing := store.missing_shards()):
            raise StoreError(
                f"{path}: {len(missing)} of {store.shards} shards are missing; run what makes them again"
            )
        return store

    def renewed(self, provenance: Mapping[str, Any]) -> ArrayStore:
        """Change what the store is said to depend on, for who knows that no row it holds depends on the change."""
        return ArrayStore(self._manifest.rewrite(provenance))

    @property
    def complete(self) -> bool:
        """Whether all shards exist."""
        return not self.missing_shards()

    def missing_shards(self, process_index: int = 0, process_count: int = 1) -> list[int]:
        """Return the shards that do not exist yet, of those that fall to this process whatever the others did."""
        names = set(os.listdir(self.path))
        mine = range(process_index, self.shards, process_count)
        return [shard for shard in mine if not names.issuperset(file.name for file in self._files(shard))]

    def shard_rows(self, shard: int) -> range:
        """Return the rows of one shard. Raises StoreError if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise StoreError(f"{self.path} has no shard {shard}, only 0 to {self.shards - 1}")
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.rows))

    def write_shard(
        self, shard: int, arrays: Mapping[str, np.ndarray], *, failures: Texts = None, remarks: Texts = None
    ) -> None:
        """Write all arrays of one shard, each (rows of the shard, ...); a shard that exists is left as it is.

        `failures` maps rows (counted over the whole store) that could not be computed to the reason; what the arrays
        hold there is never read. `remarks` are kept with the rows. Raises StoreError for arrays that do not fit or
        are not finite, and if the disk is full; then no temporary file remains.
        """
        failures = failures or {}
        self._manifest.check_shard(self.shard_rows(shard), arrays, failures)
        *files, mark = self._files(shard)
        waiting: dict[Path, Path] = {}
        sums = {}
        try:
            for name, file in zip(self.arrays, files, strict=True):
                temporary, sums[name] = write_npy(file, arrays[name])
                waiting[temporary] = file
            temporary, _ = write_json(mark, Mark(sums, failures, remarks or {}).to_json(shard))
            waiting[temporary] = mark
            with locked_folder(self.path):
                if not all(file.exists() for file in waiting.values()):
                    rename_all(waiting)
                for stale in self.path.glob(f"*-{shard:05d}.*.tmp"):  # of a writer of this shard that was killed
                    stale.unlink(missing_ok=True)
        except OSError as error:
            need = sum(array.nbytes for array in arrays.values())
            raise explain_failed_write(error, self.path, f"shard {shard}", need) from error
        finally:
            for temporary in waiting:
                temporary.unlink(missing_ok=True)
            self._forget(shard)

    def discard(self, shard: int) -> None:
        """Take the mark of a shard away, so that it counts as missing and can be written again."""
        self._files(shard)[-1].unlink(missing_ok=True)
        self._forget(shard)

    def read(self, name: str, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the given rows of one array, (len(rows), ...), in their order; rows may repeat.

        Raises StoreError for a name or row that the store does not have, for a shard that is missing or damaged, and
        for a row that could not be computed, naming it.
        """
        if name not in self.arrays:
            raise StoreError(f"{self.path} has no array {name!r}, only {', '.join(self.arrays)}")
        wanted = np.arange(self.rows)[rows] if isinstance(rows, slice) else np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise StoreError(f"{self.path}: rows must be a list of whole numbers, got {wanted.dtype} {wanted.shape}")
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.rows:
            raise StoreError(f"{self.path}: rows {wanted.min()} to {wanted.max()} of {self.rows} do not exist")
        spec = self.arrays[name]
        result = np.empty((len(wanted), *spec.shape), spec.dtype)
        shards, offsets = np.divmod(wanted.astype(np.int64), self.rows_per_shard)
        order = np.argsort(shards, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if wanted.size else []:
            shard = int(shards[places[0]])
            failures = self._mark(shard).failures
            if lost := failures and [row for row in wanted[places].tolist() if row in failures]:
                raise StoreError(f"{self.path}: row {lost[0]} could not be computed: {failures[lost[0]]}")
            result[places] = self._map(name, shard)[offsets[places]]
        return result

    def failures(self) -> dict[int, str]:
        """Return the reason by row that could not be computed, over all shards that exist."""
        return {row: reason for mark in self._all_marks() for row, reason in mark.failures.items()}

    def remarks(self) -> dict[int, str]:
        """Return what is to be known of rows, over all shards that exist."""
        return {row: remark for mark in self._all_marks() for row, remark in mark.remarks.items()}

    def verify(self) -> list[str]:
        """Read every file and compare its checksum. Returns one line for each problem; none if the store is whole."""
        missing = self.missing_shards()
        problems = [f"{self.path}: {len(missing)} of {self.shards} shards are missing"] if missing else []
        for shard in sorted(set(range(self.shards)) - set(missing)):
            self._forget(shard)
            for name, file in zip(self.arrays, self._files(shard), strict=False):
                try:
                    self._map(name, shard)
                    if file_hash(file) != self._mark(shard).sums.get(name):
                        raise self._damaged(file, shard, "its checksum differs")
                except StoreError as error:
                    problems.append(str(error))
        return list(dict.fromkeys(problems))

    def _files(self, shard: int) -> list[Path]:
        names = [f"{name}-{shard:05d}.npy" for name in self.arrays]
        return [self.path / name for name in (*names, f"shard-{shard:05d}.json")]

    def _all_marks(self) -> list[Mark]:
        return [self._mark(shard) for shard in sorted(set(range(self.shards)).difference(self.missing_shards()))]

    def _mark(self, shard: int) -> Mark:
        if shard not in self._marks:
            file = self._files(shard)[-1]
            try:
                self._marks[shard] = Mark.read(file)
            except FileNotFoundError as error:
                raise StoreError(f"{self.path}: shard {shard} is missing; run what makes it again") from error
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._damaged(file, shard, repr(error)) from error
        return self._marks[shard]

    def _map(self, name: str, shard: int) -> np.ndarray:
        """Return one shard of one array, mapped from the disk: (rows of the shard, ...)."""
        if (name, shard) not in self._maps:
            file = self._files(shard)[list(self.arrays).index(name)]
            try:
                array = map_npy(file)
            except ValueError as error:
                raise self._damaged(file, shard, str(error)) from error
            shape = (len(self.shard_rows(shard)), *self.arrays[name].shape)
            if array.dtype != np.dtype(self.arrays[name].dtype) or array.shape != shape:
                raise self._damaged(file, shard, f"it holds {array.dtype} {array.shape}, not {shape}")
            if len(self._maps) >= MAPPED_FILES:
                self._maps.pop(next(iter(self._maps)))
            self._maps[name, shard] = array
        return self._maps[name, shard]

    def _forget(self, shard: int) -> None:
        self._marks.pop(shard, None)
        for name in self.arrays:
            self._maps.pop((name, shard), None)

    def _damaged(self, file: Path, shard: int, why: str) -> StoreError:
        mark = self._files(shard)[-1].name
        return StoreError(f"{file} is damaged ({why}); delete {mark} there and run what makes it again")
