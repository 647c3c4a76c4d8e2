"""Temporal augmentation: stored frames in several views, the frame sampling itself and randomly shifted versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Video
from teachclip.data.frames.store import (
    FrameStore,
    build_frame_store,
    bytes_per_video,
    check_space,
    rows_to_write,
    video_keys,
)
from teachclip.data.video.workers import Decoding
from teachclip.store.manifest import KEY_BYTES


class Frames(Protocol):
    """The decoded frames of some videos, in one or several views; stored, or decoded when they are read."""

    @property
    def failures(self) -> dict[str, str]:
        """The errors of videos without frames, by video id."""

    @property
    def partially_decoded(self) -> dict[str, str]:
        """The errors of videos of which only some frames could be decoded, by video id."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a video: (frames, 3, size, size)."""

    def rows_of(self, video_ids: Sequence[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1."""

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames)."""

    def provenance_of(self, video_ids: Sequence[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return what tells the content of these rows from any other: uint8 (rows, 16)."""

    def provenance(self, views: int = 1) -> dict[str, Any]:
        """Return what the frames of all videos depend on, whatever the videos are."""

    def prefetch(self, batches: Iterable[np.ndarray]) -> AbstractContextManager[None]:
        """Return a context in which `read` will be called with these rows, batch by batch; they may be prefetched."""

    def verify(self) -> list[str]:
        """Check what is stored. Returns one line per problem."""


class FrameViews:
    """Stored frames: view k of a video is in store k. Store 0 holds all videos, the others those of training."""

    def __init__(self, stores: Sequence[FrameStore]):
        self.stores = tuple(stores)
        ends = np.cumsum([store.store.rows for store in self.stores])
        self._starts = np.concatenate([[0], ends[:-1]])
        self.failures = {key: error for store in reversed(self.stores) for key, error in store.failures.items()}
        self.partially_decoded = {
            key: error for store in reversed(self.stores) for key, error in store.partially_decoded.items()
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a video: (frames, 3, size, size)."""
        return self.stores[0].shape

    def rows_of(self, video_ids: Iterable[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1.

        Raises StoreError for an unknown id.
        """
        ids = list(video_ids)
        stores = zip(self._starts[:views], self.stores[:views], strict=True)
        return np.concatenate([start + store.rows_of(ids) for start, store in stores])

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames).

        Raises StoreError for a video that could not be decoded.
        """
        rows = np.asarray(rows)
        views = np.searchsorted(self._starts, rows, side="right") - 1
        if (views == 0).all():
            return self.stores[0].read(rows)
        order = [np.flatnonzero(views == view) for view in range(len(self.stores))]
        frames_by_view = [
            store.read(rows[places] - start)
            for places, start, store in zip(order, self._starts, self.stores, strict=True)
        ]
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        frames, mask = (torch.cat(tensors)[back] for tensors in zip(*frames_by_view, strict=True))
        return frames, mask

    def provenance_of(self, video_ids: Iterable[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""
        provenance = self.stores[min(views - 1, 1)].provenance_of(video_ids)  # view 0 depends on less
        provenance.pop("view", None)
        return provenance if views == 1 else {**provenance, "views": views}

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return what tells the content of these rows from any other: uint8 (rows, 16)."""
        rows = np.asarray(rows)
        views = np.searchsorted(self._starts, rows, side="right") - 1
        keys = np.empty((len(rows), KEY_BYTES), dtype=np.uint8)
        for view, store in enumerate(self.stores):
            keys[views == view] = store.keys(rows[views == view] - self._starts[view])
        return keys

    def provenance(self, views: int = 1) -> dict[str, Any]:
        """Return what the frames of all videos depend on, whatever the videos are."""
        provenance = dict(self.stores[min(views - 1, 1)].store.provenance)
        provenance.pop("view", None)
        return provenance if views == 1 else {**provenance, "views": views}

    @contextmanager
    def prefetch(self, batches: Iterable[np.ndarray]) -> Iterator[None]:
        """Do nothing: stored frames are read fast enough on demand."""
        yield

    def verify(self) -> list[str]:
        """Check every checksum. Returns one line per problem."""
        return [problem for store in self.stores for problem in store.store.verify()]


def build_frame_views(
    videos: Sequence[Video],
    training: Sequence[Video],
    decoding: Decoding,
    *,
    path: Path,
    views: int = 1,
    hashes: Path | None = None,
    progress: bool = True,
) -> FrameViews:
    """Decode the missing frames: view 0 of `videos` in `path`, the other views of `training` beside it.

    View k has a folder of its own (`frames-view1`), so that more views later do not decode the existing ones again.
    Raises as `build_frame_store` does; all views must fit on the disk before the first one is decoded.
    """
    hashes = hashes or path / "file-hashes.json"
    folders = [(path, videos)]
    folders += [(path.with_name(f"{path.name}-view{view}"), training) for view in range(1, views)]
    if views > 1:
        size, shape = bytes_per_video(decoding), f"{decoding.sampling.count} frames x {decoding.transform.size}^2"
        facts = file_facts(videos, hashes, progress=progress, time_limit=decoding.time_limit)
        keys = [video_keys(rows, facts, view) for view, (_, rows) in enumerate(folders)]
        check_space(
            path,
            f"{len(videos):,} videos and {views - 1} more views of {len(training):,} x {shape}",
            need=size * sum(rows_to_write(folder, wanted) for (folder, _), wanted in zip(folders, keys, strict=True)),
            whole=size * sum(len(rows) for _, rows in folders),
        )
    stores = [
        build_frame_store(
            rows,
            decoding,
            path=folder,
            view=view,
            hashes=hashes,
            progress=progress,
        )
        for view, (folder, rows) in enumerate(folders)
    ]
    return FrameViews(stores)
