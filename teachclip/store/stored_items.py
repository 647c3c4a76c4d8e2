"""What some items have in a store that may hold more: rows, and columns, are numbered as the items are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from teachclip.store.array_store import ArraySpec, ArrayStore


@dataclass(frozen=True)
class StoredItems:
    """A part of a store: item i is row `item_rows[i]`. Reads as a store of these items alone.

    `columns`: by the name of an array, which of the columns of its rows count, in this order; all where it has none.
    """

    store: ArrayStore
    item_rows: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, store: ArrayStore, keys: np.ndarray, columns: Mapping[str, np.ndarray] | None = None) -> StoredItems:
        """Return the items with these keys, uint8 (items, 16), all of which the store must hold."""
        return cls(store, store.rows_of(keys), dict(columns or {}))

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self.store.path

    @property
    def rows(self) -> int:
        """How many items there are."""
        return len(self.item_rows)

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The type and shape of one item's row, by the name of the array."""
        specs = dict(self.store.arrays)
        for name, columns in self.columns.items():
            specs[name] = ArraySpec(specs[name].dtype, (len(columns), *specs[name].shape[1:]))
        return specs

    @property
    def nbytes(self) -> int:
        """How many bytes all arrays of these items take."""
        specs = self.arrays.values()
        return self.rows * sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape) for spec in specs)

    def read(
        self, name: str, items: slice | Sequence[int] | np.ndarray, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the rows of some items, (items, ...), in their order, as `ArrayStore.read` does."""
        if (known := self.columns.get(name)) is not None:
            columns = known if columns is None else known[columns]
        return self.store.read(name, self.item_rows[items], columns)

    def verify(self) -> list[str]:
        """Check the whole store. Returns one line per problem."""
        return self.store.verify()
