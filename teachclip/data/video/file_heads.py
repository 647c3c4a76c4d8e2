"""What can be said of a video file from its name and its first bytes, before a decoder is asked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from teachclip.errors import VideoError

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
