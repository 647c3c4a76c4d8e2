"""Vectors in LanceDB: a folder, no server."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import DataError, StoreError
from teachclip.search.engines import Rows

TABLE = "parts"

INDEXED_FROM, LARGE = 20_000, "ivf_sq"
"""Rows from which on an approximate search structure is made, and which one; below, every vector is compared."""

GRACE = timedelta(minutes=10)
"""How long files of former versions stay, for queries of other processes that are still reading them."""

STRUCTURES: dict[str, dict[str, Any]] = {
    "flat": {},
    "ivf_flat": {"kind": "IvfFlat", "nprobes": 20, "refine": 1},
    "ivf_pq": {"kind": "IvfPq", "sub_vectors": 8, "nprobes": 20, "refine": 20},
    "ivf_rq": {"kind": "IvfRq", "nprobes": 20, "refine": 20},
    "ivf_sq": {"kind": "IvfSq", "nprobes": 20, "refine": 4},
    "ivf_hnsw_sq": {"kind": "HnswSq", "partition": 200_000, "nprobes": 4, "refine": 4},
    "ivf_hnsw_pq": {"kind": "HnswPq", "sub_vectors": 8, "partition": 200_000, "nprobes": 4, "refine": 20},
}
"""Ways to search. nprobes: parts of the space that a query looks at first; refine: so many times the rows asked for
are compared by their whole vectors. sub_vectors: numbers of a vector per byte. partition: rows in a part of space."""

AT_ONCE = timedelta(0)
"""With any other interval a reader would not see what another process has written since."""

IDS_PER_FILTER = 50_000
"""Videos named in one condition of a delete or read."""


class LanceEngine:
    """Rows in one table of a LanceDB folder. `uri` replaces the folder, as LanceDB writes places."""

    def __init__(self, place: Path, *, dim: int, collection: str, uri: str | None = None):
        try:
            import lancedb  # late: it starts threads, and queries of files need it not
            import pyarrow as pa
            from lancedb.background_loop import LOOP
        except ImportError as error:
            raise DataError(f"LanceDB is not installed ({error.name}): pip install 'teachclip[search]'") from error
        self.dim, self.place = dim, uri or str(place)
        self._made: str | None = None
        self._run = LOOP.run
        self._asked: Any = None
        with self._explained("opened"):
            self.database = database = lancedb.connect(self.place, read_consistency_interval=AT_ONCE)
            vector = pa.list_(pa.float32(), dim)
            fields = [pa.field("id", pa.string()), pa.field("video", pa.string()), pa.field("vector", vector)]
            self.schema = pa.schema(fields)
            try:
                self.table = database.open_table(TABLE)
            except (ValueError, FileNotFoundError):
                self.table = database.create_table(TABLE, schema=self.schema, exist_ok=True)

    def add(self, rows: Rows) -> None:
        """See `Engine.add`: one append is one version of the table, so its rows appear at once."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(rows.vectors, np.float32).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.dim)
        with self._explained("written"):
            self.table.add(pa.table([pa.array(rows.ids), pa.array(rows.videos), vectors], schema=self.schema))

    def delete(self, videos: Sequence[str] | None) -> None:
        """See `Engine.delete`."""
        if videos is None:
            with self._explained("deleted"):
                self.database.drop_table(TABLE, ignore_missing=True)
            return
        for start in range(0, len(videos), IDS_PER_FILTER):
            with self._explained("written"):
                self.table.delete(_among(videos[start : start + IDS_PER_FILTER]))

    def search(self, vector: np.ndarray, limit: int, videos: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """See `Engine.search`."""
        if videos is not None and not videos:
            return []
        with self._explained("searched"):
            found = self._run(self._nearest(np.asarray(vector, np.float32), limit, videos))
        scores = 1 - found["_distance"].to_numpy()
        return list(zip(found["id"].to_pylist(), scores.tolist(), strict=True))

    async def _nearest(self, vector: np.ndarray, limit: int, videos: Sequence[str] | None) -> Any:
        """Return a table of `id` and `_distance`.

        LanceDB's other interface waits for its thread six times per query, three of them to read the schema; this one
        once, which is a third of the time of a small search.
        """
        if self._asked is None:
            import lancedb

            database = await lancedb.connect_async(self.place, read_consistency_interval=AT_ONCE)
            self._asked = await database.open_table(TABLE)
        query = self._asked.query().nearest_to(vector).column("vector").distance_type("cosine")
        query = query.limit(limit).select(["id", "_distance"])
        # Asking for the structure takes as long as a small search; a table that compares all vectors ignores it.
        if how := STRUCTURES[self._made or LARGE]:
            # no limit above: a filter, or a large limit, may need rows of more parts of the space
            query = query.minimum_nprobes(how["nprobes"]).maximum_nprobes(0).refine_factor(how["refine"])
        if videos is not None:
            query = query.where(_among(videos))
        return await query.to_arrow()

    def read(self, videos: Sequence[str] | None = None) -> Iterator[Rows]:
        """See `Engine.read`."""
        starts = [None] if videos is None else range(0, len(videos), IDS_PER_FILTER)
        for start in starts:
            with self._explained("read"):
                query = self.table.search().limit(max(1, self.table.count_rows()))
                if videos is not None and start is not None:
                    query = query.where(_among(videos[start : start + IDS_PER_FILTER]))
                batches = query.to_batches(8192)
            for batch in batches:
                vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
                yield Rows(batch["id"].to_pylist(), batch["video"].to_pylist(), vectors)

    def tune(self) -> str:
        """See `Engine.tune`: many small appends become few files."""
        with self._explained("written"):
            rows = self.table.count_rows()
            wanted = LARGE if rows >= INDEXED_FROM else "flat"
            if wanted != self.find_structure():
                self.restructure(wanted)
            self.table.optimize(cleanup_older_than=GRACE)
        return "exact" if wanted == "flat" else f"approximate ({wanted})"

    def restructure(self, name: str) -> None:
        """Make a search structure, one of `STRUCTURES`, and drop the former one."""
        how = STRUCTURES[name]
        for old in self.table.list_indices():
            self.table.drop_index(old.name)
        self._made = name
        if not how:
            return
        import lancedb.index as kinds

        rows = self.table.count_rows()
        options: dict[str, Any] = {"num_partitions": max(1, round(rows / how.get("partition", rows**0.5)))}
        if "sub_vectors" in how:
            options["num_sub_vectors"] = self.dim // how["sub_vectors"]
        config = getattr(kinds, how["kind"])(distance_type="cosine", max_iterations=20, sample_rate=64, **options)
        self.table.create_index("vector", config=config, name=name)

    def find_structure(self) -> str:
        """Return the name of the search structure that there is; another process may have made one."""
        if self._made is None or self._made == "flat":
            names = [index.name for index in self.table.list_indices()]
            self._made = next((name for name in names if name in STRUCTURES), "flat")
        return self._made

    def close(self) -> None:
        """See `Engine.close`."""
        self.table = self.database = self._asked = None

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn errors of LanceDB, which come in many types and lines, into StoreError in one line."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            text = " ".join(str(error).split())
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
                raise StoreError(f"{self.place}: the disk is full; free some space and run again") from error
            raise StoreError(f"{self.place}: vectors cannot be {what}: {text[:300]}") from error


def _among(videos: Sequence[Any]) -> str:
    """Return the condition that a row belongs to one of these videos, whose ids are hexadecimal."""
    names = ", ".join(f"'{video}'" for video in videos if video.isalnum())
    return f"video IN ({names})" if names else "false"
