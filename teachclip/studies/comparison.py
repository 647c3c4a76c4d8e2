"""What teaching gains: choosing every arm's settings on validation, and the paired differences over fresh seeds.

An arm is one way to train a student. All arms get the same number of trials on the same development seeds; what is
chosen there is trained once on every fresh seed and measured on its test split.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teachclip.evaluation.intervals import Interval, paired_difference, spread
from teachclip.reports.tables import Table
from teachclip.shapes.scenes import FRAME_KINDS

METRICS: Mapping[str, tuple[str, ...]] = {
    "R@1": ("t2v", "recall_at_1"),
    "R@5": ("t2v", "recall_at_5"),
    "R@10": ("t2v", "recall_at_10"),
    "R@1, v2t": ("v2t", "recall_at_1"),
    "sum": ("sum_of_recalls",),
}
"""Column -> where it is in an evaluation. Text to video unless it says v2t; `sum` is of all six recalls."""


@dataclass(frozen=True)
class Candidate:
    """One setting of an arm at one sharpness, and its validation recall at 1 on every development seed."""

    settings: tuple[str, ...]
    sharpness: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the development seeds: what is maximised."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class ArmRuns:
    """An arm's evaluations of the test split, one per fresh seed, and how much its attention looks at which frames.

    `runs` are mappings as `evaluate` returns them; `frames`, where the arm weighs frames, has per seed the mean
    weight on frames of each of `FRAME_KINDS`.
    """

    name: str
    label: str
    runs: Sequence[Mapping[str, Any]]
    frames: Sequence[Mapping[str, float]] = ()
    chosen: Candidate | None = None

    def values(self, metric: str) -> list[float]:
        """Return one of `METRICS`, seed by seed."""
        return [_value(run, METRICS[metric]) for run in self.runs]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean; of equal ones the first. Raises ValueError if there is none."""
    return max(candidates, key=lambda candidate: candidate.mean)


def difference(arm: ArmRuns, baseline: ArmRuns, metric: str) -> dict[str, Any]:
    """Return the paired difference of two arms over their common seeds, with its 95% t interval and its wins."""
    values, others = arm.values(metric), baseline.values(metric)
    interval: Interval = paired_difference(values, others)
    single = [value - other for value, other in zip(values, others, strict=True)]
    return {
        "arm": arm.name,
        "baseline": baseline.name,
        "label": f"{arm.label} - {baseline.label}",
        "metric": metric,
        "values": single,
        "wins": sum(value > 0 for value in single),
        **interval._asdict(),
        "touches_zero": interval.touches_zero,
    }


def recall_table(title: str, arms: Sequence[ArmRuns]) -> Table:
    """Return mean and standard deviation over the seeds of every metric of every arm."""
    rows = [[arm.label, *(_cell(arm.values(metric)) for metric in METRICS)] for arm in arms]
    return Table(title, ["model", *METRICS], rows)


def difference_table(title: str, differences: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per pair of arms and one column per metric: mean, interval and wins."""
    rows: dict[str, dict[str, str]] = {}
    for item in differences:
        rows.setdefault(item["label"], {})[item["metric"]] = _difference_cell(item)
    metrics = list(dict.fromkeys(item["metric"] for item in differences))
    body = [[label, *(cells[metric] for metric in metrics)] for label, cells in rows.items()]
    return Table(title, ["difference", *metrics], body)


def frame_table(title: str, arms: Sequence[ArmRuns]) -> Table:
    """Return the mean weight that every arm's attention puts on frames of each kind, in percent."""
    rows = [
        [arm.label, *(_cell([100 * frames[kind] for frames in arm.frames]) for kind in FRAME_KINDS)]
        for arm in arms
        if arm.frames
    ]
    return Table(title, ["model", *(f"{kind} frames" for kind in FRAME_KINDS)], rows)


def chosen_table(title: str, arms: Sequence[ArmRuns]) -> Table:
    """Return the settings that validation chose for every arm that was tuned."""
    rows = [
        [arm.label, " ".join(arm.chosen.settings), f"{arm.chosen.sharpness:g}", f"{arm.chosen.mean:.1f}"]
        for arm in arms
        if arm.chosen is not None
    ]
    return Table(title, ["model", "settings", "attention sharpness", "validation R@1"], rows)


def trials_table(title: str, candidates: Mapping[str, Sequence[Candidate]]) -> Table:
    """Return every trial: per arm and setting the best sharpness, and the validation recall at 1 as trained."""
    rows = []
    for label, tried in candidates.items():
        for settings in dict.fromkeys(candidate.settings for candidate in tried):
            same = [candidate for candidate in tried if candidate.settings == settings]
            best, plain = choose(same), next((item for item in same if item.sharpness == 1), None)
            trained = "" if plain is None else f"{plain.mean:.1f}"
            rows.append([label, " ".join(settings), trained, f"{best.mean:.1f}", f"{best.sharpness:g}"])
    return Table(title, ["model", "settings", "as trained", "best sharpness", "which"], rows)


def gain_verdicts(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in plain words which differences in recall at 1 are clear of zero and which are not."""
    lines = []
    for item in (item for item in differences if item["metric"] == "R@1"):
        count = len(item["values"])
        what = f"{item['label']}: {_difference_cell(item)} R@1 over {count} seeds"
        if item["touches_zero"]:
            lines.append(f"{what}. The interval touches zero: no difference is shown.")
        else:
            lines.append(f"{what}. Clear of zero: {'better' if item['mean'] > 0 else 'WORSE'}.")
    return lines


def edges(chosen: Candidate, candidates: Sequence[Candidate], *, least: int = 3) -> list[str]:
    """Name the settings whose chosen value is the smallest or largest of those tried: more might be better.

    Only settings with numbers, of which at least `least` different ones were tried.
    """
    tried: dict[str, set[float]] = {}
    for candidate in candidates:
        for key, value in _numbers(candidate).items():
            tried.setdefault(key, set()).add(value)
    return [
        f"{key}={value:g}"
        for key, value in _numbers(chosen).items()
        if len(tried[key]) >= least and value in (min(tried[key]), max(tried[key]))
    ]


def _numbers(candidate: Candidate) -> dict[str, float]:
    found = {}
    for setting in candidate.settings:
        key, _, value = setting.partition("=")
        with contextlib.suppress(ValueError):
            found[key] = float(value)
    return found | {"sharpness": candidate.sharpness}


def _value(run: Mapping[str, Any], path: Sequence[str]) -> float:
    found: Any = run
    for key in path:
        found = found[key]
    return float(found)


def _cell(values: Sequence[float]) -> str:
    deviation = spread(values)
    return f"{statistics.fmean(values):.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _difference_cell(item: Mapping[str, Any]) -> str:
    wins = f"{item['wins']}/{len(item['values'])}"
    if item["low"] is None:
        return f"{item['mean']:+.1f} ({wins})"
    return f"{item['mean']:+.1f} [{item['low']:+.1f}, {item['high']:+.1f}] {wins}"
