"""The frame store: every video decoded, resized and cropped once, kept as uint8."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.data.catalog import Video
from teachclip.data.file_facts import file_facts
from teachclip.data.frame_plans import FramePlan
from teachclip.data.transform import FrameTransform
from teachclip.data.video import decode_frames
from teachclip.data.workers import TRANSIENT, Failure, guarded_map
from teachclip.errors import DataError, StoreError
from teachclip.store import ArraySpec, ArrayStore

SHARD_BYTES, SHARD_ROWS = 1 << 28, 256
"""The most that one shard holds, and so the most that a crash loses."""


class FrameStore:
    """Decoded frames of some videos; row i is `videos[i]`."""

    def __init__(self, store: ArrayStore, videos: Sequence[Video]):
        self.store = store
        self.videos = tuple(videos)

    @classmethod
    def open(cls, path: str | Path, videos: Sequence[Video]) -> FrameStore:
        """Open a complete store to read it, trusting that the files of `videos` have not changed.

        Raises StoreError if it is incomplete or holds other videos.
        """
        store = ArrayStore.open(path)
        held = store.circumstances.get("videos", {})
        if {video.id: row for row, video in enumerate(videos)} != {key: fact["row"] for key, fact in held.items()}:
            raise StoreError(f"{path} holds {len(held)} other videos than the {len(videos)} asked for, or other rows")
        return cls(store, videos)

    @functools.cached_property
    def failures(self) -> dict[str, str]:
        """Why a video has no frames, by video id."""
        return {self.videos[row].id: reason for row, reason in sorted(self.store.failures().items())}

    def rows_of(self, video_ids: Iterable[str]) -> np.ndarray:
        """Return the rows of some videos: (videos,) int64. Raises StoreError for an id that is not here."""
        try:
            return np.array([self._rows[video_id] for video_id in video_ids], dtype=np.int64)
        except KeyError as error:
            raise StoreError(f"{self.store.path} has no frames of video {error.args[0]!r}") from error

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {video.id: row for row, video in enumerate(self.videos)}

    def read(self, rows: Sequence[int] | np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Return uint8 (videos, frames, 3, size, size) and the frame mask, bool (videos, frames).

        Frames that a short video lacks are zeros with a false mask; normalise first, then multiply by the mask.
        Raises StoreError for a video that could not be decoded.
        """
        frames = torch.from_numpy(self.store.read("frames", rows))
        counts = torch.from_numpy(self.store.read("frame_count", rows))
        return frames, torch.arange(frames.shape[1]) < counts[:, None]

    def circumstances_of(self, video_ids: Iterable[str]) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""
        facts = self.store.circumstances["videos"]
        shared = {key: value for key, value in self.store.circumstances.items() if key != "videos"}
        return {**shared, "videos": {key: {**facts[key], "row": row} for row, key in enumerate(video_ids)}}


def build_frame_store(
    videos: Sequence[Video],
    *,
    plan: FramePlan,
    size: int | FrameTransform,
    path: str | Path,
    hashes: str | Path | None = None,
    workers: int = 0,
    time_limit: float = 60.0,
    progress: bool = True,
) -> FrameStore:
    """Decode what is not decoded yet and return the store.

    `size`: pixels, for CLIP's transform, or another transform. `hashes`: file that remembers the hashes of the
    videos, to be shared by stores of the same ones; by default it is in `path`.

    `workers` processes decode (0: one per core), each file in at most `time_limit` seconds. A file that cannot be
    read, takes longer or kills its process is in `FrameStore.failures`; it never stops the run. What is finished is
    kept shard by shard, so that a second run goes on where the first one stopped; files that took too long or killed
    their process are tried again. Several runs at once are safe, but
    do the work twice.

    Raises StoreError, naming what differs, if `path` was made of other videos, changed files, another plan or size.
    """
    videos = tuple(videos)
    if not videos:
        raise DataError(f"{path}: there are no videos to decode")
    transform = FrameTransform(size) if isinstance(size, int) else size
    shape = (plan.count, 3, transform.size, transform.size)
    store = ArrayStore.open_or_create(
        path,
        circumstances={
            "content": "frames",
            "plan": asdict(plan),
            "size": transform.size,
            "transform": transform.describe(),
            "videos": file_facts(videos, Path(hashes or Path(path) / "file-hashes.json"), progress=progress),
        },
        arrays={
            "frames": ArraySpec("uint8", shape),
            "frame_count": ArraySpec("int16", ()),
        },
        rows=len(videos),
        rows_per_shard=min(SHARD_ROWS, max(1, SHARD_BYTES // math.prod(shape))),
    )
    for row, reason in store.failures().items():
        if reason.startswith(TRANSIENT):  # a busy machine or too little memory: try again
            store.discard(row // store.rows_per_shard)
    if missing := store.missing_shards():
        rows = [row for shard in missing for row in store.shard_rows(shard)]
        items = ((str(videos[row].path), plan, size) for row in rows)
        bar = tqdm(
            total=len(videos), initial=len(videos) - len(rows), desc="decode", unit="video", disable=not progress
        )
        outcomes = guarded_map(decode_file, items, workers=min(workers, len(rows)), time_limit=time_limit)
        with bar, contextlib.closing(outcomes):
            for shard in missing:
                _write_shard(store, shard, _counted(outcomes, bar))
    return FrameStore(store, videos)


def decode_file(path: str, plan: FramePlan, size: int | FrameTransform) -> np.ndarray:
    """Decode one file and make its frames square: uint8 (frames, 3, size, size). Raises VideoError."""
    transform = FrameTransform(size) if isinstance(size, int) else size
    return transform(decode_frames(path, plan)).numpy()


def _counted(outcomes: Iterable[Any], bar: Any) -> Iterator[Any]:
    """Move the progress bar by one for every outcome that is taken."""
    for outcome in outcomes:
        bar.update()
        yield outcome


def _write_shard(store: ArrayStore, shard: int, outcomes: Iterator[np.ndarray | Failure]) -> None:
    """Take the outcomes of the rows of one shard and write them."""
    rows = store.shard_rows(shard)
    arrays = {name: np.zeros((len(rows), *spec.shape), spec.dtype) for name, spec in store.arrays.items()}
    failures: dict[int, str] = {}
    for place, (row, outcome) in enumerate(zip(rows, itertools.islice(outcomes, len(rows)), strict=True)):
        if isinstance(outcome, Failure):
            failures[row] = outcome.reason
        else:
            arrays["frames"][place, : len(outcome)] = outcome
            arrays["frame_count"][place] = len(outcome)
    store.write_shard(shard, arrays, failures=failures)
