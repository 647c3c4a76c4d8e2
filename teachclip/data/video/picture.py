"""One picture of a video, for people to look at: a JPEG of the frame that is shown at some time."""

from __future__ import annotations

import contextlib
import io
import os
from fractions import Fraction
from typing import Any

import av
from PIL import Image

from teachclip.data.video.decoding_errors import DECODING_ERRORS, first_line
from teachclip.data.video.orientation import orientation_of
from teachclip.data.video.video_file import check_video_file, packets_of
from teachclip.errors import VideoError

TOLERANCE = 1e-3
"""Seconds by which a time may lie before its frame: times are rounded where they are stored."""


def picture_of(path: str | os.PathLike[str], seconds: float, width: int) -> bytes:
    """Return the frame shown at `seconds` as a JPEG of at most `width` pixels in width, for a worker process.

    Seconds count from the first frame. Behind the end it is the last frame. Raises VideoError if none is decoded.
    """
    file = check_video_file(path)
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frame = _frame_at(container, stream, seconds)
            if frame is None:  # some containers cannot be searched: read from the start
                container.seek(0)
                frame = _frame_at(container, stream, seconds, search=False)
            if frame is None:
                raise VideoError("no frame can be decoded")
            shown = round(frame.width * float(stream.sample_aspect_ratio or 1))
            pixels = frame.to_ndarray(format="rgb24", width=shown, height=frame.height)
            picture = Image.fromarray(orientation_of(frame).apply(pixels))
    except (*DECODING_ERRORS, IndexError) as error:
        raise VideoError(f"{path}: no picture can be made ({first_line(error)})") from error
    data = io.BytesIO()
    picture.thumbnail((width, 8 * width), Image.Resampling.BICUBIC)
    picture.save(data, "JPEG", quality=85)
    return data.getvalue()


def _frame_at(container: Any, stream: Any, seconds: float, *, search: bool = True) -> Any:
    """Return the last frame that begins at `seconds` or before, or the first one that is decoded."""
    base: Fraction = stream.time_base
    begin = (stream.start_time or 0) * base
    if search and seconds > 0:
        with contextlib.suppress(av.FFmpegError):
            container.seek(int((begin + Fraction(seconds).limit_denominator(10**6)) / base), stream=stream)
    shown = None
    for frame in (frame for packet in packets_of(container, stream) for frame in packet.decode()):
        if frame.pts is None:
            return shown or frame
        if shown is not None and float(frame.pts * base - begin) > seconds + TOLERANCE:
            break
        shown = frame
    return shown
