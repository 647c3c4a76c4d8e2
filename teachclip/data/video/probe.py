"""Properties of a video file from its header and packets."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from teachclip.data.video.matroska import first_gap
from teachclip.data.video.orientation import orientation_of
from teachclip.data.video.timeline import Timeline
from teachclip.data.video.video_file import (
    check_video_file,
    declared_bytes,
    is_of_the_machine,
    machine_error,
    packets_of,
    read_head,
)
from teachclip.errors import VideoError

MAX_FRAMES = 10_000_000
"""Four days at 30 frames per second: a header that declares more is wrong."""

REORDERED = 16
"""Frames at the end of a truncated file among which one may be missing: codecs store frames out of order."""

ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the cover of a piece of music."""

NEVER_INTERLACED = ("av1", "ffv1", "gif", "qtrle", "vp8", "vp9")


@dataclass(frozen=True)
class VideoFacts:
    """Properties of the video stream of a file.

    container, codec, pixel_format: FFmpeg's names. width, height: pixels as stored. shown_width, shown_height: as a
    player shows them, with the aspect ratio of the pixels and the rotation applied. fps: mean frames per second
    according to the container. varies: see `Timeline`. duration: seconds. frames: counted. declared_frames: according
    to the header, 0 if unknown. truncated: the end of the file is missing or damaged. rotation: degrees,
    counter-clockwise, that a player rotates the frames by, and mirrored: whether it then mirrors them left to right;
    both known if the first frame could be decoded (`probe_video`). bit_depth: of one colour channel. pixel_aspect:
    width of a pixel divided by its height. timeline: of the frames in the file and, if it is truncated, of the
    declared ones.
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
    declared_frames: int
    truncated: bool
    pixel_format: str
    bit_depth: int
    interlaced: bool
    pixel_aspect: float
    has_audio: bool
    timeline: Timeline = field(repr=False, compare=False)
    rotation: int = 0
    mirrored: bool = False


class Packets(NamedTuple):
    """What the packets of a stream say. They are numbered from 0 in the order in which they are stored.

    stamps: when each packet with data is shown, in time base units. keys: numbers of the keyframes. hidden: numbers
    of the packets that are not shown. times: of the shown frames, in time base units, ascending; None where packets
    have no time stamps of their own. in_order: whether sorting the packets by `stamps` gives the order in which their
    frames are shown. last_duration: of the last frame, in time base units. empty: packets that repeat the last frame.
    damaged: whether reading failed or a packet is corrupt.
    """

    stamps: list[int | None]
    keys: list[int]
    hidden: frozenset[int]
    times: list[int] | None
    in_order: bool
    last_duration: int
    empty: int
    damaged: bool

    @property
    def shown(self) -> int:
        """How many packets are shown."""
        return len(self.stamps) - len(self.hidden)


def probe_video(path: str | os.PathLike[str]) -> VideoFacts:
    """Return the properties of a video file, from its packets and its first frame.

    Raises VideoError with the path and the error: no such file, not a video, audio only, a still image.
    """
    facts, _ = read_facts(check_video_file(path))
    frame = _first_frame(path)
    if frame is None:
        return facts
    turn = orientation_of(frame)
    sides = (facts.shown_width, facts.shown_height)
    width, height = sides[::-1] if turn.swapped else sides
    return replace(facts, rotation=turn.rotation, mirrored=turn.mirrored, shown_width=width, shown_height=height)


def read_facts(file: Path) -> tuple[VideoFacts, Packets]:
    """Return the properties of `file`, an absolute path, and its packets; the shown size is before rotation.

    Raises VideoError, with the path, if it contains no video.
    """
    try:
        with av.open(str(file)) as container:
            stream = video_stream(container)
            packets = _walk(container, stream)
            return _facts_of(file, container, stream, packets), packets
    except VideoError as error:
        raise VideoError(f"{file}: {error}") from error
    except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
        if is_of_the_machine(error):
            raise machine_error(file, error) from error
        raise VideoError(f"{file}: cannot be opened as a video ({getattr(error, 'strerror', error)})") from error


def video_stream(container: Any) -> Any:
    """Return the video stream of an open container. Raises VideoError if there is none."""
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise VideoError(f"is a still image ({container.format.name.removesuffix('_pipe')}), not a video")
    best = container.streams.best("video")
    covers = [stream for stream in container.streams.video if stream.disposition & ATTACHED_PICTURE]
    if best is None or best in covers:
        videos = [stream for stream in container.streams.video if stream not in covers]
        if not videos:
            cover = " and a cover image" if covers else ""
            raise VideoError(f"has no video stream, only audio{cover}" if container.streams.audio else "has no video")
        best = videos[0]
    if best.codec_context is None:
        raise VideoError("has a video stream of an unknown codec")
    return best


def _walk(container: Any, stream: Any) -> Packets:
    """Read all packets of a stream.

    In AVI the time of a packet is the place of its frame in the order of decoding, with gaps where frames were
    dropped, and FFmpeg guesses when it is shown. The same holds for files that were written without an order of
    showing: their times only ever grow, although the codec stores frames out of order.
    """
    decoding_times = container.format.name == "avi"
    stamps: list[int | None] = []
    keys: list[int] = []
    hidden: set[int] = set()
    times: list[int] = []
    empty = duration = 0
    damaged, grows, latest = False, True, -math.inf
    vp8 = stream.codec_context.codec.canonical_name == "vp8"
    try:
        for packet in packets_of(container, stream):
            if not packet.size:
                empty += packet.dts is not None  # repeats the last frame; the one without a time ends the stream
                continue
            number, stamp = len(stamps), packet.dts if decoding_times else packet.pts
            stamps.append(stamp)
            damaged = damaged or packet.is_corrupt
            if packet.is_keyframe:
                keys.append(number)
            # VP8 has packets of their own for reference frames that are never shown; a bit says so
            if packet.is_discard or (vp8 and not bytes(packet)[0] & 0x10):
                hidden.add(number)
            elif stamp is not None:
                times.append(stamp)
            if stamp is not None and stamp > latest:
                latest, duration = stamp, packet.duration or 0
            else:
                grows = False
    except av.FFmpegError as error:
        if is_of_the_machine(error):
            raise
        damaged = True
    if decoding_times and times and stream.codec_context.has_b_frames:  # a frame is shown one frame later
        times = [*times[1:], times[-1] + 1]
    known = len(times) == len(stamps) - len(hidden) and len(set(times)) == len(times)
    in_order = known and not (grows and (decoding_times or stream.codec_context.has_b_frames))
    return Packets(
        stamps, keys, frozenset(hidden), sorted(times) if known else None, in_order, duration, empty, damaged
    )


def _facts_of(file: Path, container: Any, stream: Any, packets: Packets) -> VideoFacts:
    """Combine what the header and the packets say."""
    codec, shown = stream.codec_context, packets.shown
    if not shown:
        raise VideoError("has no frame; is the file truncated?")
    if container.format.name == "gif" and shown == 1:
        raise VideoError("is a still image (gif), not a video")
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    short = declared_bytes(read_head(file)) > file.stat().st_size and stream.frames != len(packets.stamps)
    short = short or is_short(container, stream, packets, fps)
    expected = expected_frames(container, stream, fps) if _has_gap(file, container) else 0
    truncated = packets.damaged or short or expected > shown + 1
    declared = declared_frames(container, stream, packets, fps, truncated)
    truncated = truncated or declared > shown
    timeline = timeline_of(packets, stream.time_base or Fraction(1), fps, max(shown, declared), truncated)
    aspect = float(stream.sample_aspect_ratio or codec.sample_aspect_ratio or 1) or 1.0
    return VideoFacts(
        container=container.format.name,
        codec=codec.codec.canonical_name,
        width=codec.width,
        height=codec.height,
        # the longer side grows, so that no detail is lost
        shown_width=round(codec.width * max(aspect, 1.0)),
        shown_height=round(codec.height / min(aspect, 1.0)),
        fps=fps,
        varies=timeline.varies,
        duration=timeline.duration,
        frames=shown,
        declared_frames=expected or int(stream.frames),
        truncated=truncated,
        pixel_format=codec.pix_fmt or "",
        bit_depth=max((part.bits for part in codec.format.components), default=8) if codec.format else 8,
        interlaced=_is_interlaced(file, codec),
        pixel_aspect=aspect,
        has_audio=bool(container.streams.audio),
        timeline=timeline,
    )


def _is_interlaced(file: Path, codec: Any) -> bool:
    """Return whether frames consist of two interlaced fields; its first frame says so if the stream does not."""
    order = int(getattr(codec, "field_order", 0))  # 0 unknown (or an old PyAV), 1 progressive, above interlaced
    if order == 0 and codec.codec.canonical_name not in NEVER_INTERLACED:
        frame = _first_frame(file)
        return frame is not None and bool(frame.interlaced_frame)
    return order > 1


def _first_frame(path: str | os.PathLike[str]) -> Any | None:
    """Decode the first frame, or return None if it cannot be."""
    try:
        with av.open(os.path.abspath(path)) as container:
            stream = video_stream(container)
            stream.codec_context.thread_count = 1
            return next((frame for packet in packets_of(container, stream) for frame in packet.decode()), None)
    except (av.FFmpegError, VideoError, ValueError, OSError):
        return None


def is_short(container: Any, stream: Any, packets: Packets, fps: float) -> bool:
    """Return whether the frames end before the duration in the header of a Matroska, FLV or ASF file does.

    A tag of the stream says it to the frame. The duration of the file is that of its longest stream: it counts where
    every stream ends more than a second before it.
    """
    if packets.times is None or not container.format.name.startswith(("matroska", "flv", "asf")):
        return False
    unit = float(stream.time_base or 1)
    ends = packets.times[-1] * unit + (packets.last_duration * unit or (1 / fps if fps > 0 else 0))
    own = _tagged_seconds(stream)
    if own is not None:
        return ends < own - max(2.5 / fps if fps > 0 else 0, 0.1)
    whole = float(container.duration or 0) / 1e6 - 1
    return ends < whole and _others_end(container, stream) < whole


def _has_gap(file: Path, container: Any) -> bool:
    """Return whether bytes between the frames of a Matroska file are damaged: frames in them are skipped silently."""
    return bool(container.format.name.startswith("matroska")) and first_gap(file) is not None


def expected_frames(container: Any, stream: Any, fps: float) -> int:
    """Return how many frames the duration in the header makes at the rate in the header, 0 if it has none."""
    seconds = _tagged_seconds(stream)
    frames = (float(container.duration or 0) / 1e6 if seconds is None else seconds) * fps
    return int(frames + 0.5) if frames <= MAX_FRAMES else 0


def _tagged_seconds(stream: Any) -> float | None:
    """Return the duration that the tags of a Matroska stream give, such as 00:00:03.000000000, None without one."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return None


def _others_end(container: Any, stream: Any) -> float:
    """Return the second at which the last stream besides `stream` ends."""
    others = [other for other in container.streams if other.index != stream.index]
    latest = 0.0
    try:
        container.seek(0)
        for packet in packets_of(container, others) if others else ():
            if packet.pts is not None:
                latest = max(latest, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.FFmpegError:
        pass
    return latest


def declared_frames(container: Any, stream: Any, packets: Packets, fps: float, truncated: bool) -> int:
    """Return the number of frames that the complete file would have, 0 if unknown.

    If the file holds fewer, it is truncated; with this number the sampling takes a frame that is missing, and
    decoding raises an error. The index of an mp4 is reliable; the duration in the header of another file only if the
    file is shorter than declared. If some frames are hidden only the duration counts, with a tolerance of one second.
    """
    if packets.hidden:
        declared = int((float((stream.duration or 0) * (stream.time_base or 0)) - 1) * fps)
    elif container.format.name.startswith("mov"):
        declared = int(stream.frames) - packets.empty
    elif truncated and packets.times is not None:
        extent = (packets.times[-1] - packets.times[0] + packets.last_duration) * float(stream.time_base or 1)
        declared = packets.shown + max(0, int(((container.duration or 0) / 1e6 - extent) * fps + 0.5))
    elif truncated:
        declared = max(int(stream.frames), int((container.duration or 0) / 1e6 * fps))
    else:
        declared = 0
    return declared if declared <= MAX_FRAMES else 0


def timeline_of(packets: Packets, time_base: Fraction, fps: float, frames: int, truncated: bool) -> Timeline:
    """Return when each of `frames` frames is shown; frames missing from the file follow at the mean rate."""
    if packets.times is None:
        return Timeline.constant(frames, fps)
    stamps = np.array(packets.times, dtype=np.float64)
    times = (stamps - stamps[0]) * float(time_base)
    last = packets.last_duration * float(time_base)
    step = times[-1] / (len(times) - 1) if len(times) > 1 else last or (1 / fps if fps > 0 else 1.0)
    # Frames are stored out of order: at the end of a truncated file some are missing between others.
    reliable = times[: max(2, len(times) - REORDERED)] if truncated else times
    even = np.linspace(0, reliable[-1], len(reliable))
    varies = len(reliable) > 1 and bool((np.abs(reliable - even) > even[1]).any())
    missing = times[-1] + step * np.arange(1, frames - len(times) + 1)
    return Timeline(np.append(times, missing), float(np.append(times, missing)[-1] + (last or step)), fps, varies)
