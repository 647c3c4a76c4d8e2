"""What steps are measured with: random weights of real sizes, made-up videos in memory, and relevance on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.data.batches import BatchSampler
from teachclip.data.caption_groups import CaptionGroups
from teachclip.errors import RecipeError
from teachclip.models.student import StudentModel
from teachclip.pipeline.teachers import new_teacher
from teachclip.processes import Processes
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scoring.inputs import Batch
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.training.batches import StoredRelevance, TrainingBatches
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher

FRAMES, TOKENS, CAPTIONS_PER_VIDEO = 12, 32, 20
ROWS_PER_SHARD = 512
ONLINE = ("xclip", "ts2net")
"""The two teachers of the published MSR-VTT run."""

_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
_ENDS = {"bos_token_id": 998, "eos_token_id": 999}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "text_config": {**_TOWER, "vocab_size": 1000, "max_position_embeddings": TOKENS, **_ENDS},
        "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
        "projection_dim": 64,
    },
    "vit-b-32": {},
}
"""Configurations of CLIP; the one of `vit-b-32` is the default of transformers."""


@dataclass(frozen=True)
class MadeUpInputs:
    """Random frames and captions in memory: `Inputs`. Videos share the frames of a few, each of which is copied."""

    frames: Tensor
    ids: Tensor
    video_count: int
    text_count: int

    @classmethod
    def make(cls, config: CLIPConfig, videos: int, captions: int) -> MadeUpInputs:
        """Draw the frames of 64 videos, and token ids of 6 to 20 tokens for every caption."""
        torch.manual_seed(0)
        size, text = config.vision_config.image_size, config.text_config
        frames = torch.randint(256, (64, FRAMES, 3, size, size), dtype=torch.uint8)
        ids = torch.randint(3, min(text.vocab_size, 900), (captions, 20))
        lengths = torch.randint(6, 21, (captions,))
        ids[torch.arange(captions), lengths - 1] = text.eos_token_id
        ids[torch.arange(20) >= lengths[:, None]] = 0
        return cls(frames, ids, videos, captions)

    def texts(self, rows: np.ndarray) -> Batch:
        """Return `input_ids` and `attention_mask`, cut to the longest of these texts."""
        ids = self.ids[rows]
        mask = (ids != 0).long()
        longest = int(mask.sum(1).max())
        return {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}

    def videos(self, rows: np.ndarray) -> Batch:
        """Return `frames`, `frame_mask` and the normalisation."""
        frames, half = self.frames[rows % len(self.frames)], torch.full((3,), 0.5)
        mask = torch.ones(len(rows), FRAMES, dtype=torch.bool)
        return {"frames": frames, "frame_mask": mask, "mean": half, "std": half}


def check_captions(captions: int, batch_size: int) -> None:
    """Raise RecipeError for fewer made-up captions than a batch takes."""
    least = CAPTIONS_PER_VIDEO * math.ceil(batch_size / CAPTIONS_PER_VIDEO)
    if captions < least:
        raise RecipeError(
            f"{captions} captions are too few for a batch of {batch_size}; allowed: at least {least}, "
            f"{CAPTIONS_PER_VIDEO} a video"
        )


def made_up_split(captions: int) -> Split:
    """Return a training split of so many captions, 20 for each video."""

    def names() -> Iterator[str]:
        return (f"video{number}" for number in range(captions // CAPTIONS_PER_VIDEO))

    return Split(
        "train",
        (Video(name, Path(name)) for name in names()),
        (Caption(f"{name}:{k}", name, "a caption") for name in names() for k in range(CAPTIONS_PER_VIDEO)),
    )


def made_up_relevance(folder: Path, captions: int, videos: int, number: int) -> ArrayStore:
    """Return a store of random relevance, as a teacher's: float16 (captions, videos) and (captions, frames)."""
    specs = {"video_text": ArraySpec("float16", (videos,)), "frame_text": ArraySpec("float16", (FRAMES,))}
    store = ArrayStore.open_or_create(
        folder / f"relevance-{captions}x{videos}-{number}",
        provenance={"made up": number},
        arrays=specs,
        rows=captions,
        rows_per_shard=ROWS_PER_SHARD,
    )
    generator = np.random.default_rng(number)
    base = (5 * generator.standard_normal((ROWS_PER_SHARD, videos))).astype(np.float16)
    for shard in store.missing_shards():
        rows = len(store.shard_rows(shard))
        frames = generator.dirichlet(np.ones(FRAMES), rows).astype(np.float16)
        store.write_shard(shard, {"video_text": np.roll(base[:rows], shard, axis=1), "frame_text": frames})
    for shard in range(store.shards):  # a run checks every file once: that is not what a step costs
        store.read("video_text", [store.shard_rows(shard)[0]])
        store.read("frame_text", [store.shard_rows(shard)[0]])
    return store


@dataclass
class Parts:
    """The parts that all measured steps share."""

    student: StudentModel
    clip: CLIPModel
    inputs: MadeUpInputs
    split: Split
    stores: list[ArrayStore]
    batch_size: int
    device: torch.device
    _online: list[OnlineTeacher] = field(default_factory=list)

    @classmethod
    def make(
        cls, size: str, folder: Path, *, captions: int, teachers: int, batch_size: int, device: torch.device
    ) -> Parts:
        """Make a student with random weights, and data of `captions` captions, 20 for each video."""
        torch.manual_seed(0)
        clip = CLIPModel(CLIPConfig(**SIZES[size])).eval()
        split = made_up_split(captions)
        videos = len(split.videos)
        return cls(
            StudentModel.from_backbone(clip, frames=FRAMES).to(device),
            clip,
            MadeUpInputs.make(clip.config, videos, len(split.captions)),
            split,
            [made_up_relevance(folder, len(split.captions), videos, number) for number in range(teachers)],
            batch_size,
            device,
        )

    def task(self, *, stored: int = 0, online: bool = False, chunk_size: int | None = None) -> DistillationTask:
        """Return the student with its first `stored` teachers or with those that run in every step."""
        if online and not self._online:
            for name in ONLINE:
                section = TeacherSection(name=name, checkpoint="made up")
                teacher = new_teacher(section, self.clip, seed=1, frames=FRAMES, tokens=TOKENS)
                self._online.append(OnlineTeacher(teacher.to(self.device).eval()))
        return DistillationTask(
            self.student,
            DistillationTerms(),
            stored_weights=(1.0,) * stored,
            online=self._online if online else (),
            chunk_size=chunk_size,
        )

    def batches(self, *, stored: int = 0, captions_per_video: int = 1) -> TrainingBatches:
        """Return the batches of a task with so many stored teachers."""
        videos = self.split.caption_videos
        groups = CaptionGroups(videos, captions_per_video) if captions_per_video > 1 else None
        sampler = BatchSampler(len(self.split.captions), self.batch_size, 0, groups=groups)
        relevances = [StoredRelevance(store) for store in self.stores[:stored]]
        return TrainingBatches(self.inputs, self.split, sampler, Processes(), relevances)
