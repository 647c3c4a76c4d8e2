"""The arms that `teachclip measure-gain` compares, and the settings that each of them may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Settings = tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One way to train a student. `fixed` makes it what it is; `grid` holds the settings to choose from."""

    name: str
    label: str
    fixed: Settings
    grid: tuple[Settings, ...]


@dataclass(frozen=True)
class Family:
    """Arms of one architecture, compared with each other and tuned with equally many settings."""

    name: str
    label: str
    arms: tuple[Arm, ...]

    def arm(self, name: str) -> Arm:
        """Return an arm by name."""
        return next(arm for arm in self.arms if arm.name == name)


def grid(values: Mapping[str, Sequence[str]]) -> tuple[Settings, ...]:
    """Return all combinations of overrides, from the values of every recipe key."""
    return tuple(
        tuple(f"{key}={value}" for key, value in zip(values, combination, strict=True))
        for combination in product(*values.values())
    )


UNDISTILLED = ("teachers=[]", "losses.contrastive.weight=1")
OPTIONS = ("losses.frame_text.targets=video",)
FRAMES_ALONE = (
    *OPTIONS,
    *("losses.contrastive.weight=0", "losses.video_text.weight=0", "losses.frame_text.weight=1"),
)
COMPARISONS = (
    ("distilled", "undistilled"),
    ("distilled_options", "undistilled"),
    ("distilled_options", "distilled"),
    ("frames_alone", "undistilled"),
    ("frames_alone", "distilled_options"),
)


def family(
    name: str, label: str, fixed: Settings, *, rates: tuple[Settings, ...], matched: tuple[Settings, ...]
) -> Family:
    """Return the arms of one architecture.

    `rates` is the grid of the arms whose match temperature is the published 1, `matched` of those that choose it.
    Raises ValueError if an arm would get more trials than another.
    """
    if len(rates) != len(matched):
        raise ValueError(f"{name}: {len(rates)} settings for some arms, {len(matched)} for others")
    return Family(
        name,
        label,
        (
            Arm("undistilled", "undistilled", (*fixed, *UNDISTILLED), rates),
            Arm("distilled", "distilled as published", fixed, rates),
            Arm("distilled_options", "distilled with the two options", (*fixed, *OPTIONS), matched),
            Arm("frames_alone", "the options, frame term alone", (*fixed, *FRAMES_ALONE), matched),
        ),
    )


_LR, _HEAD, _STEPS = "optimizer.lr", "optimizer.attention_lr", "train.steps"
_MATCH = "losses.frame_text.temperature"
PUBLISHED = family(
    "published",
    "The student as published: 4 temporal blocks",
    (),
    rates=(
        *grid({_LR: ("3e-5", "3e-4"), _HEAD: ("1e-3", "3e-3"), _STEPS: ("300",)}),
        *grid({_LR: ("1e-4",), _HEAD: ("3e-3",), _STEPS: ("300",)}),
        *grid({_LR: ("3e-5",), _HEAD: ("3e-3",), _STEPS: ("600",)}),
    ),
    matched=(
        *grid({_LR: ("3e-5",), _HEAD: ("3e-3",), _STEPS: ("300",), _MATCH: ("0.03", "0.1", "0.33")}),
        *grid({_LR: ("3e-5",), _HEAD: ("1e-3",), _STEPS: ("300",), _MATCH: ("0.1",)}),
        *grid({_LR: ("3e-5",), _HEAD: ("3e-3",), _STEPS: ("600",), _MATCH: ("0.03", "0.1")}),
    ),
)
CONTROL = family(
    "no_blocks",
    "Control: the student without temporal blocks",
    ("student.temporal_layers=0",),
    rates=grid({_HEAD: ("1e-3", "3e-3", "1e-2"), _STEPS: ("300", "900")}),
    matched=grid({_HEAD: ("3e-3",), _STEPS: ("300", "900"), _MATCH: ("0.03", "0.1", "0.33")}),
)
FAMILIES = (PUBLISHED, CONTROL)
