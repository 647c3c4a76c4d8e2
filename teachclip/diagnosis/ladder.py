"""The steps from a student to its teacher, each a text-to-video retrieval in which one thing changes.

Every step ranks the student's captions. The parts of the gap are the differences of neighbouring steps of the ladder,
so they sum to the gap; a part may be negative. Other results stand for comparison beside the ladder.

If videos have several captions, what is made for a video from captions is measured on other captions
(cross-fitting). If they have one, this is impossible: the ladder then holds only what a query may know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.diagnosis.alternatives import (
    FOLDS,
    can_cross_fit,
    caption_blocks,
    closest_frame_scores,
    conditioned_scores,
    fit_vectors,
    relevance_weights,
    scores_by_fold,
)
from teachclip.diagnosis.features import Features, FrameTeacher
from teachclip.evaluation.metrics import CUTOFFS, rank_metrics
from teachclip.evaluation.retrieval import ranks_from_matrix
from teachclip.scoring.targets import tempered_relevance

RECALLS = tuple(f"recall_at_{cutoff}" for cutoff in CUTOFFS)
MAX_PAIRS = 2**20
"""Most pairs whose frame relevance a teacher computes; with more pairs, a sample of the captions is used."""
RELEVANCE_TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Temperatures at which a teacher's frame relevance is tried, as some teachers' relevance is nearly uniform."""
POWERS = (0.5, 2.0, 3.0, 5.0)
"""Powers of the student's pooling weights that are tried: the inverses of temperatures."""
SCALE_FACTORS = (1.0, 3.0)
"""Vectors are fitted at the student's scale times each of these; the better result counts."""
TEMPORAL = "temporal transformer"


class Step(NamedTuple):
    """One retrieval: what was ranked, and its metrics."""

    name: str
    label: str
    description: str
    """One sentence: how it was measured."""
    metrics: dict[str, float]
    """Text to video, as `rank_metrics` returns them."""
    part: str = ""
    """The name of the difference to the step before."""
    captions: int | None = None
    """Number of captions that it was measured on, if that may be a sample."""


class Ladder(NamedTuple):
    """The steps from student to teacher, whose differences are the parts of the gap, and results for comparison."""

    steps: list[Step]
    comparisons: list[Step]


def measure(scores: np.ndarray | Tensor, caption_videos: np.ndarray) -> dict[str, float]:
    """Return the text-to-video metrics of scores (captions, videos). `caption_videos`: (captions,)."""
    return rank_metrics(ranks_from_matrix(scores, caption_videos).t2v)


def best_step(steps: Sequence[Step]) -> Step:
    """Return the step with the highest R@1; of equal ones that with the higher R@5, then R@10, then the first."""
    return max(steps, key=lambda step: tuple(step.metrics[name] for name in RECALLS))


def parts_of_gap(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return the parts of the gap between the first and the last step, in points of each recall.

    One mapping per step but the first: the label of the `step`, the `label` of the part and its `RECALLS`. They sum
    to `gap_of` the steps.
    """
    return [
        {"step": after.label, "label": after.part, **_difference(before, after)} for before, after in pairwise(steps)
    ]


def gap_of(steps: Sequence[Step]) -> dict[str, float]:
    """Return by how many points each recall of the last step is above the first."""
    return _difference(steps[0], steps[-1])


def _difference(before: Step, after: Step) -> dict[str, float]:
    return {name: after.metrics[name] - before.metrics[name] for name in RECALLS}


def measure_ladder(
    features: Features,
    teacher: FrameTeacher | None,
    student_metrics: dict[str, float],
    teacher_metrics: dict[str, float],
    *,
    max_pairs: int = MAX_PAIRS,
) -> Ladder:
    """Measure all steps.

    `student_metrics`, `teacher_metrics`: of the models as they are, as `measure` returns them. `teacher` is None for
    a teacher without frame relevance; there is then no step of frame selection.
    """
    first = Step("student", "student", "The exported student as it is.", student_metrics)
    conditioned = [] if teacher is None else conditioned_steps(features, teacher, max_pairs=max_pairs)
    if not can_cross_fit(features.caption_videos):
        complete = [step for step in conditioned if step.captions == len(features.texts)]
        description = "The teacher as it is. The part is everything that frame selection does not explain."
        last = Step("teacher", "teacher", description, teacher_metrics, "the rest")
        comparisons = [*_comparisons(features, teacher, cross_fitted=False), *conditioned[len(complete) :]]
        return Ladder([first, *complete, last], comparisons)
    middle = [] if teacher is None else frame_selection_steps(features, teacher.relevance, cross_fitted=True)
    fitted, control = fitted_steps(features, cross_fitted=True), control_step(features)
    identifiable = is_identifiable(control, student_metrics)
    best = best_step([first, *middle, *(fitted if identifiable else [])])
    among = ", and of vectors fitted to other captions of the video, at two temperatures" if identifiable else ""
    description = (
        "The best single vector per video that was found, with the text encoder fixed: the highest R@1 of the steps "
        f"above{among}. It was: {best.label}. {best.description}"
    )
    if not identifiable:
        description += (
            " How much a better vector would gain cannot be told: captions of one video are so alike that vectors "
            f"fitted to them without any video reach {control.metrics['recall_at_1']:.1f} R@1, no less than the "
            "student."
        )
    middle.append(Step("one_vector", "best single vector", description, best.metrics, "a better vector"))
    description = "The teacher as it is. The part is what it finds and the best single vector per video does not."
    last = Step("teacher", "teacher", description, teacher_metrics, "beyond one vector")
    comparisons = [*_comparisons(features, teacher, cross_fitted=True), *conditioned, *fitted, control]
    return Ladder([first, *middle, last], comparisons)


def is_identifiable(control: Step, student_metrics: Mapping[str, float]) -> bool:
    """Whether fitted vectors say what one vector can hold: captions alone must find less than the student."""
    return control.metrics["recall_at_1"] < student_metrics["recall_at_1"]


def _comparisons(features: Features, teacher: FrameTeacher | None, *, cross_fitted: bool) -> list[Step]:
    """Return the results beside the ladder: upper bounds, and one vector per frame with the same features."""
    steps = [temperature_scaled(features)]
    if teacher is not None:
        steps += frame_selection_steps(features, teacher.relevance, cross_fitted=False)[:1]
    steps += fitted_steps(features, cross_fitted=False, factors=SCALE_FACTORS[-1:])
    for name, frames in frame_variants(features).items():
        scores = closest_frame_scores(features.texts, frames, features.mask)
        description = f"The highest cosine of the caption with any of {name}: one vector per frame, no teacher."
        steps.append(Step("closest_frame", f"closest of {name}", description, _metrics(scores, features)))
    if teacher is not None and cross_fitted:
        temperature = best_relevance_temperature(features, teacher.relevance, cross_fitted=True)
        steps.append(closest_selected(features, tempered_relevance(teacher.relevance, temperature)))
    return steps


def frame_variants(features: Features) -> dict[str, Tensor]:
    """Return the student's frames and, if they differ, the encoder's, by how descriptions call them."""
    variants = {"the student's frames": features.frames}
    return (
        variants if features.encoder_frames is None else {**variants, "the encoder's frames": features.encoder_frames}
    )


def frame_selection_steps(features: Features, relevance: Tensor, *, cross_fitted: bool) -> list[Step]:
    """Return the steps that pool the student's frames, then the encoder's, by the teacher's frame relevance.

    `relevance`: (captions, frames), the teacher's for each caption's own video.
    """
    captions = (
        "of the video's OTHER captions" if cross_fitted else "of all captions of the video, the query included,"
    )
    description = (
        f"The student's frames, pooled by the mean of the teacher's frame relevance {captions} instead of by the "
        "student's weights. It uses captions of the split"
        + (": a diagnosis, not a model." if cross_fitted else " and the query itself: an upper bound.")
    )
    label = "+ teacher's frame selection" if cross_fitted else "teacher's frame selection, in sample"
    best = best_relevance_temperature(features, relevance, cross_fitted=cross_fitted)
    tempered = tempered_relevance(relevance, best)
    metrics = _selection_metrics(features, features.frames, tempered, cross_fitted=cross_fitted)
    steps = [Step("frame_selection", label, f"{description} {_tried(best)}", metrics, "frame selection")]
    if features.encoder_frames is not None:
        description = (
            "The same selection over the frames as the encoder returns them, before the temporal transformer."
        )
        metrics = _selection_metrics(features, features.encoder_frames, tempered, cross_fitted=cross_fitted)
        steps.append(Step("encoder_frames", "+ frames of the encoder", description, metrics, TEMPORAL))
    return steps


def best_relevance_temperature(features: Features, relevance: Tensor, *, cross_fitted: bool) -> float:
    """Return the one of `RELEVANCE_TEMPERATURES` at which the teacher's frame selection has the highest recalls."""
    return _best_temperature(
        {
            t: _selection_metrics(
                features, features.frames, tempered_relevance(relevance, t), cross_fitted=cross_fitted
            )
            for t in RELEVANCE_TEMPERATURES
        }
    )


def _best_temperature(measured: Mapping[float, dict[str, float]]) -> float:
    return float(best_step([Step(f"{t:g}", "", "", metrics) for t, metrics in measured.items()]).name)


def _selection_metrics(
    features: Features, frames: Tensor, relevance: Tensor, *, cross_fitted: bool
) -> dict[str, float]:
    """Return the metrics of frames pooled by the mean relevance of a video's captions."""

    def score(keep: Tensor, rows: Tensor) -> Tensor:
        return features.texts[rows] @ features.pool(frames, relevance_weights(relevance, features, keep)).T

    return _metrics(scores_by_fold(features, score, cross_fitted=cross_fitted), features)


def _metrics(scores: Tensor, features: Features) -> dict[str, float]:
    return measure(scores, features.caption_videos.cpu().numpy())


def _tried(temperature: float) -> str:
    return (
        f"The relevance is taken at temperature {temperature:g}, the best here of {_listed(RELEVANCE_TEMPERATURES)}."
    )


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def temperature_scaled(features: Features) -> Step:
    """Return the best result of the student's weights at other temperatures than it was trained with."""
    tried = []
    for power in POWERS:
        weights = tempered_relevance(features.weights, 1 / power)
        metrics = _metrics(features.texts @ features.pool(features.frames, weights).T, features)
        description = (
            f"The student's frames and weights, with each weight to the power {power:g} and renormalised; the best "
            f"here of the powers {_listed(POWERS)}. It needs no teacher and no caption: choose it on validation."
        )
        tried.append(Step("temperature_scaled", "student, post-hoc temperature scaling", description, metrics))
    return best_step(tried)


def closest_selected(features: Features, relevance: Tensor) -> Step:
    """Return the result of one vector for each frame that the teacher selects for other captions."""

    def score(keep: Tensor, rows: Tensor) -> Tensor:
        uniform = 1 / features.mask.sum(dim=1, keepdim=True).clamp_min(1)
        selected = features.mask & (relevance_weights(relevance, features, keep) >= uniform / 2)
        selected = selected | ~selected.any(dim=1, keepdim=True)
        return closest_frame_scores(features.texts[rows], features.frames, selected)

    metrics = _metrics(scores_by_fold(features, score, cross_fitted=True), features)
    description = (
        "The highest cosine of the caption with any of those student's frames that have at least half of the uniform "
        "weight in the teacher's relevance for other captions of the video: one vector per frame."
    )
    return Step("closest_selected", "closest of the teacher's selection", description, metrics)


def conditioned_steps(features: Features, teacher: FrameTeacher, *, max_pairs: int = MAX_PAIRS) -> list[Step]:
    """Return the results of pooling every video for each caption by the teacher's relevance of that pair.

    With more than `max_pairs` pairs of captions and videos, a sample of evenly spaced captions is measured.
    """
    videos, captions = len(features.vectors), len(features.texts)
    sample = max(1, min(captions, max_pairs // videos))
    rows = np.unique(np.linspace(0, captions - 1, sample).astype(np.int64))
    variants = frame_variants(features)
    products = {name: frames @ frames.transpose(1, 2) for name, frames in variants.items()}
    blocks: dict[tuple[str, float], list[Tensor]] = {
        (name, t): [] for name in variants for t in RELEVANCE_TEMPERATURES
    }
    for block in caption_blocks(rows, videos):
        relevance = teacher.pair_relevance(np.repeat(block, videos), np.tile(np.arange(videos), len(block)))
        relevance = relevance.reshape(len(block), videos, -1).to(features.frames.device)
        for (name, t), scores in blocks.items():
            tempered = tempered_relevance(relevance, t)
            scores.append(conditioned_scores(features.texts[block], variants[name], products[name], tempered))
    caption_videos = features.caption_videos.cpu().numpy()[rows]
    measured = {key: measure(torch.cat(scores), caption_videos) for key, scores in blocks.items()}
    best = _best_temperature({t: measured[next(iter(variants)), t] for t in RELEVANCE_TEMPERATURES})
    description = "pooled for every caption by the teacher's relevance for that pair: as many vectors as captions."
    if len(rows) < captions:
        description += f" A sample of {len(rows)} of the {captions} captions."
    return [
        Step(
            "text_conditioned",
            f"{name}, pooled per caption",
            f"{name[0].upper()}{name[1:]} {description} {_tried(best)}",
            measured[name, best],
            part,
            len(rows),
        )
        for name, part in zip(variants, ("frame selection per caption", TEMPORAL), strict=False)
    ]


def control_step(features: Features) -> Step:
    """Return the result of vectors that are fitted as those of `fitted_steps` are, but know no video.

    All start from the mean of the student's vectors. What they find is what a video's captions say of each other.
    """
    start = F.normalize(features.vectors.mean(dim=0, keepdim=True), dim=-1).expand_as(features.vectors)
    known = replace(features, vectors=start)
    best = best_step(fitted_steps(known, cross_fitted=True))
    description = (
        "A control: vectors fitted to other captions of the video as above, all from one start, so that nothing of "
        "any video is in them. A fitted vector is worth no more than what it finds beyond this."
    )
    return Step("control", "fitted vectors that know no video", description, best.metrics)


def fitted_steps(features: Features, *, cross_fitted: bool, factors: Sequence[float] = SCALE_FACTORS) -> list[Step]:
    """Return the results of vectors fitted to captions, at the student's scale times each of `factors`.

    Cross-fitted, they are measured on captions that they were not fitted to; otherwise on the same captions.
    """
    steps = []
    for factor in factors:
        scale = factor * features.scale

        def score(keep: Tensor, rows: Tensor, scale: float = scale) -> Tensor:
            texts, caption_videos = features.texts[keep], features.caption_videos[keep]
            return features.texts[rows] @ fit_vectors(features.vectors, texts, caption_videos, scale=scale).T

        scores = scores_by_fold(features, score, cross_fitted=cross_fitted)
        where = (
            f"other captions, in {FOLDS} folds" if cross_fitted else "the same captions: an upper bound of one vector"
        )
        description = (
            "One free vector per video, fitted by gradient descent (Adam, softmax cross-entropy with scale "
            f"{scale:.0f}) to captions of the split, starting from the student's vector; measured on {where}."
        )
        label = f"fitted vectors, scale {scale:.0f}" if cross_fitted else "fitted vectors, in sample"
        steps.append(Step("fitted", label, description, _metrics(scores, features)))
    return steps
