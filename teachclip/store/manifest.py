"""The JSON files of an array store: the manifest, and the commit record of each shard."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.errors import StoreError
from teachclip.store.files import (
    explain_failed_write,
    file_hash,
    locked_folder,
    map_npy,
    read_json,
    rename_all,
    write_atomic,
    write_npy,
)
from teachclip.store.fingerprint import check_seal, describe_difference, fingerprint_of, seal
from teachclip.store.scratch import IN_MEMORY, blocks

FORMAT, VERSION, MANIFEST = "teachclip-store", 2, "manifest.json"

KEY_BYTES = 16
"""The length of a row's key: half a sha256 tells any contents apart."""

MOST_SHARDS, MOST_VALUES = 10**6, 10**12
"""The most shards of a store, rows of a store and numbers in a row: more than any disk holds."""

_REPLACED = re.compile(r"keys-[0-9a-f]{8}\.npy|(manifest\.json|keys\.npy)\.\w+\.tmp")
"""Files of a manifest that another took the place of, or whose writer was killed. Shards have fewer digits."""


class ArraySpec(NamedTuple):
    """The content of an array: the numpy name of its dtype and the shape of ONE row."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of a `manifest.json`. Raises StoreError for values that no store can have.

    `store` is what the commit records of its shards name too; None where another program wrote them without it.
    `shard_sizes`: rows of each shard, if they are not `rows_per_shard` in all but the last. `keys`: the file with the
    keys of all rows, and its sha256; None for a store without keys.
    """

    path: Path
    rows: int
    rows_per_shard: int
    arrays: Mapping[str, ArraySpec]
    provenance: Mapping[str, Any]
    store: str | None = None
    shard_sizes: tuple[int, ...] | None = None
    keys: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        sizes = self.shard_sizes
        if sizes is not None and (sum(sizes) != self.rows or min(sizes, default=1) < 1):
            raise StoreError(f"{self.path}: the shards of {self.rows} rows cannot have {sum(sizes)} rows together")
        if not self.arrays or self.rows < 0 or self.rows_per_shard < 1:
            counts = f"{self.rows} rows, {self.rows_per_shard} rows per shard and {len(self.arrays)} arrays"
            raise StoreError(f"{self.path}: a store cannot have {counts}")
        if self.rows > MOST_VALUES or self.rows_per_shard > MOST_VALUES or self.shards > MOST_SHARDS:
            allowed = f"at most {MOST_SHARDS:,} shards and {MOST_VALUES:,} rows"
            raise StoreError(f"{self.path}: a store has {allowed}, not the number that its manifest names")
        for name, spec in self.arrays.items():
            known = re.fullmatch("bool|u?int(8|16|32|64)|float(16|32|64)", spec.dtype)
            named = re.fullmatch("[a-z][a-z0-9_]{,99}", name)
            fits = len(spec.shape) <= 32 and min(spec.shape, default=1) >= 1 and math.prod(spec.shape) <= MOST_VALUES
            if not known or not named or not fits:
                what = f"array {name!r} of {spec.dtype!r} {spec.shape}"
                raise StoreError(f"{self.path}: {what if len(what) < 300 else what[:297] + '...'} cannot be stored")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest in the folder `path`. Raises StoreError unless it is one of this format and version."""
        file = path / MANIFEST
        try:
            content = read_json(file)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is not a store: it has no {MANIFEST}") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{file} cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f'{file} is not the manifest of a store: "format" is not "{FORMAT}"')
        if content.get("version") != VERSION:
            raise StoreError(
                f"{path} has format version {str(content.get('version'))[:20]}, this version of teachclip reads "
                f"{VERSION}; delete the folder and run the command that made it again"
            )
        try:
            specs = {n: ArraySpec(str(s["dtype"]), tuple(map(int, s["shape"]))) for n, s in content["arrays"].items()}
            rows, per_shard = int(content["rows"]), int(content["rows_per_shard"])
            sizes, keys = content.get("shard_sizes"), content.get("keys")
            manifest = cls(
                path,
                rows,
                per_shard,
                specs,
                dict(content["provenance"]),
                content.get("store"),
                None if sizes is None else tuple(map(int, sizes)),
                None if keys is None else {"file": Path(str(keys["file"])).name, "sha256": str(keys["sha256"])},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(f"{file} is not the manifest of a store: {repr(error)[:200]}") from error
        if content.get("fingerprint", manifest.fingerprint) != manifest.fingerprint:
            raise StoreError(f"{file}: the fingerprint does not match the provenance; the file was edited or damaged")
        try:
            check_seal(content)
        except ValueError as error:
            raise StoreError(
                f"{file}: {error}; restore it, or delete the folder and run the command again"
            ) from error
        return manifest

    def create_or_read(self) -> Manifest:
        """Write this manifest to its folder unless there is one; return the one that is there. Safe in a race."""
        data = replace(self, store=self._new_store()).to_json()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with locked_folder(self.path):
                names = os.listdir(self.path)
                if MANIFEST not in names:
                    # shards of unknown provenance must not become part of this store
                    if any(re.fullmatch(r".*-\d{5,}\.(npy|json)", name) for name in names):
                        message = f"{self.path} holds shards but no {MANIFEST}; delete the folder or choose another"
                        raise StoreError(message)
                    for stale in self.path.glob(f"{MANIFEST}.*.tmp"):  # of a process that was killed
                        stale.unlink(missing_ok=True)
                    write_atomic(self.path / MANIFEST, data)
        except OSError as error:
            raise explain_failed_write(error, self.path, MANIFEST, len(data)) from error
        return Manifest.read(self.path)

    def read_keys(self) -> np.ndarray | None:
        """Return the keys of all rows, uint8 (rows, 16); None for a store without. Raises StoreError on damage."""
        if self.keys is None:
            return None
        file = self.path / self.keys["file"]
        try:
            keys = map_npy(file)
            if file_hash(file) != self.keys["sha256"]:
                raise ValueError("its checksum differs")
            if keys.dtype != np.uint8 or keys.shape != (self.rows, KEY_BYTES):
                raise ValueError(f"it holds {keys.dtype} {keys.shape}, not uint8 {(self.rows, KEY_BYTES)}")
        except ValueError as error:
            raise StoreError(f"{file} is damaged ({error}); delete {self.path} and run the command again") from error
        return keys

    def rewrite(self, keys: np.ndarray, shard_sizes: Sequence[int]) -> Manifest:
        """Replace this manifest on disk by one with other rows, and return it. The caller holds the folder's lock.

        `keys`: of all rows, uint8 (rows, 16). The keys are whole on the disk before the manifest names them.
        """
        temporary = None
        try:
            temporary, checksum = write_npy(self.path / "keys.npy", keys)
            file = self.path / f"keys-{checksum[:8]}.npy"
            rename_all({temporary: file})
            content = {"file": file.name, "sha256": checksum}
            changed = replace(self, rows=len(keys), shard_sizes=tuple(shard_sizes), keys=content)
            write_atomic(self.path / MANIFEST, changed.to_json())
        except OSError as error:
            raise explain_failed_write(error, self.path, "the keys of the rows", keys.nbytes) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        current = {file.name, *([self.keys["file"]] if self.keys else [])}  # a run may be about to read the last ones
        for name in os.listdir(self.path):
            if name not in current and _REPLACED.fullmatch(name):
                (self.path / name).unlink(missing_ok=True)
        return Manifest.read(self.path)

    def _new_store(self) -> str:
        """Return what a new store is called in its commit records: a hash of all that it is to hold."""
        layout = {"rows": self.rows, "rows_per_shard": self.rows_per_shard, "arrays": self.arrays}
        return fingerprint_of({**layout, "provenance": self.provenance})

    @property
    def fingerprint(self) -> str:
        """The sha256 of the provenance."""
        return fingerprint_of(self.provenance)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.shard_sizes) if self.shard_sizes is not None else -(-self.rows // self.rows_per_shard)

    def shard_starts(self) -> np.ndarray:
        """Return the first row of each shard, and behind them the number of rows: (shards + 1,) int64."""
        if self.shard_sizes is not None:
            return np.concatenate([[0], np.cumsum(self.shard_sizes, dtype=np.int64)])
        return np.minimum(np.arange(self.shards + 1, dtype=np.int64) * self.rows_per_shard, self.rows)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        arrays = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in self.arrays.items()}
        head = {"format": FORMAT, "version": VERSION, "rows": self.rows, "rows_per_shard": self.rows_per_shard}
        head |= {} if self.store is None else {"store": self.store}
        head |= {} if self.shard_sizes is None else {"shard_sizes": list(self.shard_sizes)}
        head |= {} if self.keys is None else {"keys": dict(self.keys)}
        body = {**head, "arrays": arrays, "fingerprint": self.fingerprint, "provenance": self.provenance}
        return json.dumps(seal(body), indent=1).encode()

    def check_provenance(self, wanted: Mapping[str, Any]) -> None:
        """Raise StoreError, naming the difference, unless the store has the provenance `wanted`."""
        if difference := describe_difference(self.provenance, wanted):
            raise StoreError(f"{self.path} has another provenance: {difference}; delete the folder or choose another")

    def check_arrays(self, rows: int | None, arrays: Mapping[str, ArraySpec]) -> None:
        """Raise StoreError, naming the difference, unless the store holds `arrays` of `rows` rows (None: of any)."""
        held, wanted = {"rows": rows if rows is None else self.rows, **self.arrays}, {"rows": rows, **arrays}
        if difference := describe_difference(held, wanted):
            raise StoreError(f"{self.path} holds other arrays: {difference}; delete the folder or choose another")

    def check_shard(self, rows: range, arrays: Mapping[str, np.ndarray], failures: Mapping[int, str]) -> None:
        """Raise StoreError unless `arrays` have the right shapes and are finite in all `rows` but the failed ones."""
        where = f"{self.path}: rows {rows.start} to {rows.stop - 1}"
        if set(arrays) != set(self.arrays):
            raise StoreError(f"{where} must hold {', '.join(self.arrays)}, got {', '.join(arrays) or 'nothing'}")
        if outside := [row for row in failures if row not in rows]:
            raise StoreError(f"{where}: failed row {outside[0]} is not among them")
        for name, spec in self.arrays.items():
            array, shape = np.asarray(arrays[name]), (len(rows), *spec.shape)
            if array.dtype != np.dtype(spec.dtype) or array.shape != shape:
                wanted, got = f"{spec.dtype} {shape}", f"{array.dtype} {array.shape}"
                raise StoreError(f"{where}: array {name!r} must be {wanted}, got {got}")
            if array.dtype.kind == "f":
                some = blocks(len(rows), max(1, IN_MEMORY // max(1, math.prod(spec.shape))))
                finite = [np.isfinite(array[part]).reshape(part.stop - part.start, -1).all(axis=1) for part in some]
                invalid = ~np.concatenate([np.empty(0, np.bool_), *finite])
                invalid[[row - rows.start for row in failures]] = False
                if invalid.any():
                    first = rows[int(np.argmax(invalid))]
                    raise StoreError(f"{where}: array {name!r} is not finite in {invalid.sum()} rows, first {first}")


class CommitRecord(NamedTuple):
    """The commit record of a shard: sha256 by array, error by failed row, note by row (rows of the whole store).

    `keys`: the sha256 of the keys of its rows; None for a store without keys.
    """

    shard: int
    store: str | None
    checksums: Mapping[str, str]
    failures: Mapping[int, str]
    notes: Mapping[int, str]
    keys: str | None = None

    @classmethod
    def read(cls, file: Path) -> CommitRecord:
        """Read a record. Raises OSError, ValueError, LookupError, TypeError and others if it is damaged."""
        content = read_json(file)
        check_seal(content)
        failures, notes = (
            {int(row): str(text) for row, text in texts.items()}
            for texts in (content["failures"], content.get("notes", {}))
        )
        checksums = dict(content["sha256"])
        return cls(int(content["shard"]), content.get("store"), checksums, failures, notes, content.get("keys"))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file; `store`, `keys` and `notes` are absent where there are none."""
        failures, notes = (
            {str(row): " ".join(str(text).split()) for row, text in sorted(texts.items())}
            for texts in (self.failures, self.notes)
        )
        store = {} if self.store is None else {"store": self.store}
        store |= {} if self.keys is None else {"keys": self.keys}
        content = {"shard": self.shard, **store, "sha256": dict(self.checksums), "failures": failures}
        return seal({**content, "notes": notes} if notes else content)
