"""What the packets of a video file say without decoding it, and which decoder can be trusted with it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from teachclip.data.video.file_heads import check_video_file, promised_bytes, read_head
from teachclip.data.video.video_facts import Packets, VideoFacts, promised_frames, reason_against_decord, timeline_of
from teachclip.errors import VideoError

ATTACHED_PICTURE = 0x400
"""FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the cover of a piece of music."""

NEVER_INTERLACED = ("av1", "ffv1", "gif", "qtrle", "vp8", "vp9")


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
