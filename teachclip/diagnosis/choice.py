"""Results of choosing frames otherwise: by a teacher's relevance, per video or per caption, or by sharper shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachclip.diagnosis.diagnosis import Step, best_step, measure
from teachclip.diagnosis.vectors import (
    Features,
    caption_blocks,
    chosen_shares,
    closest_frame_scores,
    conditioned_scores,
    pair_relevance,
    scores_by_fold,
)
from teachclip.scorer import Teacher, Tokens
from teachclip.scoring.targets import tempered_relevance

MAX_PAIRS = 2**20
"""Of how many pairs a teacher is asked for its frame relevance at most; a sample of captions where there are more."""
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


def choice_steps(features: Features, relevance: Tensor, *, cross_fitted: bool) -> list[Step]:
    """Return the steps that pool the student's frames, then the encoder's, by the teacher's choice of frames.

    `relevance`: (captions, frames), the teacher's for each caption's own video.
    """
    whose = "of the video's OTHER captions" if cross_fitted else "of all captions of the video, the query included,"
    how = (
        f"The student's frames, pooled by the mean of the teacher's frame relevance {whose} instead of by the "
        "student's own shares. It knows captions of the split"
        + (": a diagnosis, not a model." if cross_fitted else " and the query itself: an upper bound.")
    )
    label = "+ teacher's choice of frames" if cross_fitted else "teacher's choice of frames, in sample"

    best = choice_temperature(features, relevance, cross_fitted=cross_fitted)
    sharper = tempered_relevance(relevance, best)
    found = _chosen(features, features.frames, sharper, cross_fitted=cross_fitted)
    steps = [Step("frame_choice", label, f"{how} {_at(best)}", found, "frame selection")]
    if features.encoder_frames is not None:
        how = "The same choice, over the frames as the encoder gives them, before the temporal transformer."
        found = _chosen(features, features.encoder_frames, sharper, cross_fitted=cross_fitted)
        steps.append(Step("encoder_frames", "+ frames as the encoder gives them", how, found, TEMPORAL))
    return steps


def choice_temperature(features: Features, relevance: Tensor, *, cross_fitted: bool) -> float:
    """Return the one of `SHARPER` at which the teacher's choice of the student's frames finds most."""
    return _best_temperature(
        {
            t: _chosen(features, features.frames, tempered_relevance(relevance, t), cross_fitted=cross_fitted)
            for t in SHARPER
        }
    )


def _best_temperature(measured: Mapping[float, dict[str, float]]) -> float:
    return float(best_step([Step(f"{t:g}", "", "", found) for t, found in measured.items()]).name)


def _chosen(features: Features, frames: Tensor, relevance: Tensor, *, cross_fitted: bool) -> dict[str, float]:
    """Return the metrics of frames pooled by the mean relevance of a video's captions."""

    def score(keep: Tensor, rows: Tensor) -> Tensor:
        return features.texts[rows] @ features.pool(frames, chosen_shares(relevance, features, keep)).T

    scores = scores_by_fold(features, score, cross_fitted=cross_fitted)
    return measure(scores, features.owners.cpu().numpy())


def _at(temperature: float) -> str:
    return f"The relevance is taken at temperature {temperature:g}, the best here of {_listed(SHARPER)}."


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def sharpened(features: Features) -> Step:
    """Return the result of the student's own shares, sharper or flatter than it was trained with."""
    owners = features.owners.cpu().numpy()
    tried = []
    for power in POWERS:
        shares = tempered_relevance(features.shares, 1 / power)
        found = measure(features.texts @ features.pool(features.frames, shares).T, owners)
        how = (
            f"The student's own frames and shares, each share to the power {power:g} and brought to sum 1 again; the "
            f"best here of the powers {_listed(POWERS)}. It needs no teacher and no caption: choose it on validation."
        )
        tried.append(Step("sharpened", "student, its shares sharpened", how, found))
    return best_step(tried)


def closest_chosen(features: Features, relevance: Tensor) -> Step:
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


def frame_sets(features: Features) -> dict[str, Tensor]:
    """Return the student's frames and, if they differ, the encoder's, by what they are called."""
    sets = {"the student's frames": features.frames}
    return sets if features.encoder_frames is None else {**sets, "the encoder's frames": features.encoder_frames}


def conditioned_steps(features: Features, asked: Asked, *, max_pairs: int = MAX_PAIRS) -> list[Step]:
    """Return the results of pooling every video anew for each caption, by the teacher's relevance of that pair.

    Of more than `max_pairs` pairs of captions and videos, a sample of the captions that are spread evenly.
    """
    videos, captions = len(features.vectors), len(features.texts)
    wanted = max(1, min(captions, max_pairs // videos))
    rows = np.unique(np.linspace(0, captions - 1, wanted).astype(np.int64))
    sets = frame_sets(features)
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
    best = _best_temperature({t: measured[first, t] for t in SHARPER})
    return [
        Step(
            "text_conditioned",
            f"{name}, pooled per caption",
            f"{name[0].upper()}{name[1:]} {how} {_at(best)}",
            measured[name, best],
            part,
            len(rows),
        )
        for name, part in zip(sets, ("frames chosen per caption", TEMPORAL), strict=False)
    ]
