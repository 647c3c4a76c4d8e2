"""Cut a moment out of a video into a file of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from teachclip.data.video.orientation import orientation_of
from teachclip.data.video.probe import read_facts, video_stream
from teachclip.data.video.video_file import check_video_file, packets_of
from teachclip.errors import DataError, VideoError

LONGEST_STEP = 120
"""Frames per second at most; a header that declares more is wrong."""


def cut_clip(source: str | Path, start: float, end: float, out: str | Path) -> None:
    """Write the seconds `start` to `end` of a video to the mp4 file `out`, as a player shows them, with its sound.

    Pictures and sound are encoded anew (H.264, AAC), so that the clip begins at `start` and not at a keyframe before
    it. Raises VideoError if the source cannot be read, DataError if `out` is no mp4, is the source
    or cannot be written.
    """
    path, target = check_video_file(source), Path(out)
    if target.suffix.lower() != ".mp4":
        raise DataError(f"{target}: a clip is an mp4 file; give a name that ends in .mp4")
    if not target.parent.is_dir():
        raise DataError(f"{target}: its folder does not exist")
    if target.exists() and target.samefile(path):
        raise DataError(f"{target}: is the film itself, which a clip must not replace; give another name")
    if not 0 <= start < end:
        raise DataError(f"a clip from {start:g} to {end:g} seconds is empty")
    facts, _ = read_facts(path)
    if start >= facts.duration:
        raise VideoError(f"{path}: ends at {facts.duration:g} seconds; a clip cannot begin at {start:g}")
    unfinished = target.with_name(f"{target.stem}.unfinished.mp4")
    try:
        with av.open(str(path)) as container, _writing(unfinished) as output:
            _copy(container, output, facts, start, end)
        unfinished.replace(target)
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise VideoError(
            f"{target}: cannot be cut out of {path} ({getattr(error, 'strerror', None) or error})"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Any]:
    try:
        output = av.open(str(path), "w", options={"movflags": "+faststart"})
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path.parent}: cannot be written to ({error.strerror})") from error
    with output:
        yield output


def _copy(container: Any, output: Any, facts: Any, start: float, end: float) -> None:
    """Decode both streams from a keyframe before `start` on, and encode what is shown or heard from start to end."""
    video = video_stream(container)
    sound = container.streams.best("audio")
    rate = Fraction(facts.fps).limit_denominator(1001) if 0 < facts.fps <= LONGEST_STEP else Fraction(25)
    pictures = output.add_stream("libx264", rate=rate, options={"crf": "20"})
    pictures.pix_fmt, pictures.time_base = "yuv420p", Fraction(1, 90_000)
    pictures.codec_context.time_base = Fraction(1, 90_000)
    heard = None if sound is None else output.add_stream("aac", rate=sound.codec_context.sample_rate or 44_100)
    resampler = None if heard is None else av.AudioResampler("fltp", heard.codec_context.layout, heard.rate)
    first = float((video.start_time or 0) * video.time_base)
    container.seek(max(0, int((start + first - 1) * av.time_base)))
    streams = [video] if sound is None else [video, sound]
    written, waiting = -1, []
    for packet in packets_of(container, streams):
        for frame in _decoded(packet):
            shown = math.nan if frame.time is None else frame.time - first
            if packet.stream is sound and heard is not None and resampler is not None:
                if start <= shown < end:
                    frame.pts = None  # what is heard follows without gaps
                    waiting += resampler.resample(frame)
            elif packet.stream is video and start - 0.5 / float(rate) <= shown < end:
                picture = _picture(frame, facts)
                if written < 0:
                    pictures.width, pictures.height = picture.width, picture.height
                written = max(written + 1, round((shown - start) * 90_000))
                picture.pts, picture.time_base = max(written, 0), Fraction(1, 90_000)
                output.mux(pictures.encode(picture))
            if written >= 0 and heard is not None:  # the size of the picture must be known before anything is written
                for piece in waiting:
                    output.mux(heard.encode(piece))
                waiting.clear()
        if (
            packet.stream is video
            and packet.pts is not None
            and float(packet.pts * packet.time_base) - first > end + 2
        ):
            break
    if written < 0:
        raise ValueError(f"no frame is shown between {start:g} and {end:g} seconds")
    for stream in (pictures, heard):
        if stream is not None:
            output.mux(stream.encode(None))


def _decoded(packet: Any) -> list[Any]:
    """Return the frames of a packet; what is damaged is skipped, as players do."""
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []


def _picture(frame: Any, facts: Any) -> Any:
    """Return a frame as a player shows it, with an even number of pixels, as H.264 needs them."""
    size = {"width": facts.shown_width, "height": facts.shown_height}
    pixels = orientation_of(frame).apply(frame.to_ndarray(format="rgb24", **size))
    height, width = (side - side % 2 for side in pixels.shape[:2])
    return av.VideoFrame.from_ndarray(pixels[:height, :width].copy(), format="rgb24").reformat(format="yuv420p")
