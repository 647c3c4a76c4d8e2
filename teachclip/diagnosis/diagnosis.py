"""Where the gap between a student and its teacher comes from: a ladder of results, each changing one thing.

Every step of the ladder is one text-to-video retrieval with the student's own captions. The parts of the gap are the
differences of neighbouring steps, so they add up to it; a part may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from teachclip.evaluation.metrics import CUTOFFS, rank_metrics
from teachclip.evaluation.retrieval import ranks_from_matrix

RECALLS = tuple(f"recall_at_{cutoff}" for cutoff in CUTOFFS)

MANY_VECTORS = ("closest_frame", "closest_chosen", "text_conditioned")
"""The steps beside the ladder that are not one vector per video."""


class Step(NamedTuple):
    """One retrieval: what was ranked, in words, and what came out."""

    name: str
    label: str
    how: str
    """One sentence: how it was got."""
    metrics: dict[str, float]
    """As `rank_metrics` returns them, text to video."""
    part: str = ""
    """What the difference to the step before is called."""
    captions: int | None = None
    """How many captions it was measured on, where that may be a sample."""


def measure(scores: np.ndarray | Tensor, caption_videos: np.ndarray) -> dict[str, float]:
    """Return the text-to-video metrics of scores (captions, videos). `caption_videos`: (captions,)."""
    return rank_metrics(ranks_from_matrix(scores, caption_videos).t2v)


def best_step(steps: Sequence[Step]) -> Step:
    """Return the step with the highest R@1; of equals the one with the higher R@5, then R@10, then the first."""
    return max(steps, key=lambda step: tuple(step.metrics[name] for name in RECALLS))


def parts_of_gap(ladder: Sequence[Step]) -> list[dict[str, Any]]:
    """Return the parts of the gap between the first and the last step, in points of each recall.

    One mapping per step but the first: the label of the `step`, the `label` of the part and its `RECALLS`. They add
    up to `gap_of` the ladder.
    """
    return [
        {"step": after.label, "label": after.part, **_difference(before, after)} for before, after in pairwise(ladder)
    ]


def gap_of(ladder: Sequence[Step]) -> dict[str, float]:
    """Return by how many points each recall of the last step is above the first."""
    return _difference(ladder[0], ladder[-1])


def _difference(before: Step, after: Step) -> dict[str, float]:
    return {name: after.metrics[name] - before.metrics[name] for name in RECALLS}


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Say in plain words which parts the gap has, and how sure the numbers are."""
    gap, parts = report["gap"]["recall_at_1"], report["parts"]
    if gap <= 0:
        ahead = f"{abs(gap):.1f} points ahead"
        lines = [f"The student is not behind the teacher at R@1 ({ahead}): there is no gap to explain."]
    else:
        named = ", ".join(f"{part['label']} {part['recall_at_1']:+.1f}" for part in parts)
        lines = [f"The student is {gap:.1f} R@1 behind the teacher, which is: {named}."]
    beside = [step for step in report["beside"] if step["captions"] in (None, report["captions"])]  # no samples
    many = [step for step in beside if step["name"] in MANY_VECTORS]
    if many and report["cross_fitted"]:
        most, best = max(many, key=lambda step: step["recall_at_1"]), report["ladder"][-2]["recall_at_1"]
        lines.append(
            f"Several vectors per video with the same features would give {most['recall_at_1']:.1f} R@1 "
            f"({most['label']}), {most['recall_at_1'] - best:+.1f} against the best one vector."
        )
    error = 50 / report["videos"] ** 0.5
    lines.append(
        f"With {report['videos']} videos an R@1 is uncertain by up to {error:.1f} points (one standard error); "
        "differences are less so, for all steps rank the same captions."
    )
    if not report["cross_fitted"]:
        lines.append(
            "Most videos have one caption here, so what is chosen or fitted for a video can only be measured on the "
            "very caption that it was made for. Such results are marked 'in sample': upper bounds that no student "
            "reaches, and no part of the gap. What one vector could still gain needs a split with several captions."
        )
    return lines
