"""The embedded world "shapes": what happens in its videos and what their captions say.

A video is a row of shots. One or two of them show an EVENT (a coloured shape at a place before a scene), which the
captions describe. The others are DISTRACTORS (an event too, but inside a checkered border and never captioned) or
EMPTY scenes. To find a video by its caption a model must look at the right frames, which is what a teacher with
attention over frames does well and what its student has to learn.

Nothing here draws or writes: see `shapes_video` for pictures and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np

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
"""Row of the shape's centre. Rows and columns are corners of CLIP's 16-pixel patches: this alignment is what lets a
tiny vision transformer learn the shapes in a minute."""

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
FRAME_COUNT = 36
FRAME_RATE = 8
EVENT_LENGTHS = (4, 7)
FILLER_LENGTHS = (3, 6)
DISTRACTOR_SHARE = 0.9
"""Probability that a shot without an event is a distractor; otherwise it is an empty scene."""

TRAIN_DROP = 0.25
TEST_DROP = 0.10
"""Probability that a caption leaves an attribute out."""

THEN_SHARE = 0.2
WRONG_SHARE = 0.05
CORRUPTED_SHARE = 0.10
REDRAW_SHARE = 0.35
"""Training captions of two-event videos that name both; that belong to another video; with errors; and the
probability that such an error hits an attribute."""

Kind = Literal["event", "distractor", "empty"]


@dataclass(frozen=True)
class Event:
    """One coloured shape at one place before one scene; every field is the word that a caption uses."""

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
    """Some frames on end with one backdrop.

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


class Phrase(NamedTuple):
    """A caption and what it claims: attribute -> word, per event that it names."""

    text: str
    claims: tuple[Mapping[str, str], ...]


class Purpose:
    """What a random stream is for. Streams of one seed never overlap, so adding a video changes no other video."""

    STORY = 1
    PICTURE = 2
    TRAIN_CAPTION = 3
    TEST_CAPTION = 4
    PRETRAINING = 5


def stream(purpose: int, seed: int, index: int = 0) -> np.random.Generator:
    """Return the random stream of one video (`index`) of one world (`seed`) for one purpose."""
    return np.random.default_rng([purpose, seed, index])


def _choose(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def sample_event(rng: np.random.Generator) -> Event:
    """Draw one of the 1728 events, all equally likely."""
    return Event(**{name: _choose(rng, words) for name, words in ATTRIBUTES.items()})


def _sample_columns(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    """Draw where the shape is in every frame: it crosses to the left or right, or stays in a random column."""
    direction = int(rng.integers(-1, 2))
    if direction == 0:
        return (int(rng.choice(COLUMNS)),) * length
    return tuple(int(32 + 16 * direction * step) for step in np.round(np.linspace(-1, 1, length)))


def _sample_filler_lengths(rng: np.random.Generator, frames: int) -> list[int]:
    """Cut `frames` (3 or more) into shots of 3..6 frames so that no shorter rest is left over."""
    shortest, longest = FILLER_LENGTHS
    lengths = []
    while frames:
        fitting = [n for n in range(shortest, longest + 1) if n == frames or frames - n >= shortest]
        lengths.append(int(rng.choice(fitting)))
        frames -= lengths[-1]
    return lengths


def sample_shots(rng: np.random.Generator) -> tuple[Shot, ...]:
    """Draw the shots of a video; their lengths add up to FRAME_COUNT, one or two of them show an event."""
    shots = []
    for _ in range(int(rng.integers(1, 3))):
        event = sample_event(rng)
        length = int(rng.integers(EVENT_LENGTHS[0], EVENT_LENGTHS[1] + 1))
        shots.append(Shot("event", event.scene, event, _sample_columns(rng, length)))
    for length in _sample_filler_lengths(rng, FRAME_COUNT - sum(shot.length for shot in shots)):
        event = sample_event(rng)
        columns = _sample_columns(rng, length)
        if rng.random() < DISTRACTOR_SHARE:
            shots.append(Shot("distractor", event.scene, event, columns))
        else:
            shots.append(Shot("empty", event.scene, None, columns))
    return tuple(shots[i] for i in rng.permutation(len(shots)))


def events_of(shots: Sequence[Shot]) -> tuple[Event, ...]:
    """Return the captioned events in the order in which they are seen."""
    return tuple(shot.event for shot in shots if shot.kind == "event" and shot.event is not None)


def describe_event(event: Event, rng: np.random.Generator, drop: float) -> Phrase:
    """Say `event` in words, leaving every attribute out with probability `drop`; colour or shape always stays."""
    kept: dict[str, str] = {}
    while "colour" not in kept and "shape" not in kept:
        kept = {name: word for name, word in asdict(event).items() if rng.random() >= drop}
    words = [kept[name] for name in ("size", "colour") if name in kept] + [kept.get("shape", "shape")]
    words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    if "place" in kept:
        words += ["in" if kept["place"] == "middle" else "at", "the", kept["place"]]
    if "scene" in kept:
        words += ["over", kept["scene"]]
    return Phrase(" ".join(words), (kept,))


def _corrupt(event: Event, rng: np.random.Generator) -> Event:
    return Event(
        **{
            name: _choose(rng, ATTRIBUTES[name]) if rng.random() < REDRAW_SHARE else word
            for name, word in asdict(event).items()
        }
    )


def training_caption(events: Sequence[Sequence[Event]], video: int, rng: np.random.Generator) -> Phrase:
    """Write one noisy caption for `video`, a row of `events` (the events of every training video)."""
    if len(events) > 1 and rng.random() < WRONG_SHARE:
        video = (video + int(rng.integers(1, len(events)))) % len(events)
    named = list(events[video])
    if len(named) > 1 and rng.random() >= THEN_SHARE:
        named = [named[int(rng.integers(len(named)))]]
    if rng.random() < CORRUPTED_SHARE:
        named = [_corrupt(event, rng) for event in named]
    phrases = [describe_event(event, rng, TRAIN_DROP) for event in named]
    return Phrase(" then ".join(phrase.text for phrase in phrases), sum((phrase.claims for phrase in phrases), ()))


def test_caption(events: Sequence[Event], rng: np.random.Generator) -> Phrase:
    """Write one correct caption that names one of a video's events."""
    return describe_event(events[int(rng.integers(len(events)))], rng, TEST_DROP)


test_caption.__test__ = False  # type: ignore[attr-defined]  # the name is not a test's


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, each once."""
    words = {"a", "an", "shape", "at", "in", "the", "over", "then"}
    for values in ATTRIBUTES.values():
        words.update(values)
    return sorted(words)


def satisfies(events: Sequence[Event], phrase: Phrase) -> bool:
    """Tell whether every claim of `phrase` is true of some event."""
    facts = [asdict(event).items() for event in events]
    return all(any(claim.items() <= fact for fact in facts) for claim in phrase.claims)


def oracle_recall_at_1(events: Sequence[Sequence[Event]], phrases: Sequence[Phrase]) -> float:
    """Return the text-to-video recall at 1, in percent, of someone who knows all: row i of both belongs together.

    It is below 100 because a short caption can be true of several videos.
    """
    shares = [1 / sum(satisfies(video, phrase) for video in events) for phrase in phrases]
    return 100 * float(np.mean(shares))
