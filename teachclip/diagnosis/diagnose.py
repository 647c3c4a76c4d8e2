"""Diagnose a student: where the gap to its teacher comes from, as tables, JSON and a page with the worst queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.diagnosis.agreement import measure_agreement, worst_captions
from teachclip.diagnosis.alternatives import can_cross_fit
from teachclip.diagnosis.features import (
    Features,
    FrameTeacher,
    Scores,
    encode,
    encoder_tokens,
    frame_teacher,
    score_all,
    student_features,
    zero_shot_scores,
)
from teachclip.diagnosis.ladder import Step, gap_of, is_identifiable, measure_ladder, parts_of_gap
from teachclip.diagnosis.order import clause_order, frame_order_steps
from teachclip.diagnosis.report import diagnosis_page, terminal_text
from teachclip.errors import CheckpointError, DataError, RecipeError
from teachclip.models.families import family_of
from teachclip.models.student import load_student
from teachclip.pipeline import build
from teachclip.pipeline.encoders import read_as_saved
from teachclip.pipeline.teachers import open_teachers, teacher_class
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import closest
from teachclip.scorer import reads_relevance
from teachclip.shapes.ground_truth import frame_kinds, weight_by_kind
from teachclip.store.files import make_folder, write_atomic
from teachclip.training.distributed import build_accelerator, processes_of

MAX_FRAMES = 16
"""Frames shown per video; of longer videos those with the most weight."""

NO_FRAME_RELEVANCE = "This teacher has no frame relevance, so the steps and measures that need it are omitted."
ADAPTER_NOTE = (
    "This student has residual adapters. Steps with several vectors per video do not apply the one of pooled videos; "
    "frames, those of the encoder too, have passed the one of frames."
)

Images = dict[str, list[np.ndarray]]


def diagnose(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    student: str | Path | None = None,
    teacher: str | None = None,
    split: str = "test",
    worst: int = 20,
    out: Path | None = None,
) -> dict[str, Any] | None:
    """Diagnose a student, print the tables, write `diagnosis.json` and `diagnosis.html`, and return the report.

    `recipe`, `overrides`: as of `distill`. `student`: folder or file, default the exported one of the recipe's run.
    `teacher`: a label, default the first. `worst`: number of queries that are shown. `out`: folder to write, default
    `output/diagnosis`. Returns None in every process but the main one. Raises RecipeError for a teacher or student
    that does not fit, CheckpointError if a student cannot be loaded, DataError if the data lacks the split.
    """
    recipe = load_recipe(recipe, overrides)
    section = select_teacher(recipe, teacher)
    source = Path(student) if student is not None else exported_student(recipe)
    out = out or recipe.output / "diagnosis"
    make_folder(out)
    measured = measure_diagnosis(recipe, source, section, split, worst=worst)
    if measured is None:  # not the main process
        return None
    report, images = measured
    print(terminal_text(report), flush=True)
    write_atomic(out / "diagnosis.json", json.dumps(report, indent=1).encode())
    write_atomic(out / "diagnosis.html", diagnosis_page(report, images).encode())
    log(f"diagnosis: {out / 'diagnosis.html'}")
    return report


def select_teacher(recipe: Recipe, label: str | None) -> TeacherSection:
    """Return the teacher with that label, or the recipe's first.

    Raises RecipeError if there is none, or if it reads scores from a file, which has training pairs only.
    """
    teachers: dict[str, Any] = {str(section.label): section for section in recipe.teachers}
    if not teachers:
        raise RecipeError(f"{recipe.name}: the recipe has no teachers; a diagnosis compares a student with one")
    label = label or next(iter(teachers))
    if label not in teachers:
        raise RecipeError(f"--teacher {label!r}: allowed: {', '.join(teachers)}{closest(label, teachers)}")
    section: TeacherSection = teachers[label]
    if reads_relevance(teacher_class(section)):
        raise RecipeError(
            f"teacher {label!r} reads scores of training pairs from a file, so it cannot score other videos; choose "
            "another with --teacher"
        )
    return section


def exported_student(recipe: Recipe) -> Path:
    """Return the folder of the student that the recipe's run exported. Raises CheckpointError if there is none."""
    folder = recipe.output / "student"
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds no student; distil the recipe first, or give a student with --student")
    return folder


def measure_diagnosis(
    recipe: Recipe, source: Path, section: TeacherSection, split_name: str, *, worst: int
) -> tuple[dict[str, Any], list[Images]] | None:
    """Return the report and, per worst query, the frames of its video (`match`) and of the student's top (`top`).

    `source`: folder or file of the student. Returns None in every process but the main one. Raises what loading a
    student, a teacher and the data raises.
    """
    accelerator = build_accelerator()
    processes, device = processes_of(accelerator), accelerator.device
    student = load_student(
        source, mask_padding=recipe.student.mask_padding, trust_remote_code=recipe.student.trust_remote_code
    )
    read_as_saved(student)
    teachers = open_teachers(recipe, device)
    if teachers[section.label].scores_shortlist:
        raise RecipeError(
            f"teacher {section.label!r} scores a shortlist of each text, a diagnosis needs all pairs; choose another "
            "with --teacher"
        )
    teacher = teachers[section.label].model
    work = build_workspace(recipe, processes, device, teachers=teachers)
    family, expected = (family_of(model.config).name for model in (student.backbone, work.backbone))
    if family != expected:
        raise RecipeError(f"{source} has a backbone of {family}, but student.backbone of the recipe is {expected}")
    split, blocks = work.split(split_name), build.build_blocks(recipe)
    split.require_captions("a diagnosis is of captions")
    encoded = encoder_tokens(work, student, split, blocks.batch_size)
    features, student_scores = student_features(student, encoded, split, blocks)
    zero_shot = zero_shot_scores(work, split, blocks)
    tokens = encode(work, teacher, split, blocks.batch_size)
    if not processes.is_main:
        return None
    teacher_scores = score_all(teacher, *tokens, split.caption_videos, blocks)
    frames = frame_teacher(teacher, section, *tokens, split.caption_videos)
    models = {"student": student_scores, "teacher": teacher_scores, "zero-shot": zero_shot}
    report = work.stamp(student=str(source), teacher=section.label, split=split_name)
    report |= {"videos": len(split.videos), "captions": len(split.captions)}
    report |= {"models": {label: scores.metrics() for label, scores in models.items()}}
    has_adapters = bool(student.config.adapters)
    report |= _gap(features, frames, student_scores, teacher_scores, has_adapters=has_adapters)
    report["agreement"] = measure_agreement(features, frames, student_scores, teacher_scores)
    report["order"] = {
        "frames": [
            _as_json(step) for step in frame_order_steps(student, features.texts, encoded[1], split.caption_videos)
        ],
        "clauses": clause_order(work, student, split, features.vectors),
    }
    report["frames"] = _weight_by_kind(work, split, features, frames)
    rows = worst_captions(student_scores.ranks.t2v, teacher_scores.ranks.t2v, split.caption_videos, worst)
    report["worst"], images = _worst_queries(work, split, rows, features, frames, (student_scores, teacher_scores))
    return report, images


def _gap(
    features: Features, frames: FrameTeacher | None, student: Scores, teacher: Scores, *, has_adapters: bool
) -> dict[str, Any]:
    """Return the ladder, the parts of the gap and the comparisons."""
    log("measuring the steps from student to teacher")
    metrics = [scores.metrics()["t2v"] for scores in (student, teacher)]
    steps, comparisons = measure_ladder(features, frames, *metrics)
    control = next((step for step in comparisons if step.name == "control"), None)
    notes = [] if frames is not None else [NO_FRAME_RELEVANCE]
    notes += [ADAPTER_NOTE] if has_adapters else []
    return {
        "cross_fitted": can_cross_fit(features.caption_videos),
        "better_vector_identifiable": is_identifiable(control, metrics[0]) if control else False,
        "ladder": [_as_json(step) for step in steps],
        "parts": parts_of_gap(steps),
        "gap": gap_of(steps),
        "comparisons": [_as_json(step) for step in comparisons],
        "notes": notes,
    }


def _as_json(step: Step) -> dict[str, Any]:
    head = {"name": step.name, "label": step.label, "description": step.description, "captions": step.captions}
    return {**head, **step.metrics}


def _weight_by_kind(
    work: Workspace, split: Split, features: Features, frames: FrameTeacher | None
) -> dict[str, dict[str, float]]:
    """Return the weight on frames of each kind if the data is a Shapes dataset, else nothing."""
    try:
        kinds = frame_kinds(work, split)
    except DataError:
        return {}
    weights = {"student": weight_by_kind(features.weights.cpu(), kinds)}
    if frames is not None:
        weights["teacher"] = weight_by_kind(frames.relevance.cpu(), kinds[split.caption_videos])
    return weights


def _worst_queries(
    work: Workspace,
    split: Split,
    rows: np.ndarray,
    features: Features,
    frames: FrameTeacher | None,
    models: tuple[Scores, Scores],
) -> tuple[list[dict[str, Any]], list[Images]]:
    """Return what the page shows of the worst queries, and the frames of their videos. `models`: student, teacher."""
    student, teacher = models
    inputs = work.pixel_inputs(split)
    entries, images = [], []
    for row in rows:
        caption = split.captions[row]
        scores = student.scores[row].clone()
        columns = {"match": int(split.caption_videos[row])}
        scores[columns["match"]] = -torch.inf  # a tie never adds a hit
        columns["top"] = int(scores.argmax())
        entry: dict[str, Any] = {"caption_id": caption.id, "caption": caption.text}
        entry |= {"student_rank": int(student.ranks.t2v[row]), "teacher_rank": int(teacher.ranks.t2v[row])}
        pixels, mask = inputs.frames.read(inputs.frame_rows[list(columns.values())])
        shown: Images = {}
        for place, (key, column) in enumerate(columns.items()):
            weights = _frame_weights(features, frames, int(row), column)
            entry[key], numbers = _shown_frames(split.videos[column].id, mask[place], *weights)
            shown[key] = [pixels[place, number].numpy() for number in numbers]
        entries.append(entry)
        images.append(shown)
    return entries, images


def _frame_weights(
    features: Features, frames: FrameTeacher | None, row: int, column: int
) -> tuple[Tensor, Tensor | None]:
    """Return the student's weights of a video's frames and the teacher's relevance for a caption, both (frames,)."""
    weights = features.weights[column].cpu()
    return weights, None if frames is None else frames.pair_relevance(np.array([row]), np.array([column]))[0]


def _shown_frames(
    video: str, mask: Tensor, weights: Tensor, relevance: Tensor | None
) -> tuple[dict[str, Any], list[int]]:
    """Return the frames of a video that are shown, with both weights, and their numbers from 0."""
    valid = mask.bool().nonzero()[:, 0]
    importance = (weights if relevance is None else weights + relevance)[valid]
    numbers = sorted(valid[importance.topk(min(MAX_FRAMES, len(valid))).indices].tolist())
    entry = {
        "video": video,
        "frame_count": len(valid),
        "frames": numbers,
        "student": [float(weights[number]) for number in numbers],
        "teacher": None if relevance is None else [float(relevance[number]) for number in numbers],
    }
    return entry, numbers
