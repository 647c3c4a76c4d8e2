"""The scenes of the Shapes dataset: which events a video shows, in which shots, at which frames.

A video is a sequence of shots. One or two of them show an EVENT (a coloured shape at a place in front of a scene),
which the captions describe. The others are DISTRACTORS (also an event, but inside a checkered border and never
captioned) or EMPTY scenes. To retrieve a video by its caption a model must attend to the right frames: a teacher with
attention over frames does this well, and its student has to learn it. This is the preset `default`; `presets` says
how the others differ.

This module only samples. `captions` writes the captions, `rendering` draws the frames, `dataset` writes the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from teachclip.shapes.presets import DEFAULT, Preset

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 225, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 220, 230),
    "white": (245, 245, 245),
}
"""RGB of an event's shape."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")

SIZES: Mapping[str, int] = {"small": 8, "big": 15}
"""Radius in pixels."""

PLACES: Mapping[str, int] = {"top": 16, "middle": 32, "bottom": 48}
"""Row of the shape's centre. Rows and columns are corners of CLIP's 16-pixel patches: this alignment lets a tiny
vision transformer learn the shapes in a minute."""

SCENES: Mapping[str, tuple[int, int, int]] = {
    "sea": (25, 60, 110),
    "grass": (35, 85, 35),
    "sand": (130, 110, 60),
    "brick": (105, 45, 35),
    "snow": (150, 150, 160),
    "night": (18, 18, 28),
}
"""RGB of a shot's backdrop."""

COLUMNS = (16, 32, 48)
FRAME_SIZE = 64
FRAME_RATE = 8
EVENT_LENGTHS = (4, 7)
FILLER_LENGTHS = (3, 6)

Kind = Literal["event", "distractor", "empty"]
FRAME_KINDS: tuple[Kind, ...] = ("event", "distractor", "empty")
"""What a frame can show, in the order of reports."""


@dataclass(frozen=True)
class Event:
    """One coloured shape at one place in front of one scene; every field is the word that a caption uses."""

    colour: str
    shape: str
    size: str
    place: str
    scene: str


ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "scene": tuple(SCENES),
}
"""The words of every attribute of an Event."""


@dataclass(frozen=True)
class Shot:
    """Consecutive frames with one backdrop.

    `columns` holds the column of the shape's centre in every frame; `event` is None in an empty scene.
    """

    kind: Kind
    scene: str
    event: Event | None
    columns: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.columns)


class Purpose:
    """What a random stream is for. Streams of one seed never overlap, so adding a video changes no other video."""

    SHOTS = 1
    FRAMES = 2
    TRAIN_CAPTION = 3
    TEST_CAPTION = 4
    PRETRAINING = 5


def stream(purpose: int, seed: int, index: int = 0) -> np.random.Generator:
    """Return the random stream of one video (`index`) of the dataset of a seed for one purpose."""
    return np.random.default_rng([purpose, seed, index])


def choose(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Sample one of some words, all equally likely."""
    return words[int(rng.integers(len(words)))]


def sample_event(rng: np.random.Generator) -> Event:
    """Sample one of the 1728 events, all equally likely."""
    return Event(**{name: choose(rng, words) for name, words in ATTRIBUTES.items()})


def _sample_columns(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    """Sample the shape's column in every frame: it crosses to the left or right, or stays in a random column."""
    direction = int(rng.integers(-1, 2))
    if direction == 0:
        return (int(rng.choice(COLUMNS)),) * length
    return tuple(int(32 + 16 * direction * step) for step in np.round(np.linspace(-1, 1, length)))


def _sample_filler_lengths(rng: np.random.Generator, frames: int) -> list[int]:
    """Split `frames` (3 or more) into shots of 3 to 6 frames without a shorter remainder."""
    shortest, longest = FILLER_LENGTHS
    lengths = []
    while frames:
        fitting = [n for n in range(shortest, longest + 1) if n == frames or frames - n >= shortest]
        lengths.append(int(rng.choice(fitting)))
        frames -= lengths[-1]
    return lengths


def sample_shots(rng: np.random.Generator, preset: Preset = DEFAULT) -> tuple[Shot, ...]:
    """Sample the shots of a video. Their lengths add up to the preset's frames; some of them show an event."""
    shots = []
    for _ in range(int(rng.integers(preset.events[0], preset.events[1] + 1))):
        event = sample_event(rng)
        length = int(rng.integers(EVENT_LENGTHS[0], EVENT_LENGTHS[1] + 1))
        shots.append(Shot("event", event.scene, event, _sample_columns(rng, length)))
    for length in _sample_filler_lengths(rng, preset.frames - sum(shot.length for shot in shots)):
        event = sample_event(rng)
        columns = _sample_columns(rng, length)
        if rng.random() < preset.distractor_share:
            shots.append(Shot("distractor", event.scene, event, columns))
        else:
            shots.append(Shot("empty", event.scene, None, columns))
    return tuple(shots[i] for i in rng.permutation(len(shots)))


def sample_video(seed: int, index: int, preset: Preset = DEFAULT) -> tuple[Shot, ...]:
    """Return the shots of video number `index` of the dataset of a seed.

    With twins, a video of odd index has the shots of the one before, with the first and last event exchanged.
    """
    if not preset.twins:
        return sample_shots(stream(Purpose.SHOTS, seed, index), preset)
    shots = list(sample_shots(stream(Purpose.SHOTS, seed, index // 2), preset))
    if index % 2:
        places = [place for place, shot in enumerate(shots) if shot.kind == "event"]
        first, last = places[0], places[-1]
        shots[first], shots[last] = shots[last], shots[first]
    return tuple(shots)


def events_of(shots: Sequence[Shot]) -> tuple[Event, ...]:
    """Return the captioned events in the order in which they appear."""
    return tuple(shot.event for shot in shots if shot.kind == "event" and shot.event is not None)
