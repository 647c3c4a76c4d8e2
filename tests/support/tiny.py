"""A tiny training set-up in memory, for tests and for the processes that tests start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.data.batches import BatchSampler
from teachclip.data.caption_groups import CaptionGroups
from teachclip.models.student import StudentModel
from teachclip.processes import Processes
from teachclip.training.batches import StoredRelevance, TrainingBatches
from teachclip.training.loop import Schedule
from teachclip.training.optim import build_optimizer, freeze_clip_inputs, parameter_groups, published_schedule

VIDEOS, CAPTIONS, FRAMES, SIZE, TOKENS = 12, 2, 3, 16, 7


def tiny_clip(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    encoder = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**encoder, "vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 57, "eos_token_id": 58}
    vision = {**encoder, "image_size": SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()


def tiny_split() -> Split:
    videos = tuple(Video(f"video{n}", Path(f"video{n}.mp4")) for n in range(VIDEOS))
    captions = tuple(
        Caption(f"video{n}:{k}", f"video{n}", f"caption {k} of video {n}")
        for n in range(VIDEOS)
        for k in range(CAPTIONS)
    )
    return Split("train", videos, captions)


@dataclass
class TinyPixels:
    """Random frames and token ids; one video has a padded frame."""

    frames: Tensor
    mask: Tensor
    ids: Tensor

    @classmethod
    def make(cls) -> TinyPixels:
        state = np.random.RandomState(3)
        frames = torch.from_numpy(state.randint(0, 256, (VIDEOS, FRAMES, 3, SIZE, SIZE)).astype(np.uint8))
        mask = torch.ones(VIDEOS, FRAMES, dtype=torch.bool)
        mask[1, 2:] = False
        ids = torch.from_numpy(state.randint(1, 57, (VIDEOS * CAPTIONS, TOKENS)))
        ids[:, 0], ids[:, -1] = 57, 58
        return cls(frames, mask, ids)

    @property
    def text_count(self) -> int:
        return len(self.ids)

    @property
    def video_count(self) -> int:
        return len(self.frames)

    def texts(self, rows: np.ndarray) -> dict[str, Tensor]:
        ids = self.ids[rows]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def videos(self, rows: np.ndarray) -> dict[str, Tensor]:
        half = torch.full((3,), 0.5)
        return {"frames": self.frames[rows], "frame_mask": self.mask[rows], "mean": half, "std": half}


class TinyRelevance(StoredRelevance):
    """Random relevance in place of a store."""

    def __init__(self) -> None:
        state = np.random.RandomState(4)
        self.logits = torch.from_numpy(state.standard_normal((VIDEOS * CAPTIONS, VIDEOS)).astype(np.float32) * 3)
        weights = state.dirichlet(np.ones(FRAMES), VIDEOS * CAPTIONS).astype(np.float32)
        self.frames = torch.from_numpy(weights)

    def video_text(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        return self.logits[rows][:, columns]

    def batch(self, rows: np.ndarray, columns: np.ndarray, own: slice = slice(None)) -> tuple[Tensor, Tensor]:
        return self.video_text(rows[own], columns), self.frames[rows[own]]


def tiny_student() -> StudentModel:
    torch.manual_seed(5)
    return StudentModel.from_backbone(tiny_clip(), temporal_layers=2, frames=FRAMES)


def tiny_batches(
    processes: Processes | None = None, *, batch_size: int = 8, stored: bool = True, captions_per_video: int = 1
) -> TrainingBatches:
    split = tiny_split()
    groups = CaptionGroups(split.caption_videos, captions_per_video) if captions_per_video > 1 else None
    sampling = BatchSampler(len(split.captions), batch_size, 0, groups=groups)
    return TrainingBatches(
        TinyPixels.make(), split, sampling, processes or Processes(), [TinyRelevance()] if stored else []
    )


def tiny_optimizer(student: StudentModel) -> torch.optim.Optimizer:
    freeze_clip_inputs(student)
    groups = parameter_groups(student, lr=1e-3, clip_lr=1e-4, attention_lr=1e-2, weight_decay=0.2)
    return build_optimizer("bert_adam", groups)


def tiny_schedule(steps: int, **changes: int | None) -> Schedule:
    values: dict[str, Any] = {"evaluate_every": 3, "checkpoint_every": 2, "log_every": 1, **changes}
    return Schedule(steps=steps, rate=lambda progress: published_schedule(progress, 0.1), max_grad_norm=1.0, **values)
