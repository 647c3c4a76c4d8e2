"""The steps of a diagnosis, measured: the ladder from student to teacher, and results beside it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachclip.evaluation.diagnosis import Step, best_step, measure
from teachclip.evaluation.diagnosis_vectors import (
    FOLDS,
    Features,
    can_cross_fit,
    caption_blocks,
    chosen_shares,
    closest_frame_scores,
    conditioned_scores,
    fit_vectors,
    pair_relevance,
    pool,
    scores_by_fold,
)
from teachclip.scorer import Teacher, Tokens

MAX_PAIRS = 1_000_000
"""The most pairs that a teacher is asked for its frame relevance of; a sample of the captions where there are more."""
FACTORS = (1.0, 3.0)
"""Vectors are fitted at the student's scale times each of these; the better result counts."""


class Asked(NamedTuple):
    """A teacher that gives frame relevance, with its tokens of the split."""

    teacher: Teacher
    texts: Tokens
    videos: Tokens
    temperature: float
    own: Tensor
    """(captions, frames): its relevance for each caption's own video."""


def ladder_steps(
    features: Features, asked: Asked | None, student: dict[str, float], teacher: dict[str, float]
) -> list[Step]:
    """Return the steps from the student to the teacher, whose own text-to-video metrics are given.

    Without `asked` (a teacher without frame relevance) there is no step of frame choice.
    """
    crossed = can_cross_fit(features.owners)
    ladder = [Step("student", "student", "The exported student as it is.", student)]
    if asked is not None:
        ladder += _choice_steps(features, asked.own, cross_fitted=crossed)
    best = best_step([*ladder, *fitted_steps(features, cross_fitted=crossed)])
    how = (
        "The best single vector per video that was found, text tower fixed: the highest R@1 of the steps above and "
        f"of vectors fitted to captions by gradient descent, at two temperatures. It was: {best.label}."
    )
    ladder.append(Step("one_vector", "best one vector", how, best.metrics, "a better vector"))
    how = "The teacher as it is. The part is all that it finds and the best one vector per video does not."
    return [*ladder, Step("teacher", "teacher", how, teacher, "beyond one vector")]


def _choice_steps(features: Features, relevance: Tensor, *, cross_fitted: bool) -> list[Step]:
    """Return the steps that pool the student's frames, then the tower's, by the teacher's choice of frames."""
    whose = "of the video's OTHER captions" if cross_fitted else "of all captions of the video, the query included,"
    how = (
        "The student's frames, pooled by the mean of the teacher's frame relevance "
        f"{whose} instead of by the student's own shares. It knows captions of the split: no model can do that."
    )

    def pooled(frames: Tensor) -> dict[str, float]:
        scores = scores_by_fold(
            features,
            lambda keep: pool(frames, chosen_shares(relevance, features, keep)),
            cross_fitted=cross_fitted,
        )
        return measure(scores, features.owners.cpu().numpy())

    steps = [Step("frame_choice", "+ teacher's choice of frames", how, pooled(features.frames), "frame selection")]
    if features.tower_frames is not None:
        how = "The same choice, over the frames as the tower gives them, before the temporal transformer."
        found = pooled(features.tower_frames)
        steps.append(Step("tower_frames", "+ frames as the tower gives them", how, found, "temporal transformer"))
    return steps


def fitted_steps(features: Features, *, cross_fitted: bool) -> list[Step]:
    """Return vectors fitted to captions, at each of `FACTORS`, measured on captions they were not fitted to.

    Not `cross_fitted`, they are measured on the very captions that they were fitted to: an upper bound.
    """
    steps = []
    for factor in FACTORS:
        scale = factor * features.scale

        def make(keep: Tensor, scale: float = scale) -> Tensor:
            return fit_vectors(features.vectors, features.texts[keep], features.owners[keep], scale=scale)

        scores = scores_by_fold(features, make, cross_fitted=cross_fitted)
        where = f"measured on other captions ({FOLDS} folds)" if cross_fitted else "measured on the same captions"
        how = (
            "One free vector per video, fitted by gradient descent (Adam, softmax cross-entropy with scale "
            f"{scale:.0f}) to captions of the split from the student's own vector on; {where}."
        )
        label = f"fitted vectors, scale {scale:.0f}" + ("" if cross_fitted else ", in sample")
        steps.append(Step("fitted", label, how, measure(scores, features.owners.cpu().numpy())))
    return steps


def steps_beside(features: Features, asked: Asked | None) -> list[Step]:
    """Return results that are no step of the ladder: bounds, and many vectors per video with the same features."""
    owners = features.owners.cpu().numpy()
    steps = []
    if can_cross_fit(features.owners):
        if asked is not None:
            shares = chosen_shares(asked.own, features, torch.ones(len(owners), dtype=torch.bool))
            how = "As in the ladder, but by the relevance of all captions, the query included: an upper bound."
            found = measure(features.texts @ pool(features.frames, shares).T, owners)
            steps.append(Step("frame_choice_in_sample", "teacher's choice, query included", how, found))
        found_here = best_step(fitted_steps(features, cross_fitted=False))
        how = "Vectors fitted to all captions and measured on these: an upper bound of one vector per video."
        steps.append(Step("fitted_in_sample", "fitted vectors, in sample", how, found_here.metrics))
    for name, frames in _frame_sets(features).items():
        found = measure(closest_frame_scores(features.texts, frames, features.mask), owners)
        how = f"The highest cosine of the caption with any of {name}: one vector per frame, no teacher."
        steps.append(Step("closest_frame", f"closest of {name}", how, found))
    return steps + (conditioned_steps(features, asked) if asked is not None else [])


def _frame_sets(features: Features) -> dict[str, Tensor]:
    sets = {"the student's frames": features.frames}
    return sets if features.tower_frames is None else {**sets, "the tower's frames": features.tower_frames}


def conditioned_steps(features: Features, asked: Asked, *, max_pairs: int = MAX_PAIRS) -> list[Step]:
    """Return the results of pooling every video anew for each caption, by the teacher's relevance of that pair."""
    videos, captions = len(features.vectors), len(features.texts)
    wanted = max(1, min(captions, max_pairs // videos))
    rows = np.unique(np.linspace(0, captions - 1, wanted).astype(np.int64))
    sets = _frame_sets(features)
    parts: dict[str, list[Tensor]] = {name: [] for name in sets}
    for block in caption_blocks(rows, videos):
        pairs = np.repeat(block, videos), np.tile(np.arange(videos), len(block))
        found = pair_relevance(asked.teacher, asked.texts, asked.videos, *pairs, temperature=asked.temperature)
        relevance = found.reshape(len(block), videos, -1).to(features.frames.device)
        for name, frames in sets.items():
            parts[name].append(conditioned_scores(features.texts[block], frames, relevance))
    owners = features.owners.cpu().numpy()[rows]
    sample = "" if len(rows) == captions else f" A sample of {len(rows)} of the {captions} captions."
    how = "pooled anew for every caption by the teacher's relevance for that pair: many vectors per video."
    return [
        Step("text_conditioned", f"{name}, pooled per caption", f"{name} {how}{sample}".capitalize(), measured)
        for name, measured in ((name, measure(torch.cat(found), owners)) for name, found in parts.items())
    ]
