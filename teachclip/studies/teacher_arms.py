"""The arms of `teachclip measure-teachers`: nobody, each teacher of the recipe, and two together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from teachclip.studies.gain_arms import UNDISTILLED, Arm, Family, Settings, grid

RECIPE = "shapes_teachers.yaml"
TAUGHT: Mapping[str, tuple[str, ...]] = {
    "xclip": ("xclip",),
    "ts2net": ("ts2net",),
    "xpool": ("xpool",),
    "clip2video": ("clip2video",),
    "xclip_ts2net": ("xclip", "ts2net"),
}
"""Arm -> labels of the teachers in `RECIPE` that teach it."""

NAMES = {"xclip": "X-CLIP", "ts2net": "TS2-Net", "xpool": "X-Pool", "clip2video": "CLIP2Video"}
TEMPERED = "_tempered"
"""End of the name of an arm that chooses its frame temperature."""

_RATES = grid(
    {
        "optimizer.lr": ("3e-5",),
        "optimizer.attention_lr": ("1e-3", "3e-3", "1e-2"),
        "train.steps": ("300",),
    }
)
_TEMPERATURES = ("0.3", "0.1", "0.03")


def label_of(arm: str) -> str:
    """Return who teaches an arm, for people."""
    if arm == "undistilled":
        return "nobody (undistilled)"
    names = " + ".join(NAMES[label] for label in TAUGHT[arm.removesuffix(TEMPERED)])
    return f"{names}, frame temperature chosen" if arm.endswith(TEMPERED) else f"{names}, as published"


def _tempered(labels: Sequence[str]) -> tuple[Settings, ...]:
    """Return as many settings as there are rates: the middle rate, and one frame temperature for all who teach."""
    places = [list(NAMES).index(label) for label in labels]  # the recipe lists the teachers in this order
    return tuple(
        (*_RATES[1], *(f"teachers.{place}.frame_temperature={temperature}" for place in places))
        for temperature in _TEMPERATURES
    )


def teacher_family() -> Family:
    """Return all arms. Each is tuned with three settings: rates of the frame weighting, or frame temperatures."""
    arms = [Arm("undistilled", label_of("undistilled"), UNDISTILLED, _RATES)]
    for name, labels in TAUGHT.items():
        fixed = (f"teaching.only=[{','.join(labels)}]",)
        arms.append(Arm(name, label_of(name), fixed, _RATES))
        arms.append(Arm(name + TEMPERED, label_of(name + TEMPERED), fixed, _tempered(labels)))
    return Family("teachers", "The student as published, taught by one teacher after another", tuple(arms))
