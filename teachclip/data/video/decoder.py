"""The decoder at work on one file: which packets it gets, which frames come out, and which of them are damaged."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import av

from teachclip.data.video.probe import Packets, video_stream
from teachclip.data.video.video_file import is_of_the_machine, packets_of

MARKED = ("flv1", "h263", "h264", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2")
"""Codecs in which FFmpeg marks every frame with concealed damage. In the others it is told to stop at the damage: of
60 files with flipped bits it then refused 31 instead of 14 (HEVC), 14 instead of 7 (MJPEG), and as many as before in
these codecs, where it would also stop at what is harmless."""

STRICT = {"err_detect": "explode"}
"""FFmpeg options: report damaged data instead of concealing it with parts of other frames."""

SKIPPABLE = ("h264", "mpeg2video", "mpeg4")
"""Codecs whose frames that no other frame depends on can be skipped, by a flag in the packet itself."""

INTRA = 1
"""FFmpeg's AV_PICTURE_TYPE_I: a picture that depends on no other."""


class Run(NamedTuple):
    """Packets `start` to `stop` - 1, which the decoder gets without a gap."""

    start: int
    stop: int


@dataclass
class Found:
    """What came out of the decoder. Packets are numbered as in `Packets`.

    fed: packets that were decoded. shown: the packet of each frame, in the order of output. keys: packets whose frame
    is a keyframe; whole: those whose frame depends on no other. broken: what was wrong with a packet or its frame.
    """

    fed: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    keys: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)
    broken: dict[int, str] = field(default_factory=dict)


def decode_packets(
    path: str, packets: Packets, runs: Sequence[Run], found: Found, wanted: Collection[int] | None = None
) -> Iterator[tuple[int, Any]]:
    """Decode `runs` of packets, ascending. Yields the number of the packet and the frame, in the order of output.

    A run above 0 starts at a keyframe; frames that are stored after it and shown before it are skipped. `wanted`:
    frames outside it that no other frame depends on may be skipped, too. Fills `found`. One thread: parallelism
    comes from processes. Raises OSError if the file cannot be opened, and errors of the machine.
    """
    left = list(reversed(runs))
    with av.open(path) as container:
        stream = video_stream(container)
        decoder = stream.codec_context
        decoder.thread_count = 1
        name = decoder.codec.canonical_name
        decoder.options = {} if name in MARKED else STRICT
        skips = wanted is not None and name in SKIPPABLE
        for number, packet in _numbered(container, stream):
            if not left:
                return
            run = left[-1]
            if number < run.start:
                continue
            if not (run.start and _is_before(packets, number, run.start)):
                if skips:
                    decoder.skip_frame = "DEFAULT" if number in wanted else "NONREF"  # type: ignore[operator]
                yield from _decode(decoder, packet, number, found)
            if number == run.stop - 1:
                left.pop()
                yield from _decode(decoder, None, number, found)
                decoder.flush_buffers()
        if left and decoder.is_open:
            yield from _decode(decoder, None, len(packets.stamps), found)


def _numbered(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """Yield the packets with data and their numbers, up to where the file cannot be read any further."""
    numbers = itertools.count()
    packets = packets_of(container, stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            if is_of_the_machine(error):
                raise
            return
        if packet.size:
            yield next(numbers), packet


def _is_before(packets: Packets, number: int, key: int) -> bool:
    """Return whether a packet is shown before the keyframe `key`."""
    stamp, start = packets.stamps[number], packets.stamps[key]
    return packets.in_order and stamp is not None and start is not None and stamp < start


def _decode(decoder: Any, packet: Any | None, number: int, found: Found) -> Iterator[tuple[int, Any]]:
    """Give the decoder a packet, or None for the end. Its number travels with it as its time."""
    if packet is not None:
        found.fed.append(number)
        if packet.is_corrupt:
            found.broken[number] = "its packet is truncated"
            return
        packet.pts = packet.dts = number
    try:
        frames = decoder.decode(packet)
    except av.EOFError:
        return
    except av.FFmpegError as error:
        if is_of_the_machine(error):
            raise
        found.broken.setdefault(number, str(error.strerror))
        return
    for frame in frames:
        shown = number if frame.pts is None else frame.pts
        found.shown.append(shown)
        if frame.key_frame:
            found.keys.add(shown)
        if int(frame.pict_type) == INTRA:
            found.whole.add(shown)
        if frame.is_corrupt:
            found.broken.setdefault(shown, "FFmpeg marks it as corrupt")
        yield shown, frame


def damaged(packets: Packets, found: Found) -> set[int]:
    """Return the packets whose frames are damaged, or depend on a damaged or missing one.

    The frames from a damaged packet to the next keyframe are, in the order of decoding; and those that are shown
    before this keyframe although they are stored after it.
    """
    place = {number: place for place, number in reversed(list(enumerate(found.shown)))}
    keys = set(packets.keys)
    if found.broken and found.keys:  # after damage the decoder must agree; some codecs have no mark for keyframes
        keys &= found.keys | packets.hidden
    bad: set[int] = set()
    clean, border = False, -1
    for number in found.fed:
        if number in found.broken:
            clean = False
        elif number in keys:
            border = -1 if clean else place.get(number, -1)
            clean = True
        if not clean or place.get(number, border) < border:
            bad.add(number)
    return bad


def runs_for(packets: Packets, wanted: Iterable[int]) -> list[Run]:
    """Return the packets to decode for some frames: each from the keyframe before it. `packets` must be in order."""
    runs: list[Run] = []
    keys = iter([*packets.keys, len(packets.stamps)])
    passed: list[int] = []
    following = next(keys)
    for number in sorted(wanted):
        while following <= number:
            passed.append(following)
            following = next(keys)
        start = next((key for key in reversed(passed) if not _is_before(packets, number, key)), 0)
        if runs and start < runs[-1].stop:
            runs[-1] = Run(min(start, runs[-1].start), number + 1)
        else:
            runs.append(Run(start, number + 1))
    return runs
