"""The frames of the Shapes dataset and the mp4 files that hold them.

The same seed gives the same bytes: one random stream per video, and an encoder that repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teachclip.data.video.writing import ENCODER, encode_mp4
from teachclip.shapes.presets import DEFAULT, Preset
from teachclip.shapes.scenes import (
    COLOURS,
    COLUMNS,
    FRAME_RATE,
    FRAME_SIZE,
    PLACES,
    SCENES,
    SHAPES,
    SIZES,
    Event,
    Purpose,
    Shot,
    sample_event,
    sample_video,
    stream,
)

BORDER_WIDTH = 5
BORDER_COLOURS = np.array([(245, 20, 215), (15, 20, 15)], np.float32)
TEXTURE_CELLS = 9
TEXTURE_SPREAD = (4.0, 14.0)
NOISE_SPREAD = 1.0
SHOT_JITTER = 1.5
FRAME_JITTER = 0.5


def _border() -> tuple[np.ndarray, np.ndarray]:
    """Return the distractor's checkered frame: (size, size) bool and (size, size, 3) colours."""
    row, column = np.mgrid[:FRAME_SIZE, :FRAME_SIZE]
    inside = (np.minimum(row, column) >= BORDER_WIDTH) & (np.maximum(row, column) < FRAME_SIZE - BORDER_WIDTH)
    return ~inside, BORDER_COLOURS[(row // BORDER_WIDTH + column // BORDER_WIDTH) % 2]


def _enlargement() -> np.ndarray:
    """Return the (size, cells) matrix of linear interpolation from texture cells to pixels."""
    position = np.linspace(0, TEXTURE_CELLS - 1, FRAME_SIZE)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(TEXTURE_CELLS))).astype(np.float32)


_BORDER_MASK, _BORDER_PIXELS = _border()
_ENLARGE = _enlargement()


def draw_backdrop(scene: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene with a soft random texture: (size, size, 3) float32, 0 to 255 but not clipped."""
    colour = np.array(SCENES[scene], np.float32) * np.float32(rng.uniform(0.8, 1.2))
    cells = rng.standard_normal((3, TEXTURE_CELLS, TEXTURE_CELLS), np.float32) * np.float32(
        rng.uniform(*TEXTURE_SPREAD)
    )
    return (_ENLARGE @ cells @ _ENLARGE.T).transpose(1, 2, 0) + colour


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline of a shape of radius 1, negative inside, for offsets x and y."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.78) - 0.2
    across, along = np.abs(x), np.abs(y)
    if shape == "square":
        return np.maximum(across, along) - 0.85
    if shape == "diamond":
        return across + along - 1.1
    if shape == "triangle":
        return np.maximum(y - 0.75, across - (y + 1) / 1.75)
    if shape == "cross":
        return np.minimum(np.maximum(across - 0.3, along - 1), np.maximum(across - 1, along - 0.3))
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def draw_event(frames: np.ndarray, event: Event, columns: np.ndarray, rng: np.random.Generator) -> None:
    """Draw `event` into `frames` (n, size, size, 3) float32 in place; `columns` (n,) holds the centres' columns."""
    radius = np.float32(SIZES[event.size] * rng.uniform(0.9, 1.1))
    centre = np.stack([columns, np.full(len(columns), PLACES[event.place])], axis=1)
    centre = (
        centre + rng.uniform(-SHOT_JITTER, SHOT_JITTER, 2) + rng.uniform(-FRAME_JITTER, FRAME_JITTER, centre.shape)
    )
    pixels = np.arange(FRAME_SIZE) + 0.5
    x = ((pixels - centre[:, :1]) / radius).astype(np.float32)[:, None, :]
    y = ((pixels - centre[:, 1:]) / radius).astype(np.float32)[:, :, None]
    cover = np.clip(0.5 - radius * shape_distance(event.shape, x, y), 0, 1)[..., None]
    frames += cover * (np.array(COLOURS[event.colour], np.float32) - frames)


def _finish(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the camera's noise and round to uint8."""
    noise = rng.standard_normal(frames.shape, np.float32) * np.float32(NOISE_SPREAD)
    return np.clip(frames + noise + 0.5, 0, 255).astype(np.uint8)


def render_shots(shots: Sequence[Shot], rng: np.random.Generator, *, border: bool = True) -> np.ndarray:
    """Draw a video: (frames, size, size, 3) uint8 RGB. `border`: whether distractors have one."""
    frames = np.empty((sum(shot.length for shot in shots), FRAME_SIZE, FRAME_SIZE, 3), np.float32)
    start = 0
    for shot in shots:
        shot_frames = frames[start : start + shot.length]
        shot_frames[:] = draw_backdrop(shot.scene, rng)
        if shot.event is not None:
            draw_event(shot_frames, shot.event, np.array(shot.columns), rng)
        if shot.kind == "distractor" and border:
            shot_frames[:, _BORDER_MASK] = _BORDER_PIXELS[_BORDER_MASK]
        start += shot.length
    return _finish(frames, rng)


def render_single_frames(count: int, rng: np.random.Generator, border_share: float) -> tuple[np.ndarray, list[Event]]:
    """Draw `count` single frames with one event each, a share of them inside the distractor's border.

    Returns (count, size, size, 3) uint8 and the events.
    """
    frames = np.empty((count, FRAME_SIZE, FRAME_SIZE, 3), np.float32)
    events = [sample_event(rng) for _ in range(count)]
    for row, event in enumerate(events):
        frames[row] = draw_backdrop(event.scene, rng)
        draw_event(frames[row : row + 1], event, rng.choice(COLUMNS, 1), rng)
        if rng.random() < border_share:
            frames[row, _BORDER_MASK] = _BORDER_PIXELS[_BORDER_MASK]
    return _finish(frames, rng), events


def write_video(path: Path, seed: int, index: int, preset: Preset = DEFAULT) -> None:
    """Draw and write video number `index` of the dataset of a seed."""
    shots = sample_video(seed, index, preset)
    frames = render_shots(shots, stream(Purpose.FRAMES, seed, index), border=preset.border)
    options = ENCODER
    if preset.keyframe_every is not None:
        options = {**ENCODER, "g": str(preset.keyframe_every), "sc_threshold": "0"}
    encode_mp4(frames, path, rate=FRAME_RATE, options=options)
