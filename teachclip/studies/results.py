"""What the trials of a study show: choosing settings on validation, and paired differences over the test seeds."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachclip.evaluation.intervals import Interval, paired_difference
from teachclip.reports.tables import difference_cell
from teachclip.studies.certainty import Queries, gallery_hits, video_interval

METRICS: Mapping[str, tuple[str, ...]] = {
    "R@1": ("t2v", "recall_at_1"),
    "R@5": ("t2v", "recall_at_5"),
    "R@10": ("t2v", "recall_at_10"),
    "R@1, v2t": ("v2t", "recall_at_1"),
    "sum": ("sum_of_recalls",),
}
"""Column -> where it is in an evaluation. Text to video unless marked v2t; `sum` is of all six recalls."""

GALLERY = "R@1, gallery"
"""R@1 to expect in a gallery of some of the test videos; measured where the study names their number."""

MIN_QUERIES, MIN_TEST_SEEDS = 50, 3
"""With fewer test queries or test seeds no interval is shown: it would be too wide to mean anything."""


@dataclass(frozen=True)
class Candidate:
    """One setting of a variant at one pooling factor, and its validation recall at 1 on every dev seed.

    `factor` multiplies the attention scores after training; 1 is the student as trained. `scores` is empty where
    nothing was tuned.
    """

    settings: tuple[str, ...]
    factor: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the dev seeds: what is maximised."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class VariantRuns:
    """A variant's evaluations of the test split, one per test seed, and how much it attends to which frames.

    `runs` are mappings as `evaluate` returns them; `frames`, where it was probed, has per seed the mean weight on
    frames of each of `FRAME_KINDS`.
    """

    name: str
    label: str
    runs: Sequence[Mapping[str, Any]]
    frames: Sequence[Mapping[str, float]] = ()
    chosen: Candidate | None = None
    gallery: int | None = None
    """Videos of the gallery that `GALLERY` is of."""

    @property
    def has_gallery(self) -> bool:
        """Whether the study names a gallery and the ranks of queries were kept in every run."""
        return self.gallery is not None and all(run.get("queries") for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """Return `GALLERY`, where there is one, or one of `METRICS`, seed by seed."""
        if metric == GALLERY:
            return [100 * float(_hits(metric, self)(run["queries"]).mean()) for run in self.runs]
        return [_value(run, METRICS[metric]) for run in self.runs]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean, of equal ones the first; a single one as it is.

    Raises ValueError if there is none.
    """
    return candidates[0] if len(candidates) == 1 else max(candidates, key=lambda candidate: candidate.mean)


def size_warnings(queries: int | None, test_seeds: int) -> list[str]:
    """Return why the test results are too few to tell variants apart; nothing where they are enough.

    `queries`: the number of test captions; None where it is not known yet.
    """
    warnings = []
    if queries is not None and queries < MIN_QUERIES:
        warnings.append(
            f"the test split has {queries} queries, fewer than {MIN_QUERIES}: too few to tell variants apart, so no "
            "intervals are shown"
        )
    if test_seeds < MIN_TEST_SEEDS:
        warnings.append(
            f"the study has {test_seeds} test seed(s), fewer than {MIN_TEST_SEEDS}: too few to tell variants apart, "
            "so no intervals are shown"
        )
    return warnings


CUTOFFS = {"R@1": 1, "R@5": 5, "R@10": 10}


def difference(
    variant: VariantRuns,
    baseline: VariantRuns,
    metric: str,
    *,
    interval: bool = True,
    same_videos: bool = True,
) -> dict[str, Any]:
    """Return the paired difference of two variants over their common seeds, with its 95% t interval and its wins.

    `videos` is the 95 % interval over the test videos, as `video_interval` returns it, or None where the ranks of
    queries were not kept or the queries are not the same; `same_videos`: all seeds are tested on the same ones.
    Without `interval` all ends are None.
    """
    values = variant.values(metric)
    found = paired(values, baseline.values(metric), interval=interval)
    kept, other_kept = ([run["queries"] for run in model.runs if run.get("queries")] for model in (variant, baseline))
    videos = None
    if interval and metric in (GALLERY, *CUTOFFS) and len(kept) == len(other_kept) == len(values):
        videos = video_interval(kept, other_kept, _hits(metric, variant), same_videos=same_videos)
    return {
        "variant": variant.name,
        "baseline": baseline.name,
        "label": f"{variant.label} - {baseline.label}",
        "metric": metric,
        **found,
        "videos": videos,
    }


def paired(values: Sequence[float], others: Sequence[float], *, interval: bool = True) -> dict[str, Any]:
    """Return the differences as `values`, their `wins` and `mean`, 95 % t interval, and if that `touches_zero`.

    Without `interval` its ends `low` and `high` are None. Raises ValueError for lists of different lengths or none.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    found = paired_difference(values, others)
    if not interval:
        found = Interval(found.mean, None, None)
    return {
        "values": differences,
        "wins": sum(value > 0 for value in differences),
        **found._asdict(),
        "touches_zero": found.touches_zero,
    }


def verdicts(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in plain words which differences in R@1, of a gallery too, are clear of zero and which are not."""
    lines = []
    for item in (item for item in differences if item["metric"] in ("R@1", GALLERY)):
        count = len(item["values"])
        what = (
            f"{item['label']}: {difference_cell(item)} {item['metric']} over {count} seed{'s' if count > 1 else ''}"
        )
        if item["low"] is None:
            lines.append(f"{what}. Too few seeds or queries for an interval: no difference is shown.")
        elif item["touches_zero"]:
            lines.append(f"{what}. The interval touches zero: no difference is shown.")
        else:
            lines.append(
                f"{what}. Clear of zero: {'better' if item['mean'] > 0 else 'WORSE'}.{_on_other_videos(item)}"
            )
    return lines


def _on_other_videos(item: Mapping[str, Any]) -> str:
    """Return a warning where a difference that all seeds show may be one of these test videos."""
    if item.get("videos") is None or not item["videos"][0] <= 0 <= item["videos"][1]:
        return ""
    return " Other test videos might not show it: their interval holds zero."


def recall_intervals(variants: Sequence[VariantRuns], metric: str = "R@1") -> list[dict[str, Any]]:
    """Return per variant its mean, its 95 % t interval over the seeds and its values.

    Both ends are None where there are fewer than `MIN_TEST_SEEDS` runs.
    """
    rows = []
    for variant in variants:
        values = variant.values(metric)
        interval = paired_difference(values, [0.0] * len(values))
        if len(values) < MIN_TEST_SEEDS:
            interval = Interval(interval.mean, None, None)
        rows.append({"name": variant.name, "label": variant.label, "values": values, **interval._asdict()})
    return rows


def edges(
    chosen: Candidate, candidates: Sequence[Candidate], own: Mapping[str, float] | None = None, *, least: int = 3
) -> list[str]:
    """Name the settings whose chosen value is the smallest or largest of those tried: more might be better.

    Only settings with numbers, of which at least `least` different ones were tried. `own`: by key the value of the
    recipe itself, which is tried wherever a candidate does not set the key.
    """
    own = own or {}
    keys = list(dict.fromkeys(key for candidate in candidates for key in _numbers(candidate)))
    tried = {
        key: {numbers[key] for candidate in candidates if key in (numbers := {**own, **_numbers(candidate)})}
        for key in keys
    }
    values = {**{key: own[key] for key in keys if key in own}, **_numbers(chosen)}
    return [
        f"{key}={value:g}"
        for key, value in values.items()
        if len(tried[key]) >= least and value in (min(tried[key]), max(tried[key]))
    ]


def numbers_of(settings: Sequence[str]) -> dict[str, float]:
    """Return the settings that are numbers, by key."""
    numbers = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        with contextlib.suppress(ValueError):
            numbers[key] = float(value)
    return numbers


def _numbers(candidate: Candidate) -> dict[str, float]:
    return numbers_of(candidate.settings) | {"pooling factor": candidate.factor}


def _hits(metric: str, model: VariantRuns) -> Callable[[Queries], np.ndarray]:
    """Return what says of each query whether it finds its video by a metric, or how likely it is to."""
    if metric == GALLERY:
        videos, gallery = model.runs[0]["videos"], int(model.gallery or 0)
        return lambda queries: gallery_hits(queries["rank"], videos, gallery)
    return lambda queries: np.asarray(queries["rank"]) <= CUTOFFS[metric]


def _value(run: Mapping[str, Any], path: Sequence[str]) -> float:
    value: Any = run
    for key in path:
        value = value[key]
    return float(value)
