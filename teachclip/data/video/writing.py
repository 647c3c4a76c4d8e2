"""Writing mp4 files of frames that a program drew: the same frames give the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ENCODER = {
    "preset": "veryfast",
    "crf": "18",
    "g": "36",
    "bf": "0",
    "threads": "1",
    "flags": "+bitexact",
    "x264-params": "cpu-independent=1",
}
"""Options of libx264. Without the last one and with B-frames, about one file in twenty differs from run to run even
with one thread."""


def encode_mp4(frames: Iterable[np.ndarray], path: Path, *, rate: int = 8, options: dict[str, str] = ENCODER) -> None:
    """Write frames, each (height, width, 3) uint8 RGB, as h264 (yuv420p) with `rate` frames per second.

    The file appears under its name when complete. `options` are libx264's.
    """
    temporary = path.with_name(f"{path.name}.part")
    with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=rate, options=options)
        video.pix_fmt = "yuv420p"
        video.time_base = Fraction(1, rate)
        for time, frame in enumerate(frames):
            if not time:
                video.height, video.width = frame.shape[:2]
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts = time
            container.mux(video.encode(image))
        container.mux(video.encode())
    os.replace(temporary, path)
