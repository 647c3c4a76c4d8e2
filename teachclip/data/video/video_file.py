"""Whether a path is a file that may be a video, before any decoder opens it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from teachclip.errors import VideoError

MAX_BYTES = 1 << 38
"""275 GB, twelve hours of 50 megabits per second: a larger file is no video, or one that was never written."""

SPARSE = 1 << 30
"""Bytes from which on a file of which less than a hundredth is stored counts as one that was never written."""

HEAD_BYTES = 4096

NOT_VIDEOS = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"{": "a JSON file",
    b"#extm3u": "a playlist",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself",
}
"""How text begins that may be served or stored in place of a video."""


MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that say nothing about the file: too little memory, too many open files, a disk or network that fails."""

MACHINE_FAILED = "the machine could not read"
"""How the error begins that such an error becomes; a later run tries again."""

CHANGED = "the file changed while"

TRANSIENT = ("took longer than", "its process died", "used more than", CHANGED, MACHINE_FAILED)
"""How errors begin that may be due to the machine instead of the item."""


def is_transient(error: str) -> bool:
    """Return whether an error may be due to the machine (busy, too little memory) instead of the file."""
    return error.startswith(TRANSIENT)


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether an error is due to the machine instead of the file."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE


def machine_error(path: str | os.PathLike[str], error: BaseException) -> VideoError:
    """Return the error for a file of which nothing is known, as the machine failed."""
    return VideoError(f"{MACHINE_FAILED} {path}: {getattr(error, 'strerror', None) or type(error).__name__}")


def check_video_file(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file that may be a video.

    Raises VideoError for a path that does not exist, a broken link, a folder, a device, a pipe, a file that is empty,
    larger than any video, sparse or not to be read, and text such as an error page under the name of a video.
    """
    try:
        file = Path(os.path.abspath(path))
        if file.is_symlink() and not file.exists():
            raise VideoError(f"{path}: is a link to {os.readlink(file)}, which does not exist")
        status = file.stat()
        check_status(path, status)
        if status.st_size == 0:
            raise VideoError(f"{path}: is empty (0 bytes)")
        head = read_head(file)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if is_of_the_machine(error):
            raise machine_error(path, error) from error
        raise VideoError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    for beginning, what in NOT_VIDEOS.items():
        if start.startswith(beginning):
            raise VideoError(f"{path}: is {what}, not a video")
    return file


def check_status(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Raise VideoError if a file is not a regular one of a size that can be read to its end."""
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path}: is a folder, not a video file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path}: is a device or a pipe, not a video file")
    size = status.st_size
    if size > MAX_BYTES:
        raise VideoError(f"{path}: has {size / 1e9:,.0f} GB, a video at most {MAX_BYTES / 1e9:.0f}")
    if size > SPARSE and 512 * getattr(status, "st_blocks", size) < size / 100:
        raise VideoError(f"{path}: has {size / 1e9:,.0f} GB, of which next to nothing is stored")


def read_head(file: Path) -> bytes:
    """Return the first bytes of a file. Raises OSError."""
    with open(file, "rb") as stream:
        return stream.read(HEAD_BYTES)


def declared_bytes(head: bytes) -> int:
    """Return the file size that the header of an AVI or Matroska file declares, else 0 (mp4 has an index instead)."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    position = head.find(b"\x18\x53\x80\x67")  # the id of the Matroska segment, which contains everything
    if head[:4] != b"\x1a\x45\xdf\xa3" or position < 0 or len(head) < position + 13 or head[position + 4] == 0:
        return 0
    length = 9 - head[position + 4].bit_length()  # the leading zeros of the first byte encode the length
    field = head[position + 4 : position + 4 + length]
    size = int.from_bytes(field, "big") - (1 << (7 * length))
    unknown = (1 << (7 * length)) - 1  # a live recording
    return 0 if size == unknown else position + 4 + length + size


def packets_of(container: Any, streams: Any) -> Iterator[Any]:
    """Yield the packets of some streams of an opened file, to its end. Raises av.FFmpegError.

    A transport stream may get more streams on its way, as after a cut or by damage. PyAV does not know them and
    raises IndexError at each of their packets, which are skipped here.
    """
    while True:
        try:
            yield from container.demux(streams)
            return
        except IndexError:
            continue
