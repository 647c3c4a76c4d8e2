"""What is known of a video file without decoding it, and which decoder can be trusted with it."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import stat
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.data.video.timeline import TOLERANCE, Timeline
from teachclip.errors import VideoError

MOST_FRAMES = 10_000_000
"""Four days at 30 frames per second: a header that promises more is wrong."""

REORDERED = 16
"""Frames at the end of a cut file among which one may be lost: codecs store frames in another order than shown."""

HEAD_BYTES = 4096

NOT_VIDEOS = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"{": "a JSON file",
    b"#extm3u": "a playlist",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself",
}
"""How text begins that is served or stored in place of a video."""

ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the cover of a piece of music."""

NEVER_INTERLACED = ("av1", "ffv1", "gif", "qtrle", "vp8", "vp9")


@dataclass(frozen=True)
class VideoFacts:
    """What is known of the video stream of a file.

    container, codec, pixel_format: FFmpeg's names. width, height: pixels as stored. shown_width, shown_height: as a
    player shows them, the aspect of the pixels and the rotation applied. fps: frames per second, the mean as the
    container says. varies: see `Timeline`. duration: seconds. frames: counted. promised_frames: what the header says,
    0 if nothing. cut_off: the end of the file is missing or damaged. rotation: degrees, counter-clockwise, that the
    picture is turned by; known where a first frame could be decoded (`probe_video`). bit_depth: of one colour.
    pixel_aspect: width of a pixel by its height. decoder: decord or PyAV; decoder_reason: why it is PyAV.
    timeline: of the frames that are there and, where the file is cut off, of those that were promised.
    first_time: the time stamp of the first frame in seconds, None where time stamps cannot be trusted.
    """

    container: str
    codec: str
    width: int
    height: int
    shown_width: int
    shown_height: int
    fps: float
    varies: bool
    duration: float
    frames: int
    promised_frames: int
    cut_off: bool
    pixel_format: str
    bit_depth: int
    interlaced: bool
    pixel_aspect: float
    has_audio: bool
    decoder: str
    decoder_reason: str
    timeline: Timeline = field(repr=False, compare=False)
    first_time: float | None = field(repr=False, default=None)
    rotation: int = 0

    def is_late(self, stamp: float | None, number: int) -> bool:
        """Return whether a frame with this time stamp is shown too late for its number: one before it is lost."""
        times = self.timeline.times
        if self.first_time is None or stamp is None or number + 1 >= len(times):
            return False
        return bool(stamp - self.first_time >= times[number + 1] - TOLERANCE)


class Packets(NamedTuple):
    """What a walk over the packets of a stream found.

    times: of the shown frames, in time base units, ascending; None where packets have no time of their own.
    """

    times: list[int] | None
    last_duration: int
    counted: int
    hidden: int
    empty: int
    exact_seeks: bool
    damaged: bool


def probe_video(path: str | os.PathLike[str]) -> VideoFacts:
    """Return what is known of a video file, from its packets and its first frame.

    Raises VideoError with the path and the reason: no such file, no video, only sound, only a picture.
    """
    facts = read_facts(check_video_file(path))
    frame = _first_frame(path)
    if frame is None:
        return facts
    turned = round(frame.rotation / 90) % 2
    sides = (facts.shown_height, facts.shown_width) if turned else (facts.shown_width, facts.shown_height)
    return replace(facts, rotation=round(frame.rotation) % 360, shown_width=sides[0], shown_height=sides[1])


def check_video_file(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file that may be a video.

    Raises VideoError, saying which, for a path that does not exist, a link to nowhere, a folder, a device, an empty
    file, one that may not be read, and text such as an error page under the name of a video.
    """
    try:
        file = Path(os.path.abspath(path))
        if file.is_symlink() and not file.exists():
            raise VideoError(f"{path}: is a link to {os.readlink(file)}, which does not exist")
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise VideoError(f"{path}: is a folder, not a video file")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path}: is a device or a pipe, not a video file")
        if status.st_size == 0:
            raise VideoError(f"{path}: is empty (0 bytes)")
        head = read_head(file)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    for beginning, what in NOT_VIDEOS.items():
        if start.startswith(beginning):
            raise VideoError(f"{path}: is no video but {what}")
    return file


def read_head(file: Path) -> bytes:
    """Return the first bytes of a file. Raises OSError."""
    with open(file, "rb") as stream:
        return stream.read(HEAD_BYTES)


def promised_bytes(head: bytes) -> int:
    """Return how long AVI and Matroska files say they are, 0 where they do not (mp4 has an index instead)."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    place = head.find(b"\x18\x53\x80\x67")  # the id of Matroska's segment, which holds everything
    if head[:4] != b"\x1a\x45\xdf\xa3" or place < 0 or len(head) < place + 13 or head[place + 4] == 0:
        return 0
    length = 9 - head[place + 4].bit_length()  # the first byte's leading zeros tell how long the number is
    field = head[place + 4 : place + 4 + length]
    size = int.from_bytes(field, "big") - (1 << (7 * length))
    unknown = (1 << (7 * length)) - 1  # a live recording
    return 0 if size == unknown else place + 4 + length + size


def read_facts(file: Path) -> VideoFacts:
    """Return what the packets of `file`, an absolute path, say; its shown size is that before it is turned.

    Raises VideoError, with the path, if there is no video in it.
    """
    import av

    try:
        with av.open(str(file)) as container:
            stream = video_stream(container)
            return _facts_of(file, container, stream, _walk(container, stream))
    except VideoError as error:
        raise VideoError(f"{file}: {error}") from error
    except (av.FFmpegError, ValueError, OSError) as error:
        raise VideoError(f"{file}: is no video that can be opened ({getattr(error, 'strerror', error)})") from error


def video_stream(container: Any) -> Any:
    """Return the video stream of an open container. Raises VideoError if there is none."""
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise VideoError(f"is a picture ({container.format.name.removesuffix('_pipe')}), not a video")
    best = container.streams.best("video")
    covers = [stream for stream in container.streams.video if stream.disposition & ATTACHED_PICTURE]
    if best is None or best in covers:
        films = [stream for stream in container.streams.video if stream not in covers]
        if not films:
            cover = " and a cover picture" if covers else ""
            raise VideoError(f"has no video stream, only sound{cover}" if container.streams.audio else "has no video")
        best = films[0]
    if best.codec_context is None:
        raise VideoError("has a video stream of an unknown codec")
    return best


def _walk(container: Any, stream: Any) -> Packets:
    """Count the frames that are shown, and see whether decord's seeking can be trusted.

    decord seeks to the keyframe before a frame and counts on from there. Where frames that are shown before a
    keyframe are stored after it (open groups of pictures, usual in HEVC), where packets have no time of their own
    (AVI, MPEG-TS) or are not shown (edit lists), it returns other frames than asked for, without an error.
    """
    import av

    times: list[int] = []
    counted = hidden = empty = duration = 0
    damaged, exact = False, container.format.name.startswith(("mov", "matroska"))
    latest, keyframe = -math.inf, math.inf
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    try:
        for packet in container.demux(stream):
            if not packet.size:
                empty += packet.dts is not None  # "show the last frame on"; the one without a time ends the stream
                continue
            counted += 1
            damaged = damaged or packet.is_corrupt
            pts = packet.pts
            time = -math.inf if pts is None else pts
            if packet.is_keyframe:
                keyframe = time if time > latest else math.inf
            exact = exact and time >= keyframe
            # VP8 stores pictures that are only built on as packets of their own; a bit says whether one is shown
            if packet.is_discard or (vp8 and not bytes(packet)[0] & 0x10):
                hidden += 1
            elif pts is not None:
                times.append(pts)
            if time > latest:
                latest, duration = time, packet.duration or 0
    except av.FFmpegError:
        damaged = True
    # The times in an AVI are those of decoding; FFmpeg guesses the rest.
    known = len(times) == counted - hidden and len(set(times)) == len(times) and container.format.name != "avi"
    exact = exact and known and not hidden
    return Packets(sorted(times) if known else None, duration, counted, hidden, empty, exact, damaged)


def _facts_of(file: Path, container: Any, stream: Any, packets: Packets) -> VideoFacts:
    """Put together what the header and the packets say."""
    codec, shown = stream.codec_context, packets.counted - packets.hidden
    if not shown:
        raise VideoError("has no frame; is the file cut off?")
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    short = promised_bytes(read_head(file)) > file.stat().st_size and stream.frames != packets.counted
    cut_off = packets.damaged or short
    promised = promised_frames(container, stream, packets, fps, cut_off)
    cut_off = cut_off or promised > shown
    timeline = timeline_of(packets, stream.time_base or Fraction(1), fps, max(shown, promised), cut_off)
    aspect = float(stream.sample_aspect_ratio or codec.sample_aspect_ratio or 1) or 1.0
    depth = max((part.bits for part in codec.format.components), default=8) if codec.format else 8
    interlaced = _is_interlaced(file, codec)
    reason = reason_against_decord(container, codec, packets, depth, aspect, interlaced, cut_off)
    return VideoFacts(
        container=container.format.name,
        codec=codec.codec.canonical_name,
        width=codec.width,
        height=codec.height,
        # the longer side grows: nothing is lost
        shown_width=round(codec.width * max(aspect, 1.0)),
        shown_height=round(codec.height / min(aspect, 1.0)),
        fps=fps,
        varies=timeline.varies,
        duration=timeline.duration,
        frames=shown,
        promised_frames=int(stream.frames),
        cut_off=cut_off,
        pixel_format=codec.pix_fmt or "",
        bit_depth=depth,
        interlaced=interlaced,
        pixel_aspect=aspect,
        has_audio=bool(container.streams.audio),
        decoder="PyAV" if reason else "decord",
        decoder_reason=reason,
        timeline=timeline,
        first_time=None if packets.times is None else float(packets.times[0] * (stream.time_base or 1)),
    )


def _is_interlaced(file: Path, codec: Any) -> bool:
    """Return whether a frame holds two half pictures; where the stream does not say, its first frame does."""
    order = int(getattr(codec, "field_order", 0))  # 0 unknown (or an old PyAV), 1 progressive, above interlaced
    if order == 0 and codec.codec.canonical_name not in NEVER_INTERLACED:
        frame = _first_frame(file)
        return frame is not None and bool(frame.interlaced_frame)
    return order > 1


def _first_frame(path: str | os.PathLike[str]) -> Any | None:
    """Decode the first frame, or return None if it cannot be."""
    import av

    try:
        with av.open(os.path.abspath(path)) as container:
            stream = video_stream(container)
            stream.codec_context.thread_count = 1
            return next(container.decode(stream), None)
    except (av.FFmpegError, VideoError, ValueError, OSError):
        return None


def promised_frames(container: Any, stream: Any, packets: Packets, fps: float, cut_off: bool) -> int:
    """Return the number of frames that would be there if the file were whole, 0 if nobody can say.

    Where it is more than the file holds, the file is cut off; with this number the sampling asks for a frame that is
    not there, and the loss is noticed. The index of an mp4 can be trusted; the number in the header of an AVI, and
    the duration of a Matroska file only where the file is shorter than it says. If some frames are hidden only the
    duration counts, with a second of tolerance.
    """
    if packets.hidden:
        promised = int((float((stream.duration or 0) * (stream.time_base or 0)) - 1) * fps)
    elif container.format.name.startswith("mov"):
        promised = int(stream.frames) - packets.empty
    elif cut_off:
        promised = max(int(stream.frames), int((container.duration or 0) / 1e6 * fps))
    else:
        promised = 0
    return promised if promised <= MOST_FRAMES else 0


def timeline_of(packets: Packets, time_base: Fraction, fps: float, frames: int, cut_off: bool) -> Timeline:
    """Return when each of `frames` frames is shown; those that the file no longer holds go on at the mean rate."""
    if packets.times is None:
        return Timeline.constant(frames, fps)
    stamps = np.array(packets.times, dtype=np.float64)
    times = (stamps - stamps[0]) * float(time_base)
    last = packets.last_duration * float(time_base)
    step = times[-1] / (len(times) - 1) if len(times) > 1 else last or (1 / fps if fps > 0 else 1.0)
    # Frames are stored in another order than shown: at the end of a cut file some lack among others.
    sure = times[: max(2, len(times) - REORDERED)] if cut_off else times
    even = np.linspace(0, sure[-1], len(sure))
    varies = len(sure) > 1 and bool((np.abs(sure - even) > even[1]).any())
    lost = times[-1] + step * np.arange(1, frames - len(times) + 1)
    return Timeline(np.append(times, lost), float(np.append(times, lost)[-1] + (last or step)), fps, varies)


def reason_against_decord(
    container: Any, codec: Any, packets: Packets, depth: int, aspect: float, interlaced: bool, cut_off: bool
) -> str:
    """Return why decord cannot be trusted with a file, "" if it can.

    Measured with decord 0.6 against PyAV 18: pictures are equal within one step of 255 (8 bit 4:2:0, 4:2:2, 4:4:4,
    limited and full range, untagged, BT.601, 709, 2020, SMPTE 240M, RGB, rotated). They differ by up to 80 at sharp
    edges of more than 8 bits and at the edge of odd sizes; decord shows pixels as squares and half pictures
    interleaved. Its FFmpeg has no AV1.
    """
    reasons = {
        "it is not installed": not _has_decord(),
        "it cannot decode AV1": codec.codec.canonical_name == "av1",
        "seeking is not exact in it": not packets.exact_seeks,
        "the file is cut off or damaged": cut_off,
        "more than 8 bits": depth > 8,
        "odd size": bool(codec.width % 2 or codec.height % 2),
        "pixels are not square": abs(aspect - 1) > 1e-6,
        "interlaced": interlaced,
        "more than one video stream": len(container.streams.video) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


@functools.cache
def _has_decord() -> bool:
    return importlib.util.find_spec("decord") is not None
