"""Where the gap between a student and its teacher comes from: a ladder of results, each changing one thing.

Every step of the ladder is one text-to-video retrieval with the student's own captions. The parts of the gap are the
differences of neighbouring steps, so they add up to it; a part may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from teachclip.evaluation.metrics import CUTOFFS, rank_metrics
from teachclip.evaluation.retrieval import ranks_from_matrix

RECALLS = tuple(f"recall_at_{cutoff}" for cutoff in CUTOFFS)


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


def measure(scores: np.ndarray | Tensor, caption_videos: np.ndarray) -> dict[str, float]:
    """Return the text-to-video metrics of scores (captions, videos); `caption_videos` (captions,) the right videos."""
    return rank_metrics(ranks_from_matrix(scores, caption_videos).t2v)


def best_step(steps: Sequence[Step]) -> Step:
    """Return the step with the highest R@1; of equals the one with the higher R@5, then R@10, then the first."""
    return max(steps, key=lambda step: tuple(step.metrics[name] for name in RECALLS))


def parts_of_gap(ladder: Sequence[Step]) -> list[dict[str, Any]]:
    """Return the parts of the gap between the first and the last step, in points of each recall.

    One mapping per step but the first: `name` of the step, `label` of the part and its `RECALLS`. They add up to
    `gap_of` the ladder.
    """
    return [
        {"name": after.name, "label": after.part, **_difference(before, after)}
        for before, after in zip(ladder, ladder[1:], strict=False)
    ]


def gap_of(ladder: Sequence[Step]) -> dict[str, float]:
    """Return by how many points each recall of the last step is above the first."""
    return _difference(ladder[0], ladder[-1])


def _difference(before: Step, after: Step) -> dict[str, float]:
    return {name: after.metrics[name] - before.metrics[name] for name in RECALLS}


def verdicts(report: dict[str, Any]) -> list[str]:
    """Say in plain words which parts the gap has, and how sure the numbers are."""
    gap, parts = report["gap"]["recall_at_1"], report["parts"]
    if gap <= 0:
        lines = [f"The student is not behind the teacher at R@1 ({-gap:+.1f} points): there is no gap to explain."]
    else:
        named = ", ".join(f"{part['label']} {part['recall_at_1']:+.1f}" for part in parts)
        lines = [f"The student is {gap:.1f} R@1 behind the teacher, which is: {named}."]
    error = 50 / report["videos"] ** 0.5
    lines.append(
        f"With {report['videos']} videos an R@1 is uncertain by up to {error:.1f} points (one standard error); "
        "differences are less so, for all steps rank the same captions."
    )
    if not report["cross_fitted"]:
        lines.append(
            "Most videos have one caption here, so what is chosen or fitted for a video is measured on the very "
            "caption that it was made for: these steps are upper bounds that no student can reach."
        )
    return lines
