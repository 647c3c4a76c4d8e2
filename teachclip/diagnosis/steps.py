"""The steps of a diagnosis, measured: the ladder from student to teacher, and results beside it.

Where videos have several captions, what is made for a video from captions is measured on others (cross-fitting).
Where they have one, that cannot be: the ladder then holds only what a query may know, and the rest stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from teachclip.diagnosis.choice import (
    MAX_PAIRS,
    Asked,
    choice_steps,
    choice_temperature,
    closest_chosen,
    conditioned_steps,
    frame_sets,
    sharpened,
)
from teachclip.diagnosis.diagnosis import Step, best_step, measure
from teachclip.diagnosis.vectors import (
    FOLDS,
    Features,
    can_cross_fit,
    closest_frame_scores,
    fit_vectors,
    scores_by_fold,
)
from teachclip.scoring.targets import tempered_relevance

FACTORS = (1.0, 3.0)
"""Vectors are fitted at the student's scale times each of these; the better result counts."""


class Steps(NamedTuple):
    """The ladder from student to teacher, whose differences are the parts of the gap, and results beside it."""

    ladder: list[Step]
    beside: list[Step]


def all_steps(
    features: Features,
    asked: Asked | None,
    student: dict[str, float],
    teacher: dict[str, float],
    *,
    max_pairs: int = MAX_PAIRS,
) -> Steps:
    """Measure all steps. `student`, `teacher`: their own text-to-video metrics, as `measure` returns them.

    Without `asked` (a teacher without frame relevance) there is no step of frame choice.
    """
    crossed = can_cross_fit(features.owners)
    first = Step("student", "student", "The exported student as it is.", student)
    conditioned = [] if asked is None else conditioned_steps(features, asked, max_pairs=max_pairs)
    if crossed:
        middle = [] if asked is None else choice_steps(features, asked.own, cross_fitted=True)
        best = best_step([first, *middle, *fitted_steps(features, cross_fitted=True)])
        how = (
            "The best single vector per video that was found, text encoder fixed: the highest R@1 of the steps above "
            f"and of vectors fitted to other captions of the video, at two temperatures. It was: {best.label}. "
            f"{best.how}"
        )
        middle.append(Step("one_vector", "best one vector", how, best.metrics, "a better vector"))
        how = "The teacher as it is. The part is what it finds and the best one vector per video does not."
        return Steps(
            [first, *middle, Step("teacher", "teacher", how, teacher, "beyond one vector")],
            [*_beside(features, asked, cross_fitted=True), *conditioned],
        )
    whole = [step for step in conditioned if step.captions == len(features.texts)]
    how = "The teacher as it is. The part is all that the choice of frames does not explain."
    return Steps(
        [first, *whole, Step("teacher", "teacher", how, teacher, "the rest")],
        [*_beside(features, asked, cross_fitted=False), *conditioned[len(whole) :]],
    )


def _beside(features: Features, asked: Asked | None, *, cross_fitted: bool) -> list[Step]:
    """Return what is no step of the ladder: upper bounds, and one vector per frame with the same features."""
    steps = [sharpened(features)]
    steps += [] if asked is None else choice_steps(features, asked.own, cross_fitted=False)[:1]
    steps += fitted_steps(features, cross_fitted=False, factors=FACTORS[-1:])
    for name, frames in frame_sets(features).items():
        found = measure(closest_frame_scores(features.texts, frames, features.mask), features.owners.cpu().numpy())
        how = f"The highest cosine of the caption with any of {name}: one vector per frame, no teacher."
        steps.append(Step("closest_frame", f"closest of {name}", how, found))
    if asked is not None and cross_fitted:
        temperature = choice_temperature(features, asked.own, cross_fitted=True)
        steps.append(closest_chosen(features, tempered_relevance(asked.own, temperature)))
    return steps


def fitted_steps(features: Features, *, cross_fitted: bool, factors: Sequence[float] = FACTORS) -> list[Step]:
    """Return the results of vectors fitted to captions, at the student's scale times each of `factors`.

    Cross-fitted, they are measured on captions that they were not fitted to; otherwise on the very same.
    """
    steps = []
    for factor in factors:
        scale = factor * features.scale

        def score(keep: Tensor, rows: Tensor, scale: float = scale) -> Tensor:
            texts, owners = features.texts[keep], features.owners[keep]
            return features.texts[rows] @ fit_vectors(features.vectors, texts, owners, scale=scale).T

        scores = scores_by_fold(features, score, cross_fitted=cross_fitted)
        where = (
            f"other captions, in {FOLDS} folds" if cross_fitted else "the same captions: an upper bound of one vector"
        )
        how = (
            "One free vector per video, fitted by gradient descent (Adam, softmax cross-entropy with scale "
            f"{scale:.0f}) to captions of the split, from the student's own vector on; measured on {where}."
        )
        label = f"fitted vectors, scale {scale:.0f}" if cross_fitted else "fitted vectors, in sample"
        steps.append(Step("fitted", label, how, measure(scores, features.owners.cpu().numpy())))
    return steps
