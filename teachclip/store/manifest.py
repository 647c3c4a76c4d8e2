"""The JSON files of an array store: the manifest, and the commit record of each shard."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.errors import StoreError
from teachclip.store.files import explain_failed_write, locked_folder, read_json, write_atomic
from teachclip.store.fingerprint import check_seal, describe_difference, fingerprint_of, seal

FORMAT, VERSION, MANIFEST = "teachclip-store", 2, "manifest.json"

MOST_SHARDS, MOST_VALUES = 10**6, 10**12
"""The most shards of a store, rows of a store and numbers in a row: more than any disk holds."""


class ArraySpec(NamedTuple):
    """The content of an array: the numpy name of its dtype and the shape of ONE row."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of a `manifest.json`. Raises StoreError for values that no store can have.

    `store` is what the commit records of its shards name too; None where another program wrote them without it.
    """

    path: Path
    rows: int
    rows_per_shard: int
    arrays: Mapping[str, ArraySpec]
    provenance: Mapping[str, Any]
    store: str | None = None

    def __post_init__(self) -> None:
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
            manifest = cls(path, rows, per_shard, specs, dict(content["provenance"]), content.get("store"))
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

    def rewrite(self, provenance: Mapping[str, Any]) -> Manifest:
        """Replace this manifest on disk by one with other provenance and return it."""
        changed = replace(self, provenance=provenance)
        data = changed.to_json()
        try:
            with locked_folder(self.path):
                write_atomic(self.path / MANIFEST, data)
        except OSError as error:
            raise explain_failed_write(error, self.path, MANIFEST, len(data)) from error
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
        return -(-self.rows // self.rows_per_shard)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        arrays = {name: {"dtype": spec.dtype, "shape": list(spec.shape)} for name, spec in self.arrays.items()}
        head = {"format": FORMAT, "version": VERSION, "rows": self.rows, "rows_per_shard": self.rows_per_shard}
        head |= {} if self.store is None else {"store": self.store}
        body = {**head, "arrays": arrays, "fingerprint": self.fingerprint, "provenance": self.provenance}
        return json.dumps(seal(body), indent=1).encode()

    def check_provenance(self, wanted: Mapping[str, Any]) -> None:
        """Raise StoreError, naming the difference, unless the store has the provenance `wanted`."""
        if difference := describe_difference(self.provenance, wanted):
            raise StoreError(f"{self.path} has another provenance: {difference}; delete the folder or choose another")

    def check_arrays(self, rows: int, arrays: Mapping[str, ArraySpec]) -> None:
        """Raise StoreError, naming the difference, unless the store holds `arrays` of `rows` rows."""
        held, wanted = {"rows": self.rows, **self.arrays}, {"rows": rows, **arrays}
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
                invalid = ~np.isfinite(array).reshape(len(rows), -1).all(axis=1)
                invalid[[row - rows.start for row in failures]] = False
                if invalid.any():
                    first = rows[int(np.argmax(invalid))]
                    raise StoreError(f"{where}: array {name!r} is not finite in {invalid.sum()} rows, first {first}")


class CommitRecord(NamedTuple):
    """The commit record of a shard: sha256 by array, error by failed row, note by row (rows of the whole store)."""

    shard: int
    store: str | None
    checksums: Mapping[str, str]
    failures: Mapping[int, str]
    notes: Mapping[int, str]

    @classmethod
    def read(cls, file: Path) -> CommitRecord:
        """Read a record. Raises OSError, ValueError, LookupError, TypeError and others if it is damaged."""
        content = read_json(file)
        check_seal(content)
        failures, notes = (
            {int(row): str(text) for row, text in texts.items()}
            for texts in (content["failures"], content.get("notes", {}))
        )
        return cls(int(content["shard"]), content.get("store"), dict(content["sha256"]), failures, notes)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file; the keys `store` and `notes` are absent where there are none."""
        failures, notes = (
            {str(row): " ".join(str(text).split()) for row, text in sorted(texts.items())}
            for texts in (self.failures, self.notes)
        )
        store = {} if self.store is None else {"store": self.store}
        content = {"shard": self.shard, **store, "sha256": dict(self.checksums), "failures": failures}
        return seal({**content, "notes": notes} if notes else content)
