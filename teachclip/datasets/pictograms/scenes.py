"""What happens in a video, what captions say of it, and which videos a caption is true of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teachclip.datasets.pictograms.font import Pictogram

MOTIONS = {
    "left": ("moves to the left", "goes left"),
    "right": ("moves to the right", "goes right"),
    "up": ("moves up", "rises"),
    "down": ("moves down", "sinks"),
    "grow": ("grows", "gets larger"),
    "shrink": ("shrinks", "gets smaller"),
    "spin": ("spins", "turns around"),
    "shake": ("shakes", "trembles"),
}
"""What a pictogram may do, and two ways to say it."""
EVENTS = 3
"""Of a video, one after another."""
RANK_OFFSET = 5.0
"""Names are as unevenly frequent as words are: the chance of the one at rank r is in proportion to 1 / (r + this),
Mandelbrot's form of Zipf's law."""


@dataclass(frozen=True)
class Event:
    """A pictogram that does something, and perhaps one beside it that stands still and is in no caption."""

    pictogram: Pictogram
    motion: str
    bystander: Pictogram | None


@dataclass(frozen=True)
class Scene:
    """The events of a video, and the seed of everything about its frames that no caption says."""

    events: tuple[Event, ...]
    seed: int


Clause = tuple[str, str | None]
"""The name of a pictogram and its motion; None: not said."""


@dataclass(frozen=True)
class Caption:
    """A text and what it means: its clauses in the order in which they happen."""

    text: str
    clauses: tuple[Clause, ...]


class Vocabulary:
    """Draws pictograms by their frequency, which a seed gives to each of them."""

    def __init__(self, pictograms: Sequence[Pictogram], seed: int) -> None:
        order = np.random.default_rng([seed, 0]).permutation(len(pictograms))
        self.pictograms = [pictograms[number] for number in order]
        chances = 1 / (np.arange(len(order)) + RANK_OFFSET)
        self._chances = chances / chances.sum()

    def draw(self, rng: np.random.Generator, count: int) -> list[Pictogram]:
        """Return `count` different pictograms, frequent ones more often."""
        rows = rng.choice(len(self.pictograms), count, replace=False, p=self._chances)
        return [self.pictograms[row] for row in rows]


def draw_scene(vocabulary: Vocabulary, seed: Sequence[int]) -> Scene:
    """Return the scene of a seed. Its actors differ; an event has a bystander in half of all cases."""
    rng = np.random.default_rng(list(seed))
    actors, bystanders = vocabulary.draw(rng, EVENTS), vocabulary.draw(rng, EVENTS)
    motions = rng.choice(list(MOTIONS), EVENTS)
    present = rng.random(EVENTS) < 0.5
    events = tuple(
        Event(actor, str(motion), bystander if there else None)
        for actor, motion, bystander, there in zip(actors, motions, bystanders, present, strict=True)
    )
    return Scene(events, int(rng.integers(2**31)))


def draw_captions(scene: Scene, count: int, seed: Sequence[int]) -> list[Caption]:
    """Return `count` different captions of a scene: of one event, or of two in their order."""
    rng = np.random.default_rng(list(seed))
    captions: dict[str, Caption] = {}
    while len(captions) < count:
        caption = _draw_caption(scene, rng)
        captions.setdefault(caption.text, caption)
    return list(captions.values())


def is_true(caption: Caption, scene: Scene) -> bool:
    """Whether the clauses of a caption happen in the scene, in their order."""
    waiting = list(caption.clauses)
    for event in scene.events:
        if waiting and event.pictogram.name == waiting[0][0] and waiting[0][1] in (None, event.motion):
            waiting.pop(0)
    return not waiting


def oracle_recall_at_1(captions: Sequence[Sequence[Caption]], scenes: Sequence[Scene]) -> float:
    """Return the text-to-video recall at 1, in percent, of a model that knows which scenes a caption is true of.

    `captions[i]` are those of `scenes[i]`. Among the scenes that a caption is true of the model can only guess.
    """
    chances = [1 / sum(is_true(caption, scene) for scene in scenes) for of_scene in captions for caption in of_scene]
    return 100 * sum(chances) / len(chances)


def _draw_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    kind = rng.random()
    if kind < 0.5:
        first, second = sorted(rng.choice(len(scene.events), 2, replace=False).tolist())
        one, two = _clause(scene.events[first], rng), _clause(scene.events[second], rng)
        text = f"{one[0]}, then {two[0]}" if rng.random() < 0.5 else f"{two[0]} after {one[0]}"
        return Caption(text, (one[1], two[1]))
    event = scene.events[int(rng.integers(len(scene.events)))]
    if kind < 0.6:
        return Caption(with_article(event.pictogram.name), ((event.pictogram.name, None),))
    text, clause = _clause(event, rng)
    return Caption(text, (clause,))


def _clause(event: Event, rng: np.random.Generator) -> tuple[str, Clause]:
    phrase = MOTIONS[event.motion][int(rng.integers(2))]
    name = event.pictogram.name
    return f"{with_article(name)} {phrase}", (name, event.motion)


def with_article(name: str) -> str:
    """Return "a" or "an" and a name, by its first letter."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
