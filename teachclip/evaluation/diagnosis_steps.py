"""The steps of a diagnosis, measured: the ladder from student to teacher, and results beside it.

Where videos have several captions, what is made for a video from captions is measured on others (cross-fitting).
Where they have one, that cannot be: the ladder then holds only what a query may know, and the rest stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from teachclip.targets import tempered_relevance

MAX_PAIRS = 2**20
"""Of how many pairs a teacher is asked for its frame relevance at most; a sample of captions where there are more."""
FACTORS = (1.0, 3.0)
"""Vectors are fitted at the student's scale times each of these; the better result counts."""
SHARPER = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Temperatures at which a teacher's choice of frames is tried, for some teachers' relevance is nearly uniform."""
POWERS = (0.5, 2.0, 3.0, 5.0)
"""Powers of the student's own shares that are tried."""
TEMPORAL = "temporal transformer"


class Asked(NamedTuple):
    """A teacher that gives frame relevance, with its tokens of the split."""

    teacher: Teacher
    texts: Tokens
    videos: Tokens
    temperature: float
    own: Tensor
    """(captions, frames): its relevance for each caption's own video."""


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
            "The best single vector per video that was found, text tower fixed: the highest R@1 of the steps above "
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
    steps = [_sharpened(features)]
    steps += [] if asked is None else choice_steps(features, asked.own, cross_fitted=False)[:1]
    steps += fitted_steps(features, cross_fitted=False, factors=FACTORS[-1:])
    for name, frames in _frame_sets(features).items():
        found = measure(closest_frame_scores(features.texts, frames, features.mask), features.owners.cpu().numpy())
        how = f"The highest cosine of the caption with any of {name}: one vector per frame, no teacher."
        steps.append(Step("closest_frame", f"closest of {name}", how, found))
    if asked is not None and cross_fitted:
        steps.append(_closest_chosen(features, asked.own))
    return steps


def choice_steps(features: Features, relevance: Tensor, *, cross_fitted: bool) -> list[Step]:
    """Return the steps that pool the student's frames, then the tower's, by the teacher's choice of frames.

    `relevance`: (captions, frames), the teacher's for each caption's own video.
    """
    whose = "of the video's OTHER captions" if cross_fitted else "of all captions of the video, the query included,"
    how = (
        f"The student's frames, pooled by the mean of the teacher's frame relevance {whose} instead of by the "
        "student's own shares. It knows captions of the split"
        + (": a diagnosis, not a model." if cross_fitted else " and the query itself: an upper bound.")
    )
    label = "+ teacher's choice of frames" if cross_fitted else "teacher's choice of frames, in sample"

    def pooled(frames: Tensor, temperature: float) -> dict[str, float]:
        sharper = tempered_relevance(relevance, temperature)
        scores = scores_by_fold(
            features,
            lambda keep, rows: features.texts[rows] @ pool(frames, chosen_shares(sharper, features, keep)).T,
            cross_fitted=cross_fitted,
        )
        return measure(scores, features.owners.cpu().numpy())

    tried = [Step(f"{t:g}", label, "", pooled(features.frames, t), "frame selection") for t in SHARPER]
    best = best_step(tried)
    steps = [best._replace(name="frame_choice", how=f"{how} {_at(best.name)}")]
    if features.tower_frames is not None:
        how = "The same choice, over the frames as the tower gives them, before the temporal transformer."
        found = pooled(features.tower_frames, float(best.name))
        steps.append(Step("tower_frames", "+ frames as the tower gives them", how, found, TEMPORAL))
    return steps


def _at(temperature: str) -> str:
    return f"The relevance is taken at temperature {temperature}, the best here of {_listed(SHARPER)}."


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _sharpened(features: Features) -> Step:
    """Return the result of the student's own shares, sharper or flatter than it was trained with."""
    owners = features.owners.cpu().numpy()
    tried = []
    for power in POWERS:
        shares = tempered_relevance(features.shares, 1 / power)
        found = measure(features.texts @ pool(features.frames, shares).T, owners)
        how = (
            f"The student's own frames and shares, each share to the power {power:g} and brought to sum 1 again; the "
            f"best here of the powers {_listed(POWERS)}. It needs no teacher and no caption: choose it on validation."
        )
        tried.append(Step("sharpened", "student, its shares sharpened", how, found))
    return best_step(tried)


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


def _closest_chosen(features: Features, relevance: Tensor) -> Step:
    """Return the result of one vector for each of those frames that the teacher chooses for other captions."""

    def score(keep: Tensor, rows: Tensor) -> Tensor:
        equal = 1 / features.mask.sum(dim=1, keepdim=True).clamp_min(1)
        chosen = features.mask & (chosen_shares(relevance, features, keep) >= equal / 2)
        return closest_frame_scores(features.texts[rows], features.frames, chosen | ~chosen.any(dim=1, keepdim=True))

    found = measure(scores_by_fold(features, score, cross_fitted=True), features.owners.cpu().numpy())
    how = (
        "The highest cosine of the caption with any of those student's frames that have at least half of an equal "
        "share in the teacher's relevance for other captions of the video: one vector per frame."
    )
    return Step("closest_chosen", "closest of the teacher's choice", how, found)


def _frame_sets(features: Features) -> dict[str, Tensor]:
    sets = {"the student's frames": features.frames}
    return sets if features.tower_frames is None else {**sets, "the tower's frames": features.tower_frames}


def conditioned_steps(features: Features, asked: Asked, *, max_pairs: int = MAX_PAIRS) -> list[Step]:
    """Return the results of pooling every video anew for each caption, by the teacher's relevance of that pair.

    Of more than `max_pairs` pairs of captions and videos, a sample of the captions that are spread evenly.
    """
    videos, captions = len(features.vectors), len(features.texts)
    wanted = max(1, min(captions, max_pairs // videos))
    rows = np.unique(np.linspace(0, captions - 1, wanted).astype(np.int64))
    sets = _frame_sets(features)
    products = {name: frames @ frames.transpose(1, 2) for name, frames in sets.items()}
    parts: dict[tuple[str, float], list[Tensor]] = {(name, t): [] for name in sets for t in SHARPER}
    for block in caption_blocks(rows, videos):
        pairs = np.repeat(block, videos), np.tile(np.arange(videos), len(block))
        found = pair_relevance(asked.teacher, asked.texts, asked.videos, *pairs, temperature=asked.temperature)
        relevance = found.reshape(len(block), videos, -1).to(features.frames.device)
        for (name, t), scores in parts.items():
            sharper = tempered_relevance(relevance, t)
            scores.append(conditioned_scores(features.texts[block], sets[name], products[name], sharper))
    owners = features.owners.cpu().numpy()[rows]
    how = "pooled anew for every caption by the teacher's relevance for that pair: as many vectors as captions."
    if len(rows) < captions:
        how += f" A sample of {len(rows)} of the {captions} captions."
    measured = {key: measure(torch.cat(scores), owners) for key, scores in parts.items()}
    first = next(iter(sets))
    best = best_step([Step(f"{t:g}", "", "", measured[first, t]) for t in SHARPER]).name
    return [
        Step(
            "text_conditioned",
            f"{name}, pooled per caption",
            f"{name[0].upper()}{name[1:]} {how} {_at(best)}",
            measured[name, float(best)],
            part,
            len(rows),
        )
        for name, part in zip(sets, ("frames chosen per caption", TEMPORAL), strict=False)
    ]
