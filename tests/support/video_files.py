"""Write small real video files for the tests."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

FASTSTART = {"movflags": "+faststart"}
"""Puts the index before the frames, so that a truncated file still opens."""


QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "lp=1"}}
"""What keeps encoders from printing or using every core."""


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
    pixels: str = "yuv420p",
    gop: int = 10,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    settings: dict[str, object] | None = None,
) -> Path:
    """Write a moving pattern of 8-pixel squares; those of the first row show the number of the frame in binary.

    Frames before time 0 (`start` below 0) are stored, but an edit list hides them. `times`: when each frame is shown,
    in units of 1/fps seconds. `settings`: attributes of the encoder.
    """
    squares = np.random.RandomState(seed).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    image = np.kron(squares, np.ones((8, 8, 1), np.uint8))[:height, :width]
    with av.open(str(path), "w", options=FASTSTART if faststart else {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options={**QUIET.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pixels, gop
        for name, value in (settings or {}).items():
            setattr(stream.codec_context, name, value)
        for number in range(frames):
            shifted = np.roll(image, 2 * number, axis=1)
            for bit in range(width // 8):
                shifted[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
            frame = av.VideoFrame.from_ndarray(shifted, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = times[number] if times else number + start, 1 / Fraction(fps)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # as root, SVT-AV1 leaves this process with real-time priority, which would starve all other tests
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def read_number(image: np.ndarray) -> int:
    """Return the number that a frame of `write_video` shows. `image`: uint8 (height, width, 3)."""
    bits = range(image.shape[1] // 8)
    return sum(int(image[2:6, 8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in bits)


def read_numbers(frames: Tensor) -> list[int]:
    """Return the numbers that decoded frames show. `frames`: uint8 (frames, 3, height, width)."""
    return [read_number(frame) for frame in frames.permute(0, 2, 3, 1).numpy()]


def write_sound(path: Path) -> Path:
    """Write a file with an audio track and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def write_cover(path: Path) -> Path:
    """Write an mp3 with a cover image."""
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("libmp3lame", rate=16000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*cover.encode(image), *cover.encode(), *sound.encode(samples), *sound.encode()]:
            container.mux(packet)
    return path


def cut_file(source: Path, path: Path, *, share: float) -> Path:
    """Keep the first `share` of the bytes of `source`."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


TURNS = {
    "as stored": (1, 0, 0, 1),
    "rotated by 90": (0, -1, 1, 0),
    "rotated by 180": (-1, 0, 0, -1),
    "rotated by 270": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "rotated by 90, mirrored": (0, -1, -1, 0),
    "rotated by 270, mirrored": (0, 1, 1, 0),
}
"""The display matrices (a, b, c, d) of cameras and of `-display_hflip`; angles are counter-clockwise."""


def turn_file(source: Path, path: Path, turn: str) -> Path:
    """Write one of `TURNS` into the header of an mp4 or mov file."""
    a, b, c, d = TURNS[turn]
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content = bytearray(source.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path
