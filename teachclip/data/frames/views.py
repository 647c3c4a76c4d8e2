"""Stored frames in several views: the plain sampling and, for training, its randomly shifted versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Video
from teachclip.data.frames.store import FrameStore, build_frame_store, bytes_per_video, check_space, rows_to_write
from teachclip.data.video.workers import Decoding


class Frames(Protocol):
    """The decoded frames of some videos, in one or several views; stored, or decoded when they are read."""

    @property
    def failures(self) -> dict[str, str]:
        """Why a video has no frames, by video id."""

    @property
    def partial(self) -> dict[str, str]:
        """Why a video has not all frames of the sampling, by video id."""

    def rows_of(self, video_ids: Sequence[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1."""

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames)."""

    def provenance_of(self, video_ids: Sequence[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""

    def ahead(self, batches: Iterable[np.ndarray]) -> AbstractContextManager[None]:
        """Return a context in which `read` is asked for these rows, batch by batch: they may be read before."""

    def verify(self) -> list[str]:
        """Check what is stored. Returns one line per problem."""


class FrameViews:
    """Stored frames: view k of a video is in store k. The first holds all videos, the others those that train."""

    def __init__(self, stores: Sequence[FrameStore]):
        self.stores = tuple(stores)
        ends = np.cumsum([len(store.videos) for store in self.stores])
        self._starts = np.concatenate([[0], ends[:-1]])
        self.failures = {key: reason for store in reversed(self.stores) for key, reason in store.failures.items()}
        self.partial = {key: reason for store in reversed(self.stores) for key, reason in store.partial.items()}

    def rows_of(self, video_ids: Iterable[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1.

        Raises StoreError for an id that is not here.
        """
        ids = list(video_ids)
        parts = zip(self._starts[:views], self.stores[:views], strict=True)
        return np.concatenate([start + store.rows_of(ids) for start, store in parts])

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames).

        Raises StoreError for a video that could not be decoded.
        """
        rows = np.asarray(rows)
        views = np.searchsorted(self._starts, rows, side="right") - 1
        if (views == 0).all():
            return self.stores[0].read(rows)
        order = [np.flatnonzero(views == view) for view in range(len(self.stores))]
        parts = [
            store.read(rows[places] - start)
            for places, start, store in zip(order, self._starts, self.stores, strict=True)
        ]
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        frames, mask = (torch.cat(tensors)[back] for tensors in zip(*parts, strict=True))
        return frames, mask

    def provenance_of(self, video_ids: Iterable[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""
        if views == 1:
            return self.stores[0].provenance_of(video_ids)
        found = self.stores[1].provenance_of(video_ids)  # view 0 depends on less
        del found["view"]
        return {**found, "views": views}

    @contextmanager
    def ahead(self, batches: Iterable[np.ndarray]) -> Iterator[None]:
        """Do nothing: what is stored need not be read before it is asked for."""
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
    """Decode what is not decoded yet: view 0 of `videos` in `path`, the other views of `training` beside it.

    View k is in a folder of its own (`frames-view1`), so that more views need no more decoding of those that are
    there. Raises as `build_frame_store` does; the disk must have room for all views before the first is decoded.
    """
    wanted = [(path, videos)]
    wanted += [(path.with_name(f"{path.name}-view{view}"), training) for view in range(1, views)]
    if views > 1:
        size, shape = bytes_per_video(decoding), f"{decoding.sampling.count} frames x {decoding.transform.size}^2"
        check_space(
            path,
            f"{len(videos):,} videos and {views - 1} more views of {len(training):,} x {shape}",
            need=size * sum(rows_to_write(folder, len(rows)) for folder, rows in wanted),
            whole=size * sum(len(rows) for _, rows in wanted),
        )
    stores = [
        build_frame_store(
            rows,
            decoding,
            path=folder,
            view=view,
            hashes=hashes or path / "file-hashes.json",
            progress=progress,
        )
        for view, (folder, rows) in enumerate(wanted)
    ]
    return FrameViews(stores)
