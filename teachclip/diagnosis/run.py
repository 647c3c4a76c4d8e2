"""A diagnosis of a recipe's student: all measurements as JSON-able data, and the pictures of the worst queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.diagnosis.agreement import TOP, mean_spearman, share_overlap, top_overlap, worst_captions
from teachclip.diagnosis.choice import Asked
from teachclip.diagnosis.diagnosis import Step, gap_of, parts_of_gap
from teachclip.diagnosis.models import Scored, ask_teacher, encode, score_all, student_features, zero_shot
from teachclip.diagnosis.steps import all_steps
from teachclip.diagnosis.vectors import Features, can_cross_fit, pair_relevance
from teachclip.errors import DataError, RecipeError
from teachclip.models.families import family_of
from teachclip.models.student import load_student
from teachclip.pipeline import build
from teachclip.pipeline.teachers import open_teachers
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.shapes.ground_truth import frame_kinds, weight_by_kind
from teachclip.training.distributed import build_accelerator, processes_of

SHOWN_FRAMES = 16
"""Of videos with more frames, those with the most weight are shown."""

ADAPTER_PLACES = (
    "This student has residual adapters: steps with several vectors per video leave out the one of pooled videos, "
    "and frames, those of the encoder too, have passed the one of frames."
)

Film = dict[str, list[np.ndarray]]


def measure(
    recipe: Recipe, source: Path, section: TeacherSection, split_name: str, *, worst: int
) -> tuple[dict[str, Any], list[Film]] | None:
    """Return the report and, per worst query, the pictures of the right video and of the student's first.

    `source`: folder or file of the student. None in every process but the main one. Raises what loading a student,
    a teacher and the data raises.
    """
    accelerator = build_accelerator()
    processes, device = processes_of(accelerator), accelerator.device
    student = load_student(source, mask_padding=recipe.student.mask_padding)
    teachers = open_teachers(recipe, device)
    teacher = teachers[section.label].model
    work = build_workspace(recipe, processes, device, teachers=teachers)
    found, own = (family_of(model.config).name for model in (student.backbone, work.backbone))
    if found != own:
        raise RecipeError(f"{source} stands on {found}, but student.backbone of the recipe is {own}")
    split, blocks = work.split(split_name), build.build_blocks(recipe)
    features, taught = student_features(work, student, split, blocks)
    untaught = zero_shot(work, split, blocks)
    tokens = encode(work, teacher, split, blocks.batch_size)
    if not processes.is_main:
        return None
    heavy = score_all(teacher, *tokens, split.caption_videos, blocks)
    asked = ask_teacher(teacher, section, *tokens, split.caption_videos)
    models = {"student": taught, "teacher": heavy, "zero-shot": untaught}
    report = work.stamp(student=str(source), teacher=section.label, split=split_name)
    report |= {"videos": len(split.videos), "captions": len(split.captions)}
    report |= {"models": {label: scored.metrics() for label, scored in models.items()}}
    report |= _gap(features, asked, taught, heavy, has_adapters=bool(student.config.adapters))
    report["agreement"] = _agreement(features, asked, taught, heavy)
    report["frames"] = _by_kind(work, split, features, asked)
    rows = worst_captions(taught.ranks.t2v, heavy.ranks.t2v, split.caption_videos, worst)
    report["worst"], films = _worst(work, split, rows, features, asked, (taught, heavy))
    return report, films


def _gap(
    features: Features, asked: Asked | None, taught: Scored, heavy: Scored, *, has_adapters: bool
) -> dict[str, Any]:
    """Return the ladder, its parts and what is beside it."""
    log("measuring the steps from student to teacher")
    metrics = [scored.metrics()["t2v"] for scored in (taught, heavy)]
    ladder, beside = all_steps(features, asked, *metrics)
    remarks = [] if asked is not None else ["This teacher gives no frame relevance: what needs it is left out."]
    remarks += [ADAPTER_PLACES] if has_adapters else []
    return {
        "cross_fitted": can_cross_fit(features.owners),
        "ladder": [_plain(step) for step in ladder],
        "parts": parts_of_gap(ladder),
        "gap": gap_of(ladder),
        "beside": [_plain(step) for step in beside],
        "remarks": remarks,
    }


def _plain(step: Step) -> dict[str, Any]:
    return {"name": step.name, "label": step.label, "how": step.how, "captions": step.captions, **step.metrics}


def _agreement(features: Features, asked: Asked | None, taught: Scored, heavy: Scored) -> list[dict[str, Any]]:
    """Return how far student and teacher agree: name, label, how it was got and value of each measure."""
    scores = taught.scores, heavy.scores
    found: list[tuple[str, str, float | None, str]] = [
        (
            "spearman",
            "rank correlation of videos",
            mean_spearman(*scores),
            "Spearman's rank correlation of both models' scores of all videos for a caption; mean over captions.",
        ),
        (
            "top_overlap",
            f"overlap of the first {TOP} videos",
            top_overlap(*scores),
            f"Share of the student's first {TOP} videos for a caption that are among the teacher's; mean.",
        ),
    ]
    if asked is not None:
        shares, relevance = features.shares[features.owners].cpu(), asked.own.cpu()
        even = features.mask.float() / features.mask.float().sum(dim=1, keepdim=True).clamp_min(1)
        how = (
            "Sum over a video's frames of the lesser of student's share and teacher's relevance, own captions; mean."
        )
        found += [
            ("frame_overlap", "overlap of frame weights", share_overlap(shares, relevance), how),
            (
                "even_overlap",
                "the same for equal shares",
                share_overlap(even[features.owners].cpu(), relevance),
                "A yardstick: what a student would get that counts all frames alike.",
            ),
        ]
    return [dict(zip(("name", "label", "value", "how"), entry, strict=True)) for entry in found]


def _by_kind(work: Workspace, split: Split, features: Features, asked: Asked | None) -> dict[str, dict[str, float]]:
    """Return the weight on frames of each kind, where the data is the embedded world; nothing elsewhere."""
    try:
        kinds = frame_kinds(work, split)
    except DataError:
        return {}
    found = {"student": weight_by_kind(features.shares.cpu(), kinds)}
    if asked is not None:
        found["teacher"] = weight_by_kind(asked.own.cpu(), kinds[split.caption_videos])
    return found


def _worst(
    work: Workspace,
    split: Split,
    rows: np.ndarray,
    features: Features,
    asked: Asked | None,
    both: tuple[Scored, Scored],
) -> tuple[list[dict[str, Any]], list[Film]]:
    """Return what is said of the worst queries, and their pictures."""
    inputs = work.pixel_inputs(split)
    entries, films = [], []
    for row in rows:
        caption = split.captions[row]
        scores = both[0].scores[row].clone()
        columns = {"right": int(split.caption_videos[row])}
        scores[columns["right"]] = -torch.inf  # a tie never adds a hit
        columns["first"] = int(scores.argmax())
        entry: dict[str, Any] = {"caption_id": caption.id, "caption": caption.text}
        entry |= {"student_rank": int(both[0].ranks.t2v[row]), "teacher_rank": int(both[1].ranks.t2v[row])}
        pictures, mask = inputs.frames.read(inputs.frame_rows[list(columns.values())])
        film: Film = {}
        for k, (which, column) in enumerate(columns.items()):
            weights = _weights(features, asked, int(row), column)
            entry[which], chosen = _film(split.videos[column].id, mask[k], *weights)
            film[which] = [pictures[k, frame].numpy() for frame in chosen]
        entries.append(entry)
        films.append(film)
    return entries, films


def _weights(features: Features, asked: Asked | None, row: int, column: int) -> tuple[Tensor, Tensor | None]:
    """Return the student's shares of a video's frames and the teacher's relevance for a caption: (frames,) both."""
    own = features.shares[column].cpu()
    if asked is None:
        return own, None
    pair = np.array([row]), np.array([column])
    return own, pair_relevance(asked.teacher, asked.texts, asked.videos, *pair, temperature=asked.temperature)[0]


def _film(video: str, mask: Tensor, own: Tensor, other: Tensor | None) -> tuple[dict[str, Any], list[int]]:
    """Return the frames of a video that are shown, with both weights, and their numbers from 0."""
    valid = mask.bool().nonzero()[:, 0]
    weight = (own if other is None else own + other)[valid]
    chosen = sorted(valid[weight.topk(min(SHOWN_FRAMES, len(valid))).indices].tolist())
    row = {"video": video, "frame_count": len(valid), "frames": chosen}
    row["student"] = [float(own[frame]) for frame in chosen]
    row["teacher"] = None if other is None else [float(other[frame]) for frame in chosen]
    return row, chosen
