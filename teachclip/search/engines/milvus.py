"""Vectors in Milvus: a server, or Milvus Lite in a file of the index, which is for trying it out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.errors import DataError, StoreError
from teachclip.search.engines import Rows

ROWS_PER_CALL, IDS_PER_FILTER = 2000, 1000
"""Rows of one insert, and videos named in one condition, so that messages stay below a server's limit."""

MOST_RESULTS = 16_384
"""Milvus answers with no more rows than this."""


class MilvusEngine:
    """Rows in one collection of Milvus. `uri`: `http://host:19530`, or a file that ends in `.db` for Milvus Lite."""

    def __init__(self, place: Path, *, dim: int, collection: str, uri: str | None = None):
        try:
            from pymilvus import DataType, MilvusClient
        except ImportError as error:
            raise DataError(
                f"Milvus's client is not installed ({error.name}): pip install 'teachclip[milvus]'"
            ) from error
        self.dim, self.name = dim, collection
        self.place = uri or str(place.with_suffix(".db"))
        with self._explained("opened"):
            self.client = MilvusClient(self.place)
            if not self.client.has_collection(collection):
                schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", DataType.VARCHAR, max_length=32, is_primary=True)
                schema.add_field("video", DataType.VARCHAR, max_length=16)
                schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
                structure = self.client.prepare_index_params()
                structure.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
                self.client.create_collection(
                    collection, schema=schema, index_params=structure, consistency_level="Strong"
                )
            self.client.load_collection(collection)

    def add(self, rows: Rows) -> None:
        """See `Engine.add`."""
        for start in range(0, len(rows.ids), ROWS_PER_CALL):
            stop = start + ROWS_PER_CALL
            pieces = zip(rows.ids[start:stop], rows.videos[start:stop], rows.vectors[start:stop], strict=True)
            data = [{"id": row, "video": video, "vector": vector.tolist()} for row, video, vector in pieces]
            with self._explained("written"):
                self.client.insert(self.name, data)

    def delete(self, videos: Sequence[str] | None) -> None:
        """See `Engine.delete`."""
        with self._explained("deleted"):
            if videos is None:
                self.client.drop_collection(self.name)
                return
            for condition in _conditions(videos):
                self.client.delete(self.name, filter=condition)

    def search(self, vector: np.ndarray, limit: int, videos: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """See `Engine.search`; at most `MOST_RESULTS` rows."""
        found: list[tuple[str, float]] = []
        for condition in [""] if videos is None else _conditions(videos):
            with self._explained("searched"):
                (hits,) = self.client.search(
                    self.name,
                    [np.asarray(vector, np.float32).tolist()],
                    limit=min(limit, MOST_RESULTS),
                    filter=condition,
                    output_fields=["id"],
                    consistency_level="Strong",
                )
            found += [(str(hit["id"]), float(hit["distance"])) for hit in hits]
        return sorted(found, key=lambda hit: -hit[1])[:limit]

    def read(self, videos: Sequence[str] | None = None) -> Iterator[Rows]:
        """See `Engine.read`."""
        for condition in [""] if videos is None else _conditions(videos):
            with self._explained("read"):
                fields = ["id", "video", "vector"]
                batches = self.client.query_iterator(
                    self.name, batch_size=ROWS_PER_CALL, filter=condition, output_fields=fields
                )
            with contextlib.closing(batches):
                while batch := self._next(batches):
                    vectors = np.array([row["vector"] for row in batch], np.float32)
                    yield Rows([row["id"] for row in batch], [row["video"] for row in batch], vectors)

    def _next(self, batches: Any) -> Any:
        with self._explained("read"):
            return batches.next()

    def take(self, ids: Sequence[str]) -> Rows:
        """See `Engine.take`."""
        rows: list[Any] = []
        for start in range(0, len(ids), IDS_PER_FILTER):
            with self._explained("read"):
                some = list(ids[start : start + IDS_PER_FILTER])
                rows += self.client.get(self.name, some, output_fields=["id", "video", "vector"])
        vectors = np.array([row["vector"] for row in rows], np.float32).reshape(-1, self.dim)
        return Rows([row["id"] for row in rows], [row["video"] for row in rows], vectors)

    def tune(self) -> str:
        """See `Engine.tune`. The server chooses its own search structure."""
        with self._explained("written"):
            self.client.flush(self.name)
        return "Milvus's AUTOINDEX"

    def close(self) -> None:
        """See `Engine.close`."""
        self.client.close()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn errors of the client into StoreError in one line."""
        try:
            yield
        except (DataError, StoreError):
            raise
        except Exception as error:  # pymilvus raises its own types, grpc's and plain ones
            text = " ".join(str(getattr(error, "message", "") or error).split())
            raise StoreError(f"{self.place}: vectors cannot be {what}: {text[:300]}") from error


def _conditions(videos: Sequence[str]) -> list[str]:
    """Return conditions that together name all these videos, whose ids are hexadecimal."""
    names = [f'"{video}"' for video in videos if video.isalnum()]
    batches = [names[start : start + IDS_PER_FILTER] for start in range(0, len(names), IDS_PER_FILTER)]
    return [f"video in [{', '.join(batch)}]" for batch in batches]
