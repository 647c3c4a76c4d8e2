"""Whether a Matroska or WebM file is whole: the elements of its segment follow one another without a gap."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

SEGMENT = 0x18538067
CLUSTER = 0x1F43B675
IN_SEGMENT = {
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),
    *(0xEC, 0xBF),
}
"""Seek head, info, tracks, clusters, cues, attachments, chapters, tags; void and checksum."""

IN_CLUSTER = {0xE7, 0xAB, 0xA7, 0xA3, 0xA0, 0xAF, 0x5854, 0xEC, 0xBF}
"""Time, previous size, position, simple block, block group, encrypted block, silent tracks; void and checksum."""


def first_gap(file: Path) -> int | None:
    """Return the position of the first byte that belongs to no element, None if there is none.

    FFmpeg skips such bytes and the frames in them without an error. A live recording, whose clusters have no size, is
    read up to its end. Raises OSError.
    """
    end = os.path.getsize(file)
    with open(file, "rb") as stream:
        header = _element(stream)
        if header is None or header[0] != 0x1A45DFA3 or header[1] is None:
            return None
        stream.seek(header[1], os.SEEK_CUR)
        segment = _element(stream)
        if segment is None or segment[0] != SEGMENT:
            return stream.tell()
        stop = end if segment[1] is None else min(end, stream.tell() + segment[1])
        return _gap(stream, stop)


def _gap(stream: BinaryIO, stop: int) -> int | None:
    """Return the position of the first gap before `stop`."""
    inside = 0  # where the cluster ends that is being read
    while (position := stream.tell()) < stop:
        element = _element(stream)
        if element is None:
            return position
        name, size = element
        unsized = inside == stop  # a cluster without a size ends where an element of the segment begins
        in_cluster = position < inside and not (unsized and name in IN_SEGMENT - IN_CLUSTER)
        if name not in (IN_CLUSTER if in_cluster else IN_SEGMENT):
            return position
        if name == CLUSTER and size is None:
            inside = stop
            continue
        if size is None or stream.tell() + size > (inside if in_cluster else stop):
            return position
        if name == CLUSTER:
            inside = stream.tell() + size
            continue
        stream.seek(size, os.SEEK_CUR)
    return None


def _element(stream: BinaryIO) -> tuple[int, int | None] | None:
    """Read the name and size of an element; a size of None is unknown. Returns None where there is none."""
    head = stream.read(1)
    if not head or not head[0] & 0xF0:
        return None
    rest = stream.read(8 - head[0].bit_length())
    name = int.from_bytes(head + rest, "big")
    first = stream.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    size = int.from_bytes(first + stream.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return name, None if size == (1 << 7 * length) - 1 else size
