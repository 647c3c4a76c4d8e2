"""From a video file to a few frames: which ones (frame plans) and how (decord, then PyAV).

This is the only module that imports a decoder.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachclip.errors import DataError, VideoError


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a video are looked at.

    `per_second` (CLIP4Clip, arXiv 2104.08860, and the models built on its code) reads `rate` frames of every whole
    second, the first one at its start. If these are more than `count`, it keeps `count` of them: evenly spread, the
    first ones (`head`) or the last ones (`tail`). A short video gives fewer frames.

    `intervals` (X-Pool, arXiv 2203.15086, its uniform sampling) cuts the video into `count` equal intervals and takes
    the middle frame of each. It always gives `count` frames: a shorter video repeats its last one.
    """

    kind: str
    count: int
    rate: int = 1
    keep: str = "even"

    def __post_init__(self) -> None:
        if self.kind not in ("per_second", "intervals"):
            raise DataError(f"frame plan: kind is {self.kind!r}; allowed: per_second, intervals")
        if self.keep not in ("even", "head", "tail"):
            raise DataError(f"frame plan: keep is {self.keep!r}; allowed: even, head, tail")
        if self.count < 1 or self.rate < 1:
            raise DataError(f"frame plan: count is {self.count} and rate is {self.rate}; both must be at least 1")


def plan_indices(
    plan: FramePlan, frame_count: int, fps: float, *, start: int | None = None, end: int | None = None
) -> list[int]:
    """Return the frame numbers that `plan` takes of a video, ascending, at least one and at most `plan.count`.

    `frame_count` and `fps` (frames per second) are the container's. `start` and `end` (seconds, whole) limit a
    `per_second` plan to a part of the video, both ends included. Raises VideoError if the plan finds no frame.
    """
    if frame_count < 1:
        raise VideoError("it has no frames")
    if plan.kind == "intervals":
        return _middles(frame_count, plan.count)
    # As published, the rate is cut to a whole number: 29.97 frames per second count as 29.
    whole = int(fps) if math.isfinite(fps) else 0
    if whole < plan.rate:
        raise VideoError(f"it has {fps:g} frames per second; the frame plan reads {plan.rate} per second")
    seconds = _seconds(math.ceil(frame_count / whole), start, end)
    within = range(0, whole, whole // plan.rate)[: plan.rate]
    indices = [second * whole + offset for second in seconds for offset in within]
    indices = [index for index in indices if index < frame_count]
    if not indices:
        raise VideoError(f"it has no frame between second {start} and {end}")
    if len(indices) <= plan.count:
        return indices
    if plan.keep == "head":
        return indices[: plan.count]
    if plan.keep == "tail":
        return indices[-plan.count :]
    return [indices[place] for place in np.linspace(0, len(indices) - 1, plan.count, dtype=int)]


def _middles(frame_count: int, count: int) -> list[int]:
    """Return the middle frame of each of `count` intervals, the last one repeated if there are too few frames."""
    bounds = np.linspace(0, frame_count, min(count, frame_count) + 1).astype(int).tolist()
    middles = [(left + right - 1) // 2 for left, right in itertools.pairwise(bounds)]
    return middles + middles[-1:] * (count - len(middles))


def _seconds(duration: int, start: int | None, end: int | None) -> range:
    """Return the seconds to read: an empty part is made one second long, a reversed one is turned round."""
    if start is None or end is None:
        return range(duration + 1)
    start, end = min(start, end), max(start, end)
    if start == end:
        end += 1
    return range(start, min(end, duration) + 1)


def decode_frames(
    path: str | os.PathLike[str],
    plan: FramePlan,
    *,
    start: float | None = None,
    end: float | None = None,
    on_error: str = "skip",
    view: int = 0,
) -> Tensor:
    """Decode the frames that `plan` takes of the file `path`.

    Returns uint8 RGB (frames, 3, height, width), turned upright if the file says so; frames is at most `plan.count`.
    decord is asked first, PyAV if it is not installed or fails. Both count frames and read the rate in the same way.
    Raises VideoError with the path and the reason of every decoder; never returns a made-up frame.
    """
    if (start, end, on_error, view) != (None, None, "skip", 0):
        raise VideoError(f"{path}: parts of files, views and damaged files cannot be decoded")
    file = Path(os.path.abspath(path))
    if not file.is_file():
        raise VideoError(f"{path}: {'is a folder, not a video file' if file.is_dir() else 'does not exist'}")
    if file.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")
    reasons = []
    for name, decode in _decoders():
        try:
            return torch.from_numpy(decode(str(file), plan)).permute(0, 3, 1, 2)
        # Decoders raise their own classes: decord.DECORDError and RuntimeError, av.FFmpegError (partly a ValueError).
        except (_decord_error(), VideoError, RuntimeError, ValueError, OSError, IndexError) as error:
            reasons.append(f"{name}: {_reason(error)}")
    raise VideoError(f"{path}: cannot be decoded ({'; '.join(reasons)})")


def _decoders() -> list[tuple[str, Callable[[str, FramePlan], np.ndarray]]]:
    """Return the decoders that this machine has, the preferred one first."""
    pyav = ("PyAV", _decode_pyav)
    return [pyav] if _decord() is None else [("decord", _decode_decord), pyav]


@functools.cache
def _decord() -> Any | None:
    """Return the decord module, or None: it has no wheels for macOS on arm64 and Linux on aarch64."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_error() -> type[Exception]:
    """Return decord's exception class, which is no RuntimeError."""
    decord = _decord()
    return VideoError if decord is None else decord.DECORDError


def _reason(error: Exception) -> str:
    """Return the first line of a decoder's message without its time and source line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[0]).strip()[:200]


def _decode_decord(path: str, plan: FramePlan) -> np.ndarray:
    """Return uint8 (frames, height, width, 3). Raises VideoError where decord's seeking cannot be trusted.

    Processes, not threads, share the cores: one thread per reader.
    """
    reader = _decord().VideoReader(path, num_threads=1)  # type: ignore[union-attr]
    facts = _read_packets(path)
    if not facts.exact_seeks or len(reader) != facts.frame_count:
        raise VideoError(f"seeking is not exact in it ({len(reader)} frames, {facts.frame_count} packets)")
    indices = plan_indices(plan, facts.frame_count, facts.fps)
    distinct, places = np.unique(indices, return_inverse=True)
    return reader.get_batch(distinct.tolist()).asnumpy()[places]


def _decode_pyav(path: str, plan: FramePlan) -> np.ndarray:
    """Return uint8 (frames, height, width, 3), decoded from the start up to the last frame of the plan."""
    import av

    facts = _read_packets(path)
    indices = plan_indices(plan, facts.frame_count, facts.fps)
    frames: dict[int, np.ndarray] = {}
    wanted = set(indices)
    with av.open(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        number = 0
        try:
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    frames[number] = _upright(frame)
                if number >= indices[-1]:
                    break
        except av.FFmpegError as error:
            where = f"after frame {number} of {facts.frame_count}"
            raise VideoError(f"decoding stops {where}: {error.strerror}") from error
    if len(frames) < len(wanted):
        missing = min(wanted - frames.keys())
        raise VideoError(f"frame {missing} of {facts.frame_count} is missing; is the file cut off?")
    return np.stack([frames[index] for index in indices])


class _Packets(NamedTuple):
    """What the packets of a video stream say without decoding."""

    frame_count: int
    fps: float
    exact_seeks: bool


def _read_packets(path: str) -> _Packets:
    """Count the frames that are shown, and see whether decord's seeking can be trusted.

    decord seeks to the keyframe before a frame and counts on from there. Where frames that are shown before a
    keyframe are stored after it (open groups of pictures, usual in HEVC), where packets have no time of their own
    (AVI, MPEG-TS) or are not shown (edit lists), it returns other frames than asked for, without an error.
    """
    import av

    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError("it has no video stream")
        counted = hidden = 0
        exact = container.format.name.startswith(("mov", "matroska"))
        latest, keyframe = -math.inf, math.inf
        try:
            for packet in container.demux(stream):
                if packet.size:
                    counted += 1
                    hidden += packet.is_discard
                    time = -math.inf if packet.pts is None else packet.pts
                    if packet.is_keyframe:
                        keyframe = time if time > latest else math.inf
                    exact = exact and time >= keyframe
                    latest = max(latest, time)
        except av.FFmpegError:
            if not stream.frames:
                raise
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        return _Packets(max(counted - hidden, _promised(stream, hidden, fps)), fps, exact and not hidden)


def _promised(stream: Any, hidden: int, fps: float) -> int:
    """Return the number of frames that the header promises, 0 if it says nothing.

    Where it is more than the file holds, the file is cut off; with this number the plan asks for a frame that is not
    there, and the loss is noticed. If some frames are hidden only the duration counts, with a second of tolerance.
    """
    if not hidden:
        return int(stream.frames)
    return int((float((stream.duration or 0) * (stream.time_base or 0)) - 1) * fps)


def _upright(frame: Any) -> np.ndarray:
    """Return uint8 (height, width, 3), turned as the container says (films of telephones), as decord does."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
