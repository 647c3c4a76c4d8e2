"""From a video file to the frames of a sampling: decord where it can be trusted, PyAV everywhere else.

With `probe`, which walks over packets, the only module that imports a decoder.
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

import numpy as np
import torch
from torch import Tensor

from teachclip.data.video.probe import REORDERED, VideoFacts, check_video_file, read_facts, video_stream
from teachclip.data.video.sampling import FrameSampling, choose_frames, jitter
from teachclip.data.video.timeline import Part, find_part
from teachclip.errors import VideoError

_LOCK = threading.Lock()

STRICT = {"err_detect": "explode"}
"""FFmpeg options: report damaged data instead of painting over it with parts of other frames."""


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

    Returns uint8 RGB (frames, 3, height, width) as a player shows them: turned upright, with square pixels, half
    pictures joined; frames is at most `sampling.count`. `start` and `end` are seconds. `view` 0 is the sampling
    itself, the others are jittered (see `choose_frames`).

    decord is asked first where it gives the same pictures as PyAV; where it cannot, fails or is not installed, PyAV
    is. `skip` raises where a frame of the sampling is lost. `use_decodable` then takes the file for the shorter video
    that its decodable frames make up; frames that build on lost ones do not count as decodable.
    Raises VideoError with the path and the reason of every decoder; never returns a made-up frame.
    """
    file = check_video_file(path)
    facts = read_facts(file)
    draw = functools.partial(jitter, sampling, view, file.name, start)
    try:
        part = find_part(facts.timeline, start, end)
        indices = choose_frames(sampling, facts.timeline, part, draw())
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    distinct, places = np.unique(indices, return_inverse=True)
    reasons = []
    for name, decode in (("decord", _decode_decord), ("PyAV", _decode_pyav)):
        try:
            return _as_tensor(decode(str(file), distinct.tolist(), facts), places)
        # Decoders raise their own classes: decord.DECORDError and RuntimeError, av.FFmpegError (partly a ValueError).
        except (_decord_error(), VideoError, RuntimeError, ValueError, OSError, IndexError) as error:
            reasons.append(f"{name}: {_reason(error)}")
    if on_error == "use_decodable":
        try:
            return _decode_rest(str(file), sampling, facts, part, draw())
        except (VideoError, RuntimeError, ValueError, OSError) as error:
            reasons.append(f"what can be decoded: {_reason(error)}")
    raise VideoError(f"{path}: cannot be decoded ({'; '.join(reasons)})")


def _decode_rest(
    path: str, sampling: FrameSampling, facts: VideoFacts, part: Part, draw: np.random.Generator | None
) -> Tensor:
    """Decode the frames that `sampling` takes of the shorter video that the decodable frames of `part` make up."""
    ordinals, numbers = _decodable(path, facts)
    inside = (numbers >= part.first) & (numbers < part.stop)
    shorter = facts.timeline.without_holes(numbers[inside])
    indices = choose_frames(sampling, shorter, find_part(shorter, None, None), draw)
    distinct, places = np.unique(ordinals[inside][indices], return_inverse=True)
    return _as_tensor(_take(_pictures(path, facts, strict=False), distinct.tolist(), facts), places)


def _as_tensor(pictures: np.ndarray, places: np.ndarray) -> Tensor:
    """Return (frames, 3, height, width) of distinct pictures (n, height, width, 3) and their places."""
    return torch.from_numpy(pictures[places] if len(places) > len(pictures) else pictures).permute(0, 3, 1, 2)


@functools.cache
def load_decord() -> Any | None:
    """Return decord, which prints errors only, or None: it has no wheels for macOS on arm64 and Linux on aarch64."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.ERROR)
    return decord


def _decord_error() -> type[Exception]:
    """Return decord's exception class, which is no RuntimeError."""
    decord = load_decord()
    return VideoError if decord is None else decord.DECORDError


def _reason(error: Exception) -> str:
    """Return the first line of a decoder's message without its time and source line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[0]).strip()[:200]


def _decode_decord(path: str, numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Return uint8 (frames, height, width, 3) of some frame numbers, ascending and distinct.

    Raises VideoError where decord cannot be trusted. It paints over damage with parts of other frames and only prints
    that it did. Processes, not threads, share the cores: one thread per reader.
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
        pictures = reader.get_batch(numbers).asnumpy()
        if message := printed().strip():
            raise VideoError(f"reports damage: {message.splitlines()[0]}")
    return pictures


def _decode_pyav(path: str, numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Return uint8 (frames, height, width, 3) of some frame numbers, decoded from the start up to the last one.

    Raises VideoError where one of them is lost.
    """
    total = len(facts.timeline.times)
    if facts.cut_off and facts.frames == total:
        raise VideoError(f"the file is cut off or damaged; nobody knows how much is missing ({total} frames)")
    if facts.cut_off and numbers[-1] >= facts.frames - REORDERED:
        raise VideoError(f"frame {numbers[-1]} of {total} is missing; the file is cut off")
    return _take(_pictures(path, facts, strict=True), numbers, facts)


def _take(pictures: Iterable[Any], numbers: list[int], facts: VideoFacts) -> np.ndarray:
    """Return some pictures, by their place, as arrays."""
    wanted, found = set(numbers), []
    for number, frame in enumerate(pictures):
        if number in wanted:
            found.append(_upright(frame, facts))
        if number >= numbers[-1]:
            break
    if len(found) < len(numbers):
        missing = numbers[len(found)]
        raise VideoError(f"frame {missing} of {len(facts.timeline.times)} is missing")
    return np.stack(found)


def _decodable(path: str, facts: VideoFacts) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each decodable frame among them and its number in the video: int64 (frames,) both."""
    moments = [frame.time for frame in _pictures(path, facts, strict=False)]
    if facts.first_time is None or None in moments:
        return np.arange(len(moments)), np.arange(len(moments))
    numbers, places = np.unique(facts.timeline.shown_at(np.array(moments) - facts.first_time), return_index=True)
    return places, numbers.astype(np.int64)


def _pictures(path: str, facts: VideoFacts, *, strict: bool) -> Iterator[Any]:
    """Yield the frames of a file in the order they are shown.

    `strict` raises VideoError at the first damage. Otherwise the frames from there to the next keyframe are left out,
    for they are built on what is lost.
    """
    import av

    try:
        with av.open(path) as container:
            stream = video_stream(container)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = STRICT
            frames = _undamaged(container, stream, facts, strict)
            yield from _joined(frames, stream) if facts.interlaced else frames
    except av.FFmpegError as error:
        raise VideoError(str(error.strerror)) from error


def _undamaged(container: Any, stream: Any, facts: VideoFacts, strict: bool) -> Iterator[Any]:
    """Yield decoded frames; see `_pictures`."""
    import av

    number = 0
    whole: bool | None = None
    resume: float | None = -math.inf
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            if whole is None:
                whole = bool(packet.is_keyframe)  # a stream may begin amid a group of pictures
                if strict and not whole:
                    raise VideoError("the stream does not begin with a keyframe")
            if packet.is_keyframe and resume is None:
                # frames come out later than packets go in: the next keyframe to come out need not be this one
                resume = -math.inf if packet.pts is None else packet.pts
            if packet.is_corrupt:
                raise av.InvalidDataError(0, "a packet is cut off")
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
            if strict and facts.is_late(frame.time, number):
                raise VideoError(f"frame {number} of {len(facts.timeline.times)} cannot be decoded")
            if whole:
                yield frame
            number += 1


def _joined(frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """Join half pictures to whole ones, as many as there were (FFmpeg's yadif, on those that are marked)."""
    import av

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


def _upright(frame: Any, facts: VideoFacts) -> np.ndarray:
    """Return uint8 (height, width, 3) with square pixels, turned as the container says (films of telephones)."""
    picture = frame.to_ndarray(format="rgb24", width=facts.shown_width, height=facts.shown_height)
    return np.rot90(picture, k=round(frame.rotation / 90))


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what the process prints to its standard error; the function that is yielded returns it.

    It is the process's and not Python's stream that is caught, so one thread at a time can do it, and what other
    threads print meanwhile is caught as well.
    """
    with _LOCK, tempfile.TemporaryFile() as file:
        number = file.fileno()
        before = os.dup(2)
        os.dup2(number, 2)
        try:
            yield lambda: os.pread(number, 4096, 0).decode(errors="replace")
        finally:
            os.dup2(before, 2)
            os.close(before)
