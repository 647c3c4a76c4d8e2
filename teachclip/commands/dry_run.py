"""Try a recipe without writing a file: check it, decode two videos, take one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from teachclip.commands import build
from teachclip.commands.cli import say
from teachclip.data.batches import BatchPlan, Tokenized
from teachclip.data.catalog import Split, Video
from teachclip.data.transform import resize_and_crop
from teachclip.data.video import FramePlan, decode_frames
from teachclip.inputs import PixelInputs, to_device
from teachclip.processes import Processes
from teachclip.recipe import Recipe
from teachclip.training.batches import TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.optim import clamp_logit_scale
from teachclip.training.task import DistillationTask, OnlineTeacher


@dataclass(frozen=True)
class _DecodedFrames:
    """A frame store of a few videos, in memory."""

    frames: Tensor
    mask: Tensor

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.frames[rows], self.mask[rows]


def dry_run(recipe: Recipe) -> None:
    """Check the recipe, decode its first two training videos and take one optimizer step on them.

    A teacher whose checkpoint exists runs online. No file is written.
    """
    accelerator = build_accelerator(
        mixed_precision=recipe.train.mixed_precision, trackers=recipe.train.trackers, dry_run=True
    )
    device = accelerator.device
    catalog = build.build_catalog(recipe)
    build.check_training(recipe, recipe.train, catalog, processes_of(accelerator))
    clip = build.build_clip(recipe)
    processor = build.build_processor(recipe)
    split = _first_pairs(catalog.train, 2)
    frames = _decode(split.videos, build.build_plan(recipe), recipe.frames.size)
    inputs = PixelInputs(
        tokenized=Tokenized.from_captions(split.captions, processor.tokenizer, max_tokens=recipe.text.max_tokens),
        frames=frames,  # type: ignore[arg-type]
        frame_rows=np.arange(len(split.videos)),
        mean=torch.tensor(processor.mean),
        std=torch.tensor(processor.std),
    )
    student = build.build_student(recipe.student, clip, seed=recipe.seed, frames=recipe.frames.count)
    build.freeze(student, towers=recipe.train.towers)
    build.set_clip_weights(student, recipe.train.clip_weights)
    online = []
    for section in recipe.teachers:
        if build.is_there(section):
            online.append(OnlineTeacher(build.build_teacher(section, device), section.weight))
        else:
            say(f"teacher {section.label}: {section.checkpoint} is not there yet, so this step goes without it")
    task = DistillationTask(student, build.build_terms(recipe), online=online)
    optimizer = build.build_optimizer_for(student, recipe.optimizer)
    task, optimizer = accelerator.prepare(task.to(device), optimizer)
    batches = TrainingBatches(inputs, split, BatchPlan(len(split.captions), len(split.captions), 0), Processes())
    losses = task(to_device(batches[0], device))
    accelerator.backward(losses["loss"])
    optimizer.step()
    clamp_logit_scale(student.clip.logit_scale)
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
    say(f"recipe {recipe.name}: {len(catalog.train.captions)} training pairs, {trained:,} trained parameters")
    say(f"one step on {len(split.captions)} pairs: {values}")
    say("dry run passed; nothing was written")


def _first_pairs(split: Split, count: int) -> Split:
    videos = split.videos[:count]
    first = {caption.video_id: caption for caption in reversed(split.captions)}
    return replace(split, videos=videos, captions=tuple(first[video.id] for video in videos))


def _decode(videos: tuple[Video, ...], plan: FramePlan, size: int) -> _DecodedFrames:
    frames = torch.zeros(len(videos), plan.count, 3, size, size, dtype=torch.uint8)
    mask = torch.zeros(len(videos), plan.count, dtype=torch.bool)
    for row, video in enumerate(videos):
        decoded = resize_and_crop(decode_frames(video.path, plan), size)
        frames[row, : len(decoded)], mask[row, : len(decoded)] = decoded, True
        say(f"decoded {len(decoded)} frames of {video.path}")
    return _DecodedFrames(frames, mask)
