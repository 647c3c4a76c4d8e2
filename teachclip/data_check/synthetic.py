"""Made-up videos that cost as much to decode as real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from teachclip.console import log
from teachclip.data.video.writing import encode_mp4
from teachclip.shapes.rendering import write_video

DISTINCT = 8
"""Different synthetic videos of a kind; further files show the same."""

REALISTIC = {"preset": "medium", "crf": "23", "g": "250", "threads": "2"}
FRAME_RATE = 30


def synthetic_files(folder: Path, kind: str, count: int, *, height: int = 240, seconds: int = 15) -> list[Path]:
    """Write synthetic videos: "realistic", 4:3 with long groups of pictures, or "small", of Shapes.

    `height`, in pixels, and `seconds` are those of realistic ones.
    """
    log(f"writing {min(count, DISTINCT)} {kind} videos")
    sources = []
    for number in range(min(count, DISTINCT)):
        sources.append(folder / f"source-{number}.mp4")
        if kind == "small":
            write_video(sources[-1], 0, number)
        else:
            shown = panned_image(number, seconds * FRAME_RATE)
            encode_mp4(enlarged(shown, height), sources[-1], rate=FRAME_RATE, options=REALISTIC)
    files = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(files):
        # a box that players skip: what has the same content is decoded and encoded once
        box = (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
        path.write_bytes(sources[number % len(sources)].read_bytes() + box)
    return files


def panned_image(seed: int, count: int) -> np.ndarray:
    """Return `count` frames of a shaky camera that pans over a detailed image: uint8 (count, 240, 320, 3)."""
    random = np.random.default_rng(seed)
    image = np.zeros((480, 640, 3))
    for cell in (4, 16, 64):  # detail at several sizes
        squares = random.normal(0, cell**0.7, (480 // cell + 1, 640 // cell, 3))
        image += np.kron(squares, np.ones((cell, cell, 1)))[:480]
    image = 128 + 50 * image / image.std()
    tops = 120 + np.cumsum(random.normal(0, 1.5, count)).astype(int) % 120
    lefts = 160 + (np.cumsum(random.normal(0.7, 1.5, count))).astype(int) % 160
    shown = np.stack([image[top : top + 240, left : left + 320] for top, left in zip(tops, lefts, strict=True)])
    noise = random.normal(0, 2, (16, 240, 320, 1))
    return np.clip(shown + noise[np.arange(count) % 16], 0, 255).astype(np.uint8)


def enlarged(frames: np.ndarray, height: int) -> Iterator[np.ndarray]:
    """Yield frames uint8 (count, rows, columns, 3), each at another height and of the same shape."""
    size = round(frames.shape[2] * height / frames.shape[1] / 2) * 2, height  # an even width, as encoders want
    for frame in frames:  # one by one: 300 of 2160 rows would take 7.5 GB
        yield (
            frame
            if height == len(frame)
            else np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        )
