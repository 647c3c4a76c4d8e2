"""All vectors of an index as one Parquet file, for other engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from teachclip.errors import DataError, StoreError
from teachclip.search.index import VideoIndex

VIDEOS_PER_GROUP = 2000


def export_vectors(index: VideoIndex, path: str | Path) -> int:
    """Write all rows of an index to a Parquet file, and return how many.

    Columns: id, video, path, part, start, end, best (seconds), times, weights (lists), vector (list of `dim`), model
    (the fingerprint). The metadata of the schema has the fingerprint, the student and the way of cutting, as JSON
    under the key `teachclip`. Raises DataError if pyarrow is missing, StoreError if the file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError("writing Parquet needs pyarrow: pip install 'teachclip[search]'") from error
    settings = index.settings
    about = {"fingerprint": settings.fingerprint, "model": settings.model, **vars(settings.cutting)}
    fields = [
        *((name, pa.string()) for name in ("id", "video", "path")),
        ("part", pa.int32()),
        *((name, pa.float64()) for name in ("start", "end", "best")),
        *((name, pa.list_(pa.float32())) for name in ("times", "weights")),
        ("vector", pa.list_(pa.float32(), settings.dim)),
        ("model", pa.string()),
    ]
    schema = pa.schema(fields, metadata={"teachclip": json.dumps(about)})
    target, count = Path(path), 0
    unfinished = target.with_name(f"{target.name}.unfinished")
    videos = index.videos()
    try:
        with pq.ParquetWriter(unfinished, schema) as writer:
            for start in range(0, len(videos), VIDEOS_PER_GROUP):
                some = videos[start : start + VIDEOS_PER_GROUP]
                vectors = index.vectors(video.id for video in some)
                by_video = index.parts_of([video.id for video in some])
                parts = [(video, part) for video in some for part in by_video.get(video.id, ()) if part.id in vectors]
                columns = [
                    [part.id for _, part in parts],
                    [video.id for video, _ in parts],
                    [video.path for video, _ in parts],
                    *([getattr(part, name) for _, part in parts] for name in ("number", "start", "end", "best")),
                    *([getattr(part, name) for _, part in parts] for name in ("times", "weights")),
                ]
                flat = np.concatenate([vectors[part.id] for _, part in parts]) if parts else np.empty(0, np.float32)
                arrays = [pa.array(column, type) for column, (_, type) in zip(columns, fields, strict=False)]
                arrays += [
                    pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), settings.dim),
                    pa.array([settings.fingerprint] * len(parts)),
                ]
                writer.write_table(pa.table(arrays, schema=schema))
                count += len(parts)
        unfinished.replace(target)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count
