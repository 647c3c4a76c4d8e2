"""Decode and encode files, and write their videos into an index in batches of whole ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from teachclip.data.video.parts import OpenedVideo, PartFrames, decode_stretch, open_parts
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.video_file import CHANGED, is_transient
from teachclip.data.video.workers import Failure
from teachclip.models.modeling import StudentModel
from teachclip.search.encoding import EncodedPart, PartEncoder
from teachclip.search.engines import Engine, Rows
from teachclip.search.generations import Generation
from teachclip.search.limits import Limits
from teachclip.search.scan import file_row, hashed
from teachclip.search.state import FileRow, PartRow, State, VideoRow

WRITE_ROWS, WRITE_SECONDS = 4096, 30.0
"""Videos are written when so many rows wait, or when the last write is so long ago."""


@dataclass
class _Video:
    """A video on its way: its file, what is encoded, and what cannot be."""

    id: str
    file: FileRow
    length: float
    total: int
    parts: list[EncodedPart] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class FileEncoder:
    """Looks into files that are new or changed, and writes what is in them.

    encoded, parts: videos encoded, and their parts. renamed: files that name a video which was there already.
    """

    def __init__(
        self,
        generation: Generation,
        state: State,
        engine: Callable[[], Engine],
        student: Callable[[], StudentModel],
        limits: Limits,
    ):
        self.cutting, self.state, self.limits = generation.settings.cutting, state, limits
        self.encoding = generation.settings.encoding
        self._engine, self._student = engine, student
        self._encoder: PartEncoder | None = None
        self.encoded = self.parts = 0
        self.renamed: list[tuple[FileRow, str]] = []
        self._known = state.video_ids()
        self._files: dict[str, list[FileRow]] = {}  # of the videos on their way
        self._opened: deque[tuple[FileRow, str]] = deque()
        self._waiting: list[tuple[_Video, PartFrames | None, bool]] = []
        self._ready: list[_Video] = []
        self._named: list[tuple[FileRow, str]] = []
        self._written = time.monotonic()

    def run(self, files: Sequence[FileRow], *, progress: bool) -> None:
        """Look into `files`. What is written stays, whatever happens later."""
        size = sum(file.bytes for file in files)
        with tqdm(total=size, unit="B", unit_scale=True, desc="index", disable=not progress) as self._bar:
            outcomes = self.limits.map(open_parts, self._to_decode(files), len(files))
            with closing(outcomes):
                for outcome in outcomes:
                    file, video = self._opened.popleft()
                    if isinstance(outcome, Failure):
                        self._fail(video, outcome.error)
                        self._bar.update(file.bytes)
                    else:
                        self._take(file, video, outcome)
                    self._bar.set_postfix(videos=self.encoded + len(self._ready), refresh=False)
                    self._write_if_due()
            self._encode_waiting()
            self._write()

    def _to_decode(self, files: Sequence[FileRow]) -> Iterator[tuple[Any, ...]]:
        """Yield what `open_parts` takes, of every file whose content is not known yet."""
        with closing(hashed(files)) as rows:
            for file, video, error in rows:
                if error:
                    self.state.set_broken(file, error, again=is_transient(error))
                elif video in self._known:
                    self._named.append((file, video))
                    self.renamed.append((file, video))
                elif video in self._files:
                    self._files[video].append(file)
                else:
                    self._files[video] = [file]
                    self._opened.append((file, video))
                    yield file.path, *self._reading(), self.cutting
                    continue
                self._bar.update(file.bytes)

    def _reading(self) -> tuple[FrameSampling, FrameTransform]:
        """Return which frames are read, and how they become squares."""
        processor, keyframes = self._student().processor, self.encoding.keyframes
        sampling = processor.sampling if keyframes is None else replace(processor.sampling, keyframes=keyframes)
        return sampling, processor.transform

    def _take(self, file: FileRow, video: str, opened: OpenedVideo) -> None:
        """Encode a video whose first parts are decoded; decode the others of a long one."""
        total = len(opened.first.parts) + sum(map(len, opened.rest))
        coming = _Video(video, file, opened.duration, total)
        self._push(coming, opened.first, not opened.rest)
        if not opened.rest:
            return
        items = ((opened.source, *self._reading(), parts) for parts in opened.rest)
        stretches = self.limits.map(decode_stretch, items, len(opened.rest))
        with closing(stretches):
            for number, outcome in enumerate(stretches):
                last = number == len(opened.rest) - 1
                if isinstance(outcome, Failure):
                    coming.errors += [outcome.error] * len(opened.rest[number])
                    self._push(coming, None, last, len(opened.rest[number]))
                else:
                    self._push(coming, outcome, last)

    def _push(self, video: _Video, stretch: PartFrames | None, last: bool, parts: int = 0) -> None:
        """Queue a stretch for the student, who gets several at once; None for one that cannot be decoded."""
        if stretch is not None:
            video.errors += [error for error in stretch.errors if error]
            parts = len(stretch.parts)
        self._waiting.append((video, stretch, last))
        self._bar.update(video.file.bytes * parts / video.total)
        if sum(len(stretch.frames) for _, stretch, _ in self._waiting if stretch) >= self.limits.batch_size:
            self._encode_waiting()

    def _encode_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        stretches = [stretch for _, stretch, _ in waiting if stretch is not None]
        if stretches and self._encoder is None:
            self._encoder = PartEncoder(self._student(), self.limits.batch_size, self.encoding.precision)
        encoded = iter(self._encoder.encode(stretches) if stretches and self._encoder else ())
        for video, stretch, last in waiting:
            if stretch is not None:
                video.parts += next(encoded)
            if last:
                self._finish(video)

    def _finish(self, video: _Video) -> None:
        """Accept a video of which all parts are encoded, unless its file is another one by now."""
        now = file_row(video.file.path, video.file.folder)
        if now is None or now.stamp != video.file.stamp:
            self._fail(video.id, f"{CHANGED} it was read")
        elif not video.parts:
            self._fail(video.id, video.errors[0])
        else:
            self._ready.append(video)

    def _fail(self, video: str, error: str) -> None:
        for file in self._files.pop(video):
            self.state.set_broken(file, error, again=is_transient(error))

    def _write_if_due(self) -> None:
        rows = sum(len(video.parts) for video in self._ready)
        if rows >= WRITE_ROWS or time.monotonic() - self._written >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        """Write the videos that are ready; see `state` for the order."""
        ready, self._ready = self._ready, []
        if ready:
            parts = [
                (row_id(video.id, number), video.id, part) for video in ready for number, part in _numbered(video)
            ]
            ids, videos, encoded = zip(*parts, strict=True)
            vectors = np.stack([part.vector for part in encoded])
            self.state.announce(video.id for video in ready)
            self._engine().add(Rows(list(ids), list(videos), vectors))
            names = [(file, video.id) for video in ready for file in self._files[video.id]]
            self.state.settle([_row(video) for video in ready], names)
            for video in ready:
                self._known.add(video.id)
                del self._files[video.id]
            self.encoded += len(ready)
            self.parts += sum(len({part.start for part in video.parts}) for video in ready)
        named, self._named = self._named, []
        if named:
            self.state.name_videos(named)
        self._written = time.monotonic()


def row_id(video: str, part: int) -> str:
    """Return the id of a row: the video's and the number of the part."""
    return f"{video}-{part}"


def _numbered(video: _Video) -> list[tuple[int, EncodedPart]]:
    return list(enumerate(video.parts))


def _row(video: _Video) -> VideoRow:
    """Return what the state keeps of a video."""
    error = ""
    if video.errors:
        error = f"{len(video.errors)} of {video.total} parts cannot be decoded ({video.errors[0]})"
    parts = [
        PartRow(number, part.start, part.end, part.best, part.times, part.weights)
        for number, part in _numbered(video)
    ]
    return VideoRow(video.id, video.length, error, parts)
