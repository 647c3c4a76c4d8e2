"""Which frames a attention looks at, told by the embedded world's own record of what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Split
from teachclip.data.video.sampling import sample_indices
from teachclip.errors import DataError
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.frame_attention import attention_weights
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import load_student
from teachclip.pipeline import build
from teachclip.pipeline.temperature_scaling import set_pooling_temperature
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.processes import Processes
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import select_tokens
from teachclip.scoring.inputs import encode_split
from teachclip.shapes.scenes import FRAME_KINDS, FRAME_RATE

DEVICE = torch.device("cpu")


def measure_student(recipe: Recipe, split_name: str, factors: Sequence[float]) -> dict[str, Any]:
    """Measure the exported student of a run with its attention sharpened by every factor.

    A factor f multiplies the trained frame scores before the pooling softmax, so it divides the pooling temperature;
    1 is the student as trained. Returns, per factor as text, what `evaluate_split` returns and `frames`, the mean
    pooling weight on the frames of each kind.
    """
    work = build_workspace(recipe, Processes(), DEVICE)
    split = work.split(split_name)
    inputs = work.feature_inputs(split, work.backbone)
    student = load_student(recipe.output / "student").eval()
    kinds = frame_kinds(work, split)
    with torch.no_grad():
        videos = inputs.videos(np.arange(len(split.videos)))
        scores = student.aggregate(videos["frame_features"], videos["frame_mask"])[1].scores
    measured = {}
    for factor in factors:
        temperature = recipe.student.pooling_temperature / factor
        set_pooling_temperature(student, temperature)
        metrics = evaluate_split(student, inputs, split, build.build_blocks(recipe), DEVICE)
        weights = attention_weights(
            scores, videos["frame_mask"], temperature=temperature, attention=student.config.attention
        )
        measured[f"{factor:g}"] = {**metrics, "frames": weight_by_kind(weights, kinds)}
    return measured


def teacher_frames(recipe: Recipe, section: TeacherSection) -> dict[str, float]:
    """Return the mean frame relevance that a teacher gives to test frames of each kind, for their own captions."""
    work = build_workspace(recipe, Processes(), DEVICE)
    split = work.split("test")
    teacher = work.teachers[section.label].model
    texts, videos = encode_split(teacher, work.pixel_inputs(split), batch_size=32, device=DEVICE)
    with torch.no_grad():
        relevance = teacher.frame_relevance(texts, select_tokens(videos, torch.from_numpy(split.caption_videos)))
    return weight_by_kind(relevance, frame_kinds(work, split)[split.caption_videos])


def event_frames_only(recipe: Recipe) -> dict[str, Any]:
    """Evaluate mean pooling over the true event frames: what a perfect choice of frames alone would give."""
    work = build_workspace(recipe, Processes(), DEVICE)
    split = work.split("test")
    inputs = _OnlyEvents(
        work.feature_inputs(split, work.backbone), torch.from_numpy(frame_kinds(work, split) == "event")
    )
    return evaluate_split(MeanPooling(work.backbone), inputs, split, build.build_blocks(recipe), DEVICE)


class _OnlyEvents:
    """Inputs whose frame mask is True on event frames alone."""

    def __init__(self, inputs: Any, events: Tensor) -> None:
        self.inputs, self.events = inputs, events
        self.text_count, self.video_count = inputs.text_count, inputs.video_count
        self.texts = inputs.texts

    def videos(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the videos' features with the narrowed mask."""
        batch: dict[str, Tensor] = self.inputs.videos(rows)
        return {**batch, "frame_mask": batch["frame_mask"] & self.events[rows]}


def frame_kinds(work: Workspace, split: Split) -> np.ndarray:
    """Return what every sampled frame of a split's videos shows: (videos, frames), each one of `FRAME_KINDS`.

    Places that a plan leaves empty have "".
    Raises DataError if the data is not the embedded world, which alone keeps such a record.
    """
    path = work.recipe.data.annotations.with_name("truth.json")
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
        coded = [_sampled(truth["videos"][video.id]["frames"], work.recipe) for video in split.videos]
        empty, count = [""], work.recipe.frames.count
        kinds = [[truth["codes"][code] for code in codes] for codes in coded]
        return np.array([row + empty * (count - len(row)) for row in kinds])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not tell what the frames of {split.name} videos show: {error}") from error


def _sampled(codes: str, recipe: Recipe) -> list[str]:
    """Return the codes of the frames that the recipe's plan samples; `codes` has one letter per frame."""
    return [codes[index] for index in sample_indices(build.build_frame_sampling(recipe), len(codes), FRAME_RATE)]


def weight_by_kind(weights: Tensor, kinds: np.ndarray) -> dict[str, float]:
    """Return the mean over videos of the weight on frames of each kind; the kinds add up to 1.

    `weights` (videos, frames), each row adding up to 1; `kinds` (videos, frames), one of `FRAME_KINDS`, "" where
    there is no frame.
    """
    return {kind: float((weights.numpy() * (kinds == kind)).sum(axis=1).mean()) for kind in FRAME_KINDS}
