"""Decode the frames of a video file: with decord where its frames are exact, with PyAV everywhere else.

Only this module and `probe`, which reads packets, import a decoder.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import av
import numpy as np
import torch
from torch import Tensor

from teachclip.data.video.probe import REORDERED, VideoFacts, check_video_file, read_facts, video_stream
from teachclip.data.video.sampling import FrameSampling, augmentation_generator, choose_frames
from teachclip.data.video.timeline import Span, find_span
from teachclip.errors import VideoError

_LOCK = threading.Lock()

STRICT = {"err_detect": "explode"}
"""FFmpeg options: report damaged data instead of concealing it with parts of other frames."""


def decode_frames(
    path: str | os.PathLike[str],
    sampling: FrameSampling,
    *,
    start: float | None = None,
    end: float | None = None,
    on_error: Literal["skip", "use_decodable"] = "skip",
    view: int = 0,
) -> Tensor:
    """Decode the frames that `sampling` takes of the file `path`.

    Returns uint8 RGB (frames, 3, height, width) as a player shows them: rotated, with square pixels, deinterlaced;
    frames is at most `sampling.count`. `start` and `end` are seconds. `view` 0 is the sampling itself, views above 0
    are augmented (see `choose_frames`).

    decord is tried first where it gives the same frames as PyAV; where it does not, fails or is not installed, PyAV
    is used. `skip` raises an error if a frame of the sampling cannot be decoded. `use_decodable` then treats the
    file as the shorter video of its decodable frames; frames that depend on damaged ones do not count as decodable.
    Raises VideoError with the path and the error of every decoder; never returns a made-up frame.
    """
    file = check_video_file(path)
    facts = read_facts(file)
    generator = functools.partial(augmentation_generator, sampling, view, file.name, start)
    try:
        span = find_span(facts.timeline, start, end)
        indices = choose_frames(sampling, facts.timeline, span, generator())
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    distinct, places = np.unique(indices, return_inverse=True)
    errors = []
    for name, decode in (("decord", _decode_decord), ("PyAV", _decode_pyav)):
        try:
            return _as_tensor(decode(str(file), distinct.tolist(), facts), places)
        # Decoders raise their own classes: decord.DECORDError and RuntimeError, av.FFmpegError (partly a ValueError).
        except (_decord_error(), VideoError, RuntimeError, ValueError, OSError, IndexError) as error:
            errors.append(f"{name}: {_first_line(error)}")
    if on_error == "use_decodable":
        try:
            return _decode_decodable(str(file), sampling, facts, span, generator())
        except (VideoError, RuntimeError, ValueError, OSError) as error:
            errors.append(f"the decodable frames: {_first_line(error)}")
    raise VideoError(f"{path}: cannot be decoded ({'; '.join(errors)})")


def _decode_decodable(
    path: str, sampling: FrameSampling, facts: VideoFacts, span: Span, generator: np.random.Generator | None
) -> Tensor:
    """Decode the frames that `sampling` takes of the shorter video of the decodable frames in `span`."""
    ordinals, numbers = _decodable(path, facts)
    inside = (numbers >= span.first) & (numbers < span.stop)
    shorter = facts.timeline.without_gaps(numbers[inside])
    indices = choose_frames(sampling, shorter, find_span(shorter, None, None), generator)
    distinct, places = np.unique(ordinals[inside][indices], return_inverse=True)
    return _as_tensor(_take(_decoded_frames(path, facts, strict=False), distinct.tolist(), facts), places)


def _as_tensor(distinct: np.ndarray, places: np.ndarray) -> Tensor:
    """Return (frames, 3, height, width) from distinct frames (n, height, width, 3) and the index of each frame."""
    return torch.from_numpy(distinct[places] if len(places) > len(distinct) else distinct).permute(0, 3, 1, 2)


@functools.cache
def load_decord() -> Any | None:
    """Return decord, set to print errors only, or None: it has no wheels for macOS on arm64 and Linux on aarch64."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.ERROR)
    return decord


def _decord_error() -> type[Exception]:
    """Return decord's exception class, which is not a RuntimeError."""
    decord = load_decord()
    return VideoError if decord is None else decord.DECORDError


def _first_line(error: Exception) -> str:
    """Return the first line of a decoder's message without its time stamp and source line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[0]).strip()[:200]


def _decode_decord(path: str, numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Decode frames by number, ascending and distinct: uint8 (frames, height, width, 3).

    Raises VideoError where decord is not exact. decord conceals damage with parts of other frames and only prints a
    message. One thread per reader: parallelism comes from processes.
    """
    decord = load_decord()
    if decord is None:
        raise VideoError("is not installed")
    if facts.decoder_reason:
        raise VideoError(facts.decoder_reason)
    with captured_stderr() as printed:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != facts.frames:
            raise VideoError(f"seeking is not exact in it ({len(reader)} frames, {facts.frames} packets)")
        frames = reader.get_batch(numbers).asnumpy()
        if message := printed().strip():
            raise VideoError(f"reports damage: {message.splitlines()[0]}")
    return frames


def _decode_pyav(path: str, numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Decode frames by number, from the start up to the last one: uint8 (frames, height, width, 3).

    Raises VideoError if one of them cannot be decoded.
    """
    total = len(facts.timeline.times)
    if facts.truncated and facts.frames == total:
        raise VideoError(f"the file is truncated or damaged; how much is missing is unknown ({total} frames)")
    if facts.truncated and numbers[-1] >= facts.frames - REORDERED:
        raise VideoError(f"frame {numbers[-1]} of {total} is missing; the file is truncated")
    return _take(_decoded_frames(path, facts, strict=True), numbers, facts)


def _take(frames: Iterable[Any], numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Return the frames of some numbers as uint8 (frames, height, width, 3)."""
    wanted, taken = set(numbers), []
    for number, frame in enumerate(frames):
        if number in wanted:
            taken.append(_as_shown(frame, facts))
        if number >= numbers[-1]:
            break
    if len(taken) < len(numbers):
        missing = numbers[len(taken)]
        raise VideoError(f"frame {missing} of {len(facts.timeline.times)} is missing")
    return np.stack(taken)


def _decodable(path: str, facts: VideoFacts) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each decodable frame among them and its number in the video: int64 (frames,) both."""
    moments = [frame.time for frame in _decoded_frames(path, facts, strict=False)]
    if facts.first_time is None or None in moments:
        return np.arange(len(moments)), np.arange(len(moments))
    numbers, places = np.unique(facts.timeline.shown_at(np.array(moments) - facts.first_time), return_index=True)
    return places, numbers.astype(np.int64)


def _decoded_frames(path: str, facts: VideoFacts, *, strict: bool) -> Iterator[Any]:
    """Yield the frames of a file in the order they are shown.

    `strict` raises VideoError at the first damage. Otherwise the frames from there to the next keyframe are skipped,
    because they depend on damaged ones.
    """
    try:
        with av.open(path) as container:
            stream = video_stream(container)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = STRICT
            frames = _undamaged(container, stream, facts, strict)
            yield from _deinterlaced(frames, stream) if facts.interlaced else frames
    except av.FFmpegError as error:
        raise VideoError(str(error.strerror)) from error


def _undamaged(container: Any, stream: Any, facts: VideoFacts, strict: bool) -> Iterator[Any]:
    """Yield decoded frames; see `_decoded_frames`."""
    number = 0
    whole: bool | None = None
    resume: float | None = -math.inf
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            if whole is None:
                whole = bool(packet.is_keyframe)  # a stream may begin inside a group of pictures
                if strict and not whole:
                    raise VideoError("the stream does not start with a keyframe")
            if packet.is_keyframe and resume is None:
                # frames come out later than packets go in: the next keyframe to come out need not be this one
                resume = -math.inf if packet.pts is None else packet.pts
            if packet.is_corrupt:
                raise av.InvalidDataError(0, "a packet is truncated")
            frames = packet.decode()
        except (StopIteration, av.EOFError):
            return
        except av.FFmpegError as error:
            if strict:
                where = f"after frame {max(number - 1, 0)} of {len(facts.timeline.times)}"
                raise VideoError(f"decoding stops {where}: {error.strerror}") from error
            whole, resume = False, None
            continue
        for frame in frames:
            whole = whole or (frame.key_frame and resume is not None and (frame.pts or 0) >= resume)
            if frame.is_corrupt:  # FFmpeg concealed an error in it
                whole, resume = False, None
            if strict and (frame.is_corrupt or facts.is_late(frame.time, number)):
                raise VideoError(f"frame {number} of {len(facts.timeline.times)} cannot be decoded")
            if whole:
                yield frame
            number += 1


def _deinterlaced(frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """Deinterlace the frames that are marked as interlaced, one frame for each (FFmpeg's yadif)."""
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(template=stream), graph.add("yadif", "deint=interlaced"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    for frame in itertools.chain(frames, [None]):  # None flushes the filter
        graph.vpush(frame)
        while True:
            try:
                yield graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                break


def _as_shown(frame: Any, facts: VideoFacts) -> np.ndarray:
    """Return uint8 (height, width, 3) with square pixels, rotated as the container says (videos of phones)."""
    pixels = frame.to_ndarray(format="rgb24", width=facts.shown_width, height=facts.shown_height)
    return np.rot90(pixels, k=round(frame.rotation / 90))


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture what C libraries print to the standard error of this process; the yielded function returns it.

    The stream is the process's, not Python's, so one thread at a time can capture it, and what other threads print
    meanwhile is captured as well.
    """
    with _LOCK, tempfile.TemporaryFile() as file:
        descriptor = file.fileno()
        before = os.dup(2)
        os.dup2(descriptor, 2)
        try:
            yield lambda: os.pread(descriptor, 4096, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)
