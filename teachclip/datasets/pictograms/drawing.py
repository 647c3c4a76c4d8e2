"""The frames of a scene, and single frames for the tiny CLIP. Without torch, so that processes start quickly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from teachclip.data.video.writing import encode_mp4
from teachclip.datasets.pictograms.font import Pictogram, image_of
from teachclip.datasets.pictograms.scenes import Event, Scene

SIZE = 96
"""Pixels of a frame's sides."""
RATE = 8
"""Frames per second."""
EVENT_FRAMES = 12
SMALLEST, LARGEST = 28, 42
"""Pixels of a pictogram's longer side, before it grows or shrinks."""


def write_video(path: Path, scene: Scene, font: str) -> None:
    """Write the video of a scene: `EVENT_FRAMES` frames of each event."""
    encode_mp4(scene_frames(scene, font), path, rate=RATE)


def scene_frames(scene: Scene, font: str) -> np.ndarray:
    """Return the frames of a scene: uint8 (events x EVENT_FRAMES, SIZE, SIZE, 3)."""
    rng = np.random.default_rng(scene.seed)
    ground = _ground(rng)
    return np.concatenate([_event_frames(event, ground, rng, font) for event in scene.events])


def single_frame(pictograms: tuple[Pictogram, ...], seed: tuple[int, ...], font: str) -> np.ndarray:
    """Return one frame with one or two pictograms that stand still: uint8 (SIZE, SIZE, 3)."""
    rng = np.random.default_rng(list(seed))
    frame = _ground(rng)
    for pictogram, place in zip(pictograms, _places(rng), strict=False):
        _paste(frame, pictogram, place, rng.uniform(0.6 * SMALLEST, 1.3 * LARGEST), rng.uniform(-25, 25), font)
    return np.asarray(frame)


def _event_frames(event: Event, ground: Image.Image, rng: np.random.Generator, font: str) -> np.ndarray:
    places = _places(rng)
    sides = rng.uniform(SMALLEST, LARGEST, 2)
    turn = float(rng.choice([-1, 1]))
    ground = ground.copy()
    if event.bystander is not None:
        _paste(ground, event.bystander, places[1], sides[1], 0, font)
    frames = []
    for time in np.linspace(-1, 1, EVENT_FRAMES):
        frame = ground.copy()
        place, side, angle = _pose(event.motion, time, places[0], sides[0], turn)
        _paste(frame, event.pictogram, place, side, angle, font)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _pose(motion: str, time: float, place: np.ndarray, side: float, turn: float) -> tuple[np.ndarray, float, float]:
    """Return the centre, side and angle of a pictogram at `time`, -1 to 1 over its event."""
    direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion)
    if direction is not None:
        return place + 0.22 * SIZE * time * np.array(direction), side, 0
    if motion == "grow":
        return place, side * 1.5**time, 0
    if motion == "shrink":
        return place, side * 1.5**-time, 0
    if motion == "spin":
        return place, side, 180 * turn * time
    return place + 0.06 * SIZE * np.array([np.sin(9 * time), 0]), side, 0  # shake


def _places(rng: np.random.Generator) -> np.ndarray:
    """Return two centres that are apart: one in each half of the frame, in either order."""
    left, right = rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.75)
    heights = rng.uniform(0.35, 0.65, 2)
    places = SIZE * np.array([[left, heights[0]], [right, heights[1]]])
    return places[::-1] if rng.random() < 0.5 else places


def _ground(rng: np.random.Generator) -> Image.Image:
    """Return a soft pattern of two colours as background."""
    coarse = rng.random((4, 4, 1))
    one, two = rng.uniform(60, 225, (2, 1, 1, 3))
    pixels = (coarse * one + (1 - coarse) * two).astype(np.uint8)
    return Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _paste(
    frame: Image.Image, pictogram: Pictogram, centre: np.ndarray, side: float, angle: float, font: str
) -> None:
    image = image_of(pictogram.character, font)
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    drawn = image.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
    if angle:
        drawn = drawn.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    corner = tuple(round(c - length / 2) for c, length in zip(centre, drawn.size, strict=True))
    frame.paste(drawn, corner, drawn)
