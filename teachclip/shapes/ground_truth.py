"""Which frames models attend to, by the Shapes dataset's own record of what is in them."""

from __future__ import annotations

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
from teachclip.models.student import StudentModel
from teachclip.pipeline import build
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.schema import Recipe
from teachclip.scorer import select_tokens, tokens_to
from teachclip.scoring.inputs import encode_split
from teachclip.shapes.scenes import FRAME_KINDS, FRAME_RATE
from teachclip.store.files import read_json


def attention_by_kind(student: StudentModel, work: Workspace, split: Split) -> dict[str, float]:
    """Return the mean attention weight that a student puts on the frames of each kind, at its pooling temperature.

    The student reads the stored features of the workspace's backbone, so its encoders must be the frozen ones. Raises
    DataError for several vectors per video.
    """
    student.require_one_vector("frame_probe")
    inputs = work.feature_inputs(split, work.backbone)
    videos = inputs.videos(np.arange(len(split.videos)))
    features, mask = (videos[name].to(work.device) for name in ("frame_features", "frame_mask"))
    with torch.no_grad():
        scores = student.aggregate(features, mask)[1].attention_scores
    config = student.config
    weights = attention_weights(scores, mask, temperature=config.pooling_temperature, kind=config.attention)
    return weight_by_kind(weights, frame_kinds(work, split))


def teacher_frames(work: Workspace, label: str) -> dict[str, float]:
    """Return the mean frame relevance that a teacher gives to test frames of each kind, for their own captions."""
    split = work.split("test")
    teacher = work.teachers[label].model
    texts, videos = encode_split(teacher, work.pixel_inputs(split), batch_size=32, device=work.device)
    texts, videos = tokens_to(texts, work.device), tokens_to(videos, work.device)
    with torch.no_grad():
        relevance = teacher.frame_relevance(texts, select_tokens(videos, torch.from_numpy(split.caption_videos)))
    return weight_by_kind(relevance, frame_kinds(work, split)[split.caption_videos])


def event_frames_only(work: Workspace) -> dict[str, Any]:
    """Evaluate mean pooling over the event frames of test videos: what a perfect choice of frames would give."""
    split = work.split("test")
    inputs = _EventFrames(
        work.feature_inputs(split, work.backbone), torch.from_numpy(frame_kinds(work, split) == "event")
    )
    return evaluate_split(
        MeanPooling(work.backbone).to(work.device), inputs, split, build.build_blocks(work.recipe), work.device
    )


class _EventFrames:
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

    Places that the frame sampling leaves empty have "".
    Raises DataError if the data is not a Shapes dataset, which alone keeps such a record.
    """
    path = (work.recipe.data.annotations or work.recipe.data.videos).with_name("truth.json")
    try:
        truth = read_json(path)
        coded = [_sampled(truth["videos"][video.id]["frames"], work.recipe) for video in split.videos]
        empty, count = [""], work.recipe.frames.count
        kinds = [[truth["codes"][code] for code in codes] for codes in coded]
        return np.array([row + empty * (count - len(row)) for row in kinds])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} does not record what the frames of {split.name} videos show: {error}") from error


def _sampled(codes: str, recipe: Recipe) -> list[str]:
    """Return the codes of the frames that the recipe samples; `codes` has one character per frame."""
    return [codes[index] for index in sample_indices(build.build_frame_sampling(recipe), len(codes), FRAME_RATE)]


def weight_by_kind(weights: Tensor, kinds: np.ndarray) -> dict[str, float]:
    """Return the mean over videos of the weight on frames of each kind; the kinds add up to 1.

    `weights` (videos, frames), each row adding up to 1; `kinds` (videos, frames), one of `FRAME_KINDS`, "" where
    there is no frame.
    """
    return {kind: float((weights.cpu().numpy() * (kinds == kind)).sum(axis=1).mean()) for kind in FRAME_KINDS}
