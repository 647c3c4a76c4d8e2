"""Frames that are decoded when they are read, by guarded worker processes that prefetch the next batches."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.files import file_stamp
from teachclip.data.annotations.records import Video
from teachclip.data.frames.store import video_keys, with_names
from teachclip.data.video.video_file import is_transient
from teachclip.data.video.workers import Decoded, Decoding, Failure
from teachclip.errors import DataError

log = logging.getLogger(__name__)

PREFETCHED_BATCHES = 2
"""Decoded batches that wait in memory while the reader computes."""

Outcomes = Generator[Decoded | Failure, None, None]


class LiveFrames:
    """Frames of some videos without a store. Row `view * len(videos) + i` is that view of `videos[i]`.

    Every read decodes again, so a video that cannot be decoded raises an error when it is first read; frames are
    never made up. Reads inside `prefetch` are decoded while the reading process computes. Decoding starts child
    processes, which the daemonic workers of a DataLoader may not: read in the main process.
    """

    def __init__(self, videos: Sequence[Video], decoding: Decoding, facts: Mapping[str, Any]):
        """`facts`: as `file_facts` returns them for `videos`."""
        self.videos, self.decoding, self.facts = tuple(videos), decoding, facts
        self.failures: dict[str, str] = {}
        self.partially_decoded: dict[str, str] = {}
        self._rows = {video.id: row for row, video in enumerate(self.videos)}
        self._stamps = {video.path: file_stamp(video.path) for video in self.videos}
        self._prefetchers: list[_Prefetcher] = []

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a video: (frames, 3, size, size)."""
        return self.decoding.shape

    def rows_of(self, video_ids: Iterable[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1."""
        try:
            rows = np.array([self._rows[video_id] for video_id in video_ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"there is no video {error.args[0]!r} to decode") from error
        return np.concatenate([view * len(self.videos) + rows for view in range(views)])

    def provenance_of(self, video_ids: Iterable[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on: the same as for stored frames, which are equal."""
        facts = self.facts if views == 1 else with_names(self.facts, self.videos)
        videos = {key: {**facts[key], "row": row} for row, key in enumerate(video_ids)}
        provenance = {**self.decoding.provenance(augmented=views > 1), "videos": videos}
        return provenance if views == 1 else {**provenance, "views": views}

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return what tells the content of these rows from any other: uint8 (rows, 16), as of stored frames."""
        views, videos = np.divmod(np.asarray(rows), len(self.videos))
        keys = [video_keys(self.videos, self.facts, view) for view in range(int(views.max(initial=0)) + 1)]
        return np.stack(keys)[views, videos]

    def provenance(self, views: int = 1) -> dict[str, Any]:
        """Return what the frames of all videos depend on, whatever the videos are: the same as for stored frames."""
        provenance = self.decoding.provenance(augmented=views > 1)
        return provenance if views == 1 else {**provenance, "views": views}

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames).

        Raises DataError if a video cannot be decoded, with its id, the error and what to do.
        """
        distinct, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        outcomes = self._prefetchers[-1].take(distinct) if self._prefetchers else None
        if outcomes is None:
            with contextlib.closing(self._decode(distinct)) as decoding:
                outcomes = list(decoding)
        frames = torch.zeros(len(distinct), *self.decoding.shape, dtype=torch.uint8)
        counts = torch.zeros(len(distinct), dtype=torch.int64)
        for place, (row, outcome) in enumerate(zip(distinct.tolist(), outcomes, strict=True)):
            decoded = self._checked(row, outcome)
            frames[place, : len(decoded.frames)] = torch.from_numpy(decoded.frames)
            counts[place] = len(decoded.frames)
        mask = torch.arange(frames.shape[1]) < counts[:, None]
        return frames[places], mask[places]

    @contextlib.contextmanager
    def prefetch(self, batches: Iterable[np.ndarray]) -> Iterator[None]:
        """Decode in advance the rows that `read` will be called with, batch by batch, in this order.

        Reading other rows in between is allowed, and so is a context inside another one.
        """
        prefetcher = _Prefetcher(batches, self._decode)
        self._prefetchers.append(prefetcher)
        try:
            yield
        finally:
            self._prefetchers.remove(prefetcher)
            prefetcher.close()

    def verify(self) -> list[str]:
        """Return nothing: nothing is stored."""
        return []

    def _decode(self, rows: Iterable[int]) -> Outcomes:
        count = len(self.videos)
        return self.decoding.run((self.videos[row % count], int(row // count)) for row in rows)

    def _checked(self, row: int, outcome: Decoded | Failure) -> Decoded:
        """Return the frames of a row, after one retry of a transient failure. Raises DataError."""
        video = self.videos[row % len(self.videos)]
        if isinstance(outcome, Failure) and is_transient(outcome.error):
            with contextlib.closing(self._decode([row])) as outcomes:
                outcome = next(outcomes)
        if file_stamp(video.path) != self._stamps[video.path]:
            raise DataError(
                f"video {video.id!r}: {video.path} changed since this run began; restore it, or start anew"
            )
        if isinstance(outcome, Failure):
            transient = is_transient(outcome.error)
            hint = "raise frames.time_limit or frames.memory_limit" if transient else "fix the file"
            where = "" if str(video.path) in outcome.error else f"{video.path}: "
            raise DataError(
                f"video {video.id!r}: {where}{outcome.error}; {hint}, remove it from the annotations, or use "
                "frames.store=disk, which excludes as many unreadable videos as data.max_missing allows"
            )
        if outcome.error and video.id not in self.partially_decoded:
            self.partially_decoded[video.id] = outcome.error
            log.info("%s is partially decoded: %s", video.id, outcome.error)
        return outcome


class _Prefetcher:
    """A thread that passes the rows of the next batches to the decoders and keeps their outcomes in order."""

    def __init__(self, batches: Iterable[np.ndarray], decode: Callable[[Iterable[int]], Outcomes]):
        self._ready: queue.Queue[tuple[np.ndarray, list[Decoded | Failure]] | Exception | None]
        self._ready = queue.Queue(PREFETCHED_BATCHES)
        self._next: tuple[np.ndarray, list[Decoded | Failure]] | None = None
        self._ended = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batches, decode), daemon=True)
        self._thread.start()

    def take(self, rows: np.ndarray) -> list[Decoded | Failure] | None:
        """Return the outcomes of the next batch if it has exactly these (distinct, ascending) rows, else None."""
        if self._next is None and not self._ended:
            batch = self._ready.get()
            if isinstance(batch, Exception):
                raise batch
            self._next, self._ended = batch, batch is None
        if self._next is None or not np.array_equal(self._next[0], rows):
            return None
        outcomes, self._next = self._next[1], None
        return outcomes

    def close(self) -> None:
        """Stop decoding and wait until the worker processes have ended."""
        self._stop.set()
        self._thread.join()

    def _work(self, batches: Iterable[np.ndarray], decode: Callable[[Iterable[int]], Outcomes]) -> None:
        submitted: deque[np.ndarray] = deque()

        def rows() -> Iterator[int]:
            for batch in batches:
                if self._stop.is_set():
                    return
                if not len(batch):
                    continue
                submitted.append(np.unique(batch))
                yield from submitted[-1].tolist()

        try:
            with contextlib.closing(decode(rows())) as decoding:
                outcomes: list[Decoded | Failure] = []
                for outcome in decoding:
                    outcomes.append(outcome)
                    if self._stop.is_set():
                        return
                    if len(outcomes) == len(submitted[0]):
                        self._offer((submitted.popleft(), outcomes))
                        outcomes = []
            self._offer(None)
        except Exception as error:  # raised again where the reader waits
            self._offer(error)

    def _offer(self, item: Any) -> None:
        """Wait for room in the queue, unless the reader has stopped."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return
