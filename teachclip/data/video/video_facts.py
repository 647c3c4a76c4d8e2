"""What is known of a video stream without decoding it, and what follows from it."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from teachclip.data.video.timeline import TOLERANCE, Timeline

MOST_FRAMES = 10_000_000
"""Four days at 30 frames per second: a header that promises more is wrong."""

REORDERED = 16
"""Frames at the end of a cut file among which one may be lost: codecs store frames in another order than shown."""


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
