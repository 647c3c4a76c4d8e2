"""Frames that are decoded when they are read, by guarded worker processes that work ahead of the reader."""

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

from teachclip.data.annotations.records import Video
from teachclip.data.frames.store import with_names
from teachclip.data.video.workers import Decoded, Decoding, Failure, is_transient
from teachclip.errors import DataError

log = logging.getLogger(__name__)

AHEAD_BATCHES = 2
"""Decoded batches that wait in memory while another one is computed."""

Outcomes = Generator[Decoded | Failure, None, None]


class LiveFrames:
    """Frames of some videos without a store. Row `view * len(videos) + i` is that view of `videos[i]`.

    Every read decodes again, so a video that cannot be decoded is found when it is first read; its frames are never
    made up. What is read inside `ahead` is decoded while the process that reads computes. It needs child processes,
    which the daemonic processes of a DataLoader may not have: read it in the main process.
    """

    def __init__(self, videos: Sequence[Video], decoding: Decoding, facts: Mapping[str, Any]):
        """`facts`: what `file_facts` returns of `videos`."""
        self.videos, self.decoding, self.facts = tuple(videos), decoding, facts
        self.failures: dict[str, str] = {}
        self.partial: dict[str, str] = {}
        self._rows = {video.id: row for row, video in enumerate(self.videos)}
        self._coming: list[_Ahead] = []

    def rows_of(self, video_ids: Iterable[str], views: int = 1) -> np.ndarray:
        """Return the rows of some videos in `views` views, (views * videos,): all of view 0, then all of view 1."""
        try:
            rows = np.array([self._rows[video_id] for video_id in video_ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(f"there is no video {error.args[0]!r} to decode") from error
        return np.concatenate([view * len(self.videos) + rows for view in range(views)])

    def provenance_of(self, video_ids: Iterable[str], views: int = 1) -> dict[str, Any]:
        """Return what the frames of some videos depend on: the same as of stored ones, for they are the same."""
        facts = self.facts if views == 1 else with_names(self.facts, self.videos)
        videos = {key: {**facts[key], "row": row} for row, key in enumerate(video_ids)}
        found = {**self.decoding.provenance(jittered=views > 1), "videos": videos}
        return found if views == 1 else {**found, "views": views}

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return uint8 (rows, frames, 3, size, size) and the frame mask, bool (rows, frames).

        Raises DataError, naming the video and what to do, if one cannot be decoded.
        """
        distinct, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        found = self._coming[-1].take(distinct) if self._coming else None
        if found is None:
            with contextlib.closing(self._decode(distinct)) as outcomes:
                found = list(outcomes)
        frames = torch.zeros(len(distinct), *self.decoding.shape, dtype=torch.uint8)
        counts = torch.zeros(len(distinct), dtype=torch.int64)
        for place, (row, outcome) in enumerate(zip(distinct.tolist(), found, strict=True)):
            decoded = self._checked(row, outcome)
            frames[place, : len(decoded.frames)] = torch.from_numpy(decoded.frames)
            counts[place] = len(decoded.frames)
        mask = torch.arange(frames.shape[1]) < counts[:, None]
        return frames[places], mask[places]

    @contextlib.contextmanager
    def ahead(self, batches: Iterable[np.ndarray]) -> Iterator[None]:
        """Decode in advance what `read` is going to be asked for: these rows, batch by batch, in this order.

        Reading something else in between is allowed, and so is a context inside another one.
        """
        coming = _Ahead(batches, self._decode)
        self._coming.append(coming)
        try:
            yield
        finally:
            self._coming.remove(coming)
            coming.close()

    def verify(self) -> list[str]:
        """Return nothing: nothing is stored."""
        return []

    def _decode(self, rows: Iterable[int]) -> Outcomes:
        count = len(self.videos)
        return self.decoding.run((self.videos[row % count], int(row // count)) for row in rows)

    def _checked(self, row: int, outcome: Decoded | Failure) -> Decoded:
        """Return the frames of a row; one more try for what may be the machine's fault. Raises DataError."""
        video = self.videos[row % len(self.videos)]
        if isinstance(outcome, Failure) and is_transient(outcome.reason):
            with contextlib.closing(self._decode([row])) as outcomes:
                outcome = next(outcomes)
        if isinstance(outcome, Failure):
            hint = "raise frames.time_limit or frames.memory_limit" if is_transient(outcome.reason) else "mend it"
            where = "" if str(video.path) in outcome.reason else f"{video.path}: "
            raise DataError(
                f"video {video.id!r}: {where}{outcome.reason}; {hint}, take it out of the annotations, or use "
                "frames.store=disk, which leaves out as many unreadable videos as data.max_missing allows"
            )
        if outcome.remark and video.id not in self.partial:
            self.partial[video.id] = outcome.remark
            log.info("only a part of %s can be decoded: %s", video.id, outcome.remark)
        return outcome


class _Ahead:
    """A thread that hands the rows of coming batches to the decoders and keeps what they return in order."""

    def __init__(self, batches: Iterable[np.ndarray], decode: Callable[[Iterable[int]], Outcomes]):
        self._ready: queue.Queue[tuple[np.ndarray, list[Decoded | Failure]] | Exception | None]
        self._ready = queue.Queue(AHEAD_BATCHES)
        self._next: tuple[np.ndarray, list[Decoded | Failure]] | None = None
        self._ended = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batches, decode), daemon=True)
        self._thread.start()

    def take(self, rows: np.ndarray) -> list[Decoded | Failure] | None:
        """Return the outcomes of the next batch if it is of these (distinct, ascending) rows, otherwise None."""
        if self._next is None and not self._ended:
            found = self._ready.get()
            if isinstance(found, Exception):
                raise found
            self._next, self._ended = found, found is None
        if self._next is None or not np.array_equal(self._next[0], rows):
            return None
        outcomes, self._next = self._next[1], None
        return outcomes

    def close(self) -> None:
        """Stop decoding and wait for the worker processes to end."""
        self._stop.set()
        self._thread.join()

    def _work(self, batches: Iterable[np.ndarray], decode: Callable[[Iterable[int]], Outcomes]) -> None:
        given: deque[np.ndarray] = deque()

        def rows() -> Iterator[int]:
            for batch in batches:
                if self._stop.is_set():
                    return
                if not len(batch):
                    continue
                given.append(np.unique(batch))
                yield from given[-1].tolist()

        try:
            with contextlib.closing(decode(rows())) as outcomes:
                found: list[Decoded | Failure] = []
                for outcome in outcomes:
                    found.append(outcome)
                    if self._stop.is_set():
                        return
                    if len(found) == len(given[0]):
                        self._offer((given.popleft(), found))
                        found = []
            self._offer(None)
        except Exception as error:  # whatever it is, the reader must hear of it
            self._offer(error)

    def _offer(self, item: Any) -> None:
        """Wait for room in the queue, unless nobody reads any more."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return
