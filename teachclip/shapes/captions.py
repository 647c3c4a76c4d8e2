"""The captions of the Shapes dataset: their text, what they claim, and how far they identify a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from teachclip.shapes.presets import DEFAULT, Preset
from teachclip.shapes.scenes import ATTRIBUTES, Event, choose

TRAIN_DROP = 0.25
TEST_DROP = 0.10
"""Probability that a caption omits an attribute."""

REDRAW_SHARE = 0.35
"""Probability that the errors of a training caption hit an attribute."""


class Phrase(NamedTuple):
    """A caption and what it claims, as attribute -> word per event that it names."""

    text: str
    claims: tuple[Mapping[str, str], ...]


def describe_event(event: Event, rng: np.random.Generator, drop: float) -> Phrase:
    """Describe an event. Every attribute is omitted with probability `drop`, but colour or shape always stays."""
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
            name: choose(rng, ATTRIBUTES[name]) if rng.random() < REDRAW_SHARE else word
            for name, word in asdict(event).items()
        }
    )


def _describe_events(events: Sequence[Event], rng: np.random.Generator, drop: float) -> Phrase:
    """Describe one event, or several in their order."""
    phrases = [describe_event(event, rng, drop) for event in events]
    return Phrase(" then ".join(phrase.text for phrase in phrases), sum((phrase.claims for phrase in phrases), ()))


def _two_of(events: Sequence[Event], rng: np.random.Generator) -> list[Event]:
    """Sample two events, which stay in their order."""
    if len(events) <= 2:
        return list(events)
    return [events[place] for place in sorted(rng.choice(len(events), 2, replace=False))]


def training_caption(
    events: Sequence[Sequence[Event]], video: int, rng: np.random.Generator, preset: Preset = DEFAULT
) -> Phrase:
    """Write one noisy caption for `video`, a row of `events` (the events of every training video)."""
    if len(events) > 1 and rng.random() < preset.wrong_share:
        video = (video + int(rng.integers(1, len(events)))) % len(events)
    named = list(events[video])
    if len(named) > 1 and rng.random() >= preset.then_share:
        named = [named[int(rng.integers(len(named)))]]
    named = _two_of(named, rng)
    if rng.random() < preset.corrupted_share:
        named = [_corrupt(event, rng) for event in named]
    return _describe_events(named, rng, TRAIN_DROP)


def test_caption(events: Sequence[Event], rng: np.random.Generator, preset: Preset = DEFAULT) -> Phrase:
    """Write one correct caption that names one of a video's events, or two if the preset says so."""
    if preset.test_then:
        return _describe_events(_two_of(events, rng), rng, TEST_DROP)
    return describe_event(events[int(rng.integers(len(events)))], rng, TEST_DROP)


test_caption.__test__ = False  # type: ignore[attr-defined]  # the name is not a test's


def vocabulary() -> list[str]:
    """Return every word that a caption can contain, each once, sorted."""
    words = {"a", "an", "shape", "at", "in", "the", "over", "then"}
    for values in ATTRIBUTES.values():
        words.update(values)
    return sorted(words)


def satisfies(events: Sequence[Event], phrase: Phrase) -> bool:
    """Return whether the claims of `phrase` are true of as many events, in the same order."""
    facts = iter([asdict(event).items() for event in events])
    return all(any(claim.items() <= fact for fact in facts) for claim in phrase.claims)


def oracle_recall_at_1(events: Sequence[Sequence[Event]], phrases: Sequence[Phrase]) -> float:
    """Return the text-to-video recall at 1, in percent, of a model that knows all events.

    `events[i]` and `phrases[i]` belong together. The result is below 100 because a short caption can be true of
    several videos, among which the model can only guess.
    """
    chances = [1 / sum(satisfies(video, phrase) for video in events) for phrase in phrases]
    return 100 * float(np.mean(chances))
