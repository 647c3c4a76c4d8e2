"""Presets of the Shapes dataset: variants that differ in what is hard, so that no method is fitted to one of them.

A preset is an entry of `PRESETS`: a name and the numbers in which it differs from `default`. All presets sample the
same events and share the words of their captions, and so can share one tiny CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from teachclip.errors import DataError
from teachclip.registry import closest


@dataclass(frozen=True)
class Preset:
    """The numbers that describe the videos and captions of a dataset. The defaults are those of `default`."""

    summary: str
    """One line for `--help`; says what is hard."""

    overrides: tuple[str, ...] = ()
    """What a recipe for `default` must override, as KEY=VALUE."""

    train_videos: int = 700
    test_videos: int = 300
    """How many videos there are unless the user sets it."""

    frames: int = 36
    """Frames per video, at 8 per second."""

    events: tuple[int, int] = (1, 2)
    """Fewest and most events per video."""

    distractor_share: float = 0.9
    """Probability that a shot without an event is a distractor; otherwise it is an empty scene."""

    border: bool = True
    """Whether distractors have the checkered border that distinguishes them from events in a single frame."""

    train_captions: int = 8
    """Captions per training video; a test video always has 5."""

    then_share: float = 0.2
    """Share of the training captions of videos with several events that name two of them, "A then B"."""

    test_then: bool = False
    """Whether test captions name two events too; otherwise one."""

    twins: bool = False
    """Whether videos come in pairs with the same shots, the first and the last event exchanged in the second."""

    wrong_share: float = 0.05
    """Share of the training captions that belong to another video."""

    corrupted_share: float = 0.10
    """Share of the training captions that contain errors."""

    keyframe_every: int | None = None
    """Frames from a keyframe to the next; None: where the encoder puts them, which is where a shot begins."""


DEFAULT = Preset("1 or 2 events per video; most other shots are distractors with a border")

PRESETS: Mapping[str, Preset] = {
    "default": DEFAULT,
    # Frame attention that judges one frame at a time can only learn to skip empty scenes here, so there are more of
    # them: with the 90 % of `default` nearly every frame would show an event, about eight per video.
    "plain": Preset(
        "distractors look like events: no single frame shows which are captioned", border=False, distractor_share=0.45
    ),
    "one_caption": Preset("one training caption per video in place of 8", train_captions=1),
    "noisy": Preset(
        "20 % of training captions belong to another video, 30 % contain errors", wrong_share=0.2, corrupted_share=0.3
    ),
    "long": Preset(
        "videos of twice the length with 2 to 4 events", overrides=("frames.count=24",), frames=72, events=(2, 4)
    ),
    "rare_keyframes": Preset("a keyframe every 12 frames, wherever shots begin", keyframe_every=12),
    "many": Preset("1600 training videos in place of 400, and 300 more for validation", train_videos=1900),
    # The tiny CLIP has never seen "then", and its feature of "A then B" is mostly that of A. A student finds the
    # right twin by weighting the event that comes first, for which it needs a temporal transformer and a higher
    # learning rate than `default`. A model without one can only guess between twins.
    "order": Preset(
        "every video has a twin with its two events swapped; captions tell their order",
        overrides=("optimizer.lr=3e-4",),
        events=(2, 2),
        then_share=1.0,
        test_then=True,
        twins=True,
    ),
}


def find_preset(name: str) -> Preset:
    """Return the preset of a name. Raises DataError, with the nearest name, if there is none."""
    if name not in PRESETS:
        raise DataError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}{closest(name, PRESETS)}")
    return PRESETS[name]


def preset_settings(name: str) -> dict[str, Any]:
    """Return what a manifest records of a preset: nothing for `default`, else its name and what differs from it.

    The numbers of videos are recorded elsewhere; summary and overrides change no file.
    """
    if name == "default":
        return {}
    excluded = ("summary", "overrides", "train_videos", "test_videos")
    default = asdict(DEFAULT)
    numbers = asdict(find_preset(name)).items()
    return {
        "preset": name,
        "preset_numbers": {key: value for key, value in numbers if key not in excluded and value != default[key]},
    }
