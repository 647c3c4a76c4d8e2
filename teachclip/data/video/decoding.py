"""Decode videos in guarded worker processes: what a frame store keeps, and what is read where there is none."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from teachclip.data.annotations.catalog import Video
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import TRANSIENT, Failure, guarded_map

OnError = Literal["skip", "use_decodable"]
"""What becomes of a damaged video: a failure, or the frames of it that can be decoded."""


class Decoded(NamedTuple):
    """The frames of a video, uint8 (frames, 3, size, size), and why some are missing ("" if none is)."""

    frames: np.ndarray
    remark: str = ""


@dataclass(frozen=True)
class Decoding:
    """How videos become frames.

    workers: processes, 0 for one per core; each file takes at most `time_limit` seconds and `memory_limit` bytes.
    """

    sampling: FrameSampling
    transform: FrameTransform
    on_error: OnError = "skip"
    workers: int = 0
    time_limit: float = 60.0
    memory_limit: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of a video: (frames, 3, size, size)."""
        return self.sampling.count, 3, self.transform.size, self.transform.size

    def provenance(self, *, jittered: bool = False) -> dict[str, Any]:
        """Return what frames depend on beside the files; only `jittered` views depend on the seed of the jitter."""
        sampling = asdict(self.sampling)
        seed = sampling.pop("augmentation_seed", 0)
        found = {
            "content": "frames",
            "sampling": sampling,
            "size": self.transform.size,
            "transform": self.transform.describe(),
        }
        return {**found, "augmentation_seed": seed} if jittered else found

    def run(self, videos: Iterable[tuple[Video, int]]) -> Generator[Decoded | Failure, None, None]:
        """Yield the frames of every (video, view), or why there are none, in order.

        Close the iterator if you leave it early.
        """
        waiting: deque[tuple[Video, int]] = deque()

        def items() -> Iterator[tuple[Any, ...]]:
            for video, view in videos:
                waiting.append((video, view))
                yield self._item(video, view, "skip")

        outcomes = self._map(items(), self.workers)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                video, view = waiting.popleft()
                yield self._second_look(outcome, video, view) if isinstance(outcome, Failure) else Decoded(outcome)

    def _second_look(self, failure: Failure, video: Video, view: int) -> Decoded | Failure:
        """Take what can be decoded of a damaged video, if that is wanted. A file that hangs or kills is let alone."""
        if self.on_error == "skip" or is_transient(failure.reason):
            return failure
        with contextlib.closing(self._map([self._item(video, view, self.on_error)], 1)) as outcomes:
            found = next(outcomes)
        return found if isinstance(found, Failure) else Decoded(found, failure.reason)

    def _item(self, video: Video, view: int, on_error: str) -> tuple[Any, ...]:
        return str(video.path), self.sampling, self.transform, video.start, video.end, on_error, view

    def _map(self, items: Iterable[tuple[Any, ...]], workers: int) -> Generator[Any, None, None]:
        limits = {"time_limit": self.time_limit, "memory_limit": self.memory_limit}
        return guarded_map(decode_file, items, workers=workers, **limits)  # type: ignore[arg-type]


def is_transient(reason: str) -> bool:
    """Whether a failure may be the machine's (busy, too little memory) and not the file's."""
    return reason.startswith(TRANSIENT)


def decode_file(
    path: str,
    sampling: FrameSampling,
    size: int | FrameTransform,
    start: float | None = None,
    end: float | None = None,
    on_error: OnError = "skip",
    view: int = 0,
) -> np.ndarray:
    """Decode one file, or its seconds `start` to `end`, and make its frames square: uint8 (frames, 3, size, size).

    `view` 0 is the sampling itself, any other the sampling with jitter. Raises VideoError.
    """
    transform = FrameTransform(size) if isinstance(size, int) else size
    return transform(decode_frames(path, sampling, start=start, end=end, on_error=on_error, view=view)).numpy()
