"""Write small real video files for the tests."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FASTSTART = {"movflags": "+faststart"}
"""Puts the index before the pictures, so that a cut file still opens."""


def write_video(
    path: Path,
    *,
    frames: int = 30,
    fps: float | Fraction = 10,
    width: int = 64,
    height: int = 64,
    codec: str = "libx264",
    seed: int = 0,
    faststart: bool = False,
    start: int = 0,
) -> Path:
    """Write a moving pattern of 8-pixel squares; those of the first row show the number of the frame in binary.

    Frames before time 0 (`start` below 0) are stored, but an edit list hides them.
    """
    squares = np.random.RandomState(seed).randint(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    picture = np.kron(squares, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", options=FASTSTART if faststart else {}) as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 10
        for number in range(frames):
            shifted = np.roll(picture, 2 * number, axis=1)
            for bit in range(8):
                shifted[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
            frame = av.VideoFrame.from_ndarray(shifted, format="rgb24")
            frame.pts, frame.time_base = number + start, 1 / Fraction(fps)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def read_number(picture: np.ndarray) -> int:
    """Return the number that a frame of `write_video` shows. `picture`: uint8 (height, width, 3)."""
    return sum(int(picture[2:6, 8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in range(8))


def write_sound(path: Path) -> Path:
    """Write a file with a sound track and no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def cut_file(source: Path, path: Path, *, share: float) -> Path:
    """Keep the first `share` of the bytes of `source`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def turn_file(source: Path, path: Path, *, width: int) -> Path:
    """Write the turning matrix of a telephone held upright (a quarter turn) into an mp4 of `width`."""
    content = bytearray(source.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    content[start : start + 36] = struct.pack(">9i", 0, -65536, 0, 65536, 0, 0, 0, width << 16, 1 << 30)
    path.write_bytes(content)
    return path
