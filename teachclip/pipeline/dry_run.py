"""Try a recipe without writing a file: check it, decode two videos, take one step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from teachclip.console import log
from teachclip.data.annotations.records import Caption, Catalog, Split
from teachclip.data.batches import BatchSampler
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.workers import OnError
from teachclip.models.backbone import clamp_scale
from teachclip.models.preprocessing import Preprocessing
from teachclip.models.processing import StudentProcessor
from teachclip.pipeline import build
from teachclip.pipeline.conditions import possible_recipes
from teachclip.pipeline.encoders import prepare_encoders
from teachclip.pipeline.order import joined_pairs
from teachclip.pipeline.selection import selects_last
from teachclip.pipeline.task import Teachers, build_task, shared_prefix
from teachclip.pipeline.teachers import (
    TeacherHandle,
    TeacherHandles,
    check_frame_set_scorer,
    check_shortlist,
    open_teachers,
)
from teachclip.pipeline.text_backbone import untaught_source
from teachclip.pipeline.unpaired import check_unpaired
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.scoring.inputs import PixelInputs, to_device, tokenize
from teachclip.scoring.targets import tempered_relevance
from teachclip.training.batches import TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachclip.training.task import OnlineTeacher


@dataclass(frozen=True)
class _DecodedFrames:
    """A frame store of a few videos, in memory."""

    frames: Tensor
    mask: Tensor

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.frames[rows], self.mask[rows]


@dataclass(frozen=True)
class _Pairs:
    """A few videos with one caption each: as a split, and their decoded frames at full size."""

    split: Split
    decoded: list[Tensor]
    count: int

    @classmethod
    def decode(cls, catalog: Catalog, videos: int, sampling: FrameSampling, on_error: OnError) -> _Pairs:
        split = _first_pairs(catalog.train, videos)
        decoded = [
            decode_frames(video.path, sampling, start=video.start, end=video.end, on_error=on_error)
            for video in split.videos
        ]
        for video, frames in zip(split.videos, decoded, strict=True):
            log(f"decoded {len(frames)} frames of {video.path}")
        return cls(split, decoded, sampling.count)

    def inputs(self, how: Preprocessing) -> PixelInputs:
        """Return them as a model reads them."""
        frames = torch.zeros(len(self.decoded), self.count, 3, how.size, how.size, dtype=torch.uint8)
        mask = torch.zeros(len(self.decoded), self.count, dtype=torch.bool)
        for row, decoded in enumerate(self.decoded):
            frames[row, : len(decoded)], mask[row, : len(decoded)] = how.transform(decoded), True
        return PixelInputs(
            tokenized=tokenize(self.split, how),
            frames=_DecodedFrames(frames, mask),  # type: ignore[arg-type]
            frame_rows=np.arange(len(self.decoded)),
            mean=torch.tensor(how.mean),
            std=torch.tensor(how.std),
        )


@dataclass(frozen=True)
class _ReadRelevance:
    """The relevance of the pairs from a file of scores, where training reads a store."""

    video_text: Tensor
    frame_text: Tensor | None

    @property
    def has_frames(self) -> bool:
        return self.frame_text is not None

    def batch(self, rows: np.ndarray, columns: np.ndarray, own: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        return self.video_text[rows[own]][:, rows], None if self.frame_text is None else self.frame_text[rows[own]]


def dry_run(recipe: RecipeSource, overrides: Sequence[str] = ()) -> None:
    """Check the recipe, decode its first two training videos and take one optimizer step on them.

    Of a recipe with conditions it takes one for each recipe that they may make of it. A teacher whose checkpoint
    exists runs online. The step has no joined clips and no swapped captions. No file is written.
    """
    recipe = load_recipe(recipe, overrides)
    accelerator = build_accelerator(
        mixed_precision=build.build_precision(recipe.train), trackers=recipe.train.trackers, dry_run=True
    )
    catalog = build.build_catalog(recipe)
    build.check_uncaptioned(recipe, catalog)
    possible = possible_recipes(recipe)
    for each in possible:
        build.check_student_training(each, catalog, processes_of(accelerator))
    selects_last(build.build_selection(recipe, catalog))
    for each in possible:
        check_unpaired(each)
    with untaught_source(recipe, catalog, accelerator.device) as source:
        backbone = build.build_backbone(recipe, source)
        processor = build.build_processor(recipe, backbone.config, source)
    pairs = _Pairs.decode(catalog, 2, build.build_frame_sampling(recipe), recipe.frames.on_error)
    for number, each in enumerate(possible):
        if number:
            log("with conditions that a run measures before it trains:")
        is_last = number + 1 == len(possible)
        _step(each, accelerator, catalog, pairs, backbone if is_last else copy.deepcopy(backbone), processor)
    log("dry run passed; nothing was written")


def _step(
    recipe: Recipe,
    accelerator: Accelerator,
    catalog: Catalog,
    pairs: _Pairs,
    backbone: PreTrainedModel,
    processor: StudentProcessor,
) -> None:
    """Take one optimizer step on the pairs."""
    device, split, how = accelerator.device, pairs.split, processor.preprocessing
    if recipe.losses.joined_clips.is_used:
        joined_pairs(recipe, catalog.train, how, backbone)
    inputs = pairs.inputs(how)
    student = build.build_student(recipe.student, backbone, seed=recipe.seed, frames=recipe.frames.count)
    prepare_encoders(student, recipe)
    handles = open_teachers(recipe, device)
    teachers = _teachers(recipe, handles, catalog, pairs, how)
    frame_sets, frame_set_scorer = _frame_sets(recipe, handles, pairs, how)
    task = build_task(recipe, student, teachers, frame_set_scorer)
    optimizer = build.build_optimizer_for(student, recipe.optimizer)
    task, optimizer = accelerator.prepare(task.to(device), optimizer)
    sampler = BatchSampler(len(split.captions), len(split.captions), 0)
    batches = TrainingBatches(inputs, split, sampler, Processes(), teachers.stored, teachers.extras, frame_sets)
    losses = task(to_device({**batches[0], "progress": torch.tensor(0.0)}, device))
    accelerator.backward(losses["loss"])
    optimizer.step()
    clamp_scale(student.backbone)
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    values = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
    log(f"recipe {recipe.name}: {catalog.train.describe()}, {trained:,} trained parameters")
    log(f"one step on {len(split.captions)} pairs: {values}")


def _teachers(
    recipe: Recipe, handles: TeacherHandles, catalog: Catalog, pairs: _Pairs, how: Preprocessing
) -> Teachers:
    """Prepare the teachers whose checkpoints exist: scores are read, all others run online."""
    sources, known = Teachers(), {"": pairs.inputs(how)}
    for handle in handles.values():
        section = handle.section
        if not handle.exists():
            log(f"teacher {section.label}: {section.checkpoint} does not exist yet; this step runs without it")
            continue
        handle.check(recipe)
        check_shortlist(recipe, handle, handles)
        if handle.reads_relevance:
            sources.stored.append(_read(handle, catalog, pairs))  # type: ignore[arg-type]
            sources.weights.append(section.weight)
            continue
        preprocessing = handle.traits.preprocessing
        prefix = "" if preprocessing is None else shared_prefix(known, pairs.inputs(preprocessing))
        sources.online.append(OnlineTeacher(handle.model, section.weight, section.frame_temperature, prefix))
        if prefix:
            sources.extras[prefix] = known[prefix]
    sources.log_frame_relevance(recipe)
    return sources


def _frame_sets(
    recipe: Recipe, handles: TeacherHandles, pairs: _Pairs, how: Preprocessing
) -> tuple[FrameSetSampler | None, FrameSetScorer | None]:
    """Return sets of the decoded frames, at most as many as pairs, or nothing if their scorer does not exist yet."""
    term, count = recipe.losses.frame_sets, len(pairs.split.videos)
    check_frame_set_scorer(recipe, handles)
    handle = handles.get(term.scorer)
    if not recipe.losses.uses_frame_sets or (handle is not None and not handle.exists()):
        return None, None
    fewest, most = term.frames
    options = (pairs.inputs(how), count, count, fewest, most, recipe.seed, term.repeats)
    if handle is None:
        return FrameSetSampler(*options), FrameSetScorer(term.scale)
    scored = pairs.inputs(handle.traits.preprocessing or how)
    return FrameSetSampler(*options, scored, handle.traits.min_frames), FrameSetScorer(term.scale, handle.model)


def _read(handle: TeacherHandle, catalog: Catalog, pairs: _Pairs) -> _ReadRelevance:
    """Check a whole file of scores and take what it says of the pairs."""
    others = [split for split in catalog.splits if split is not catalog.train]
    relevance = handle.model.relevance_of(catalog.train, frames=pairs.count, others=others)
    wanted = {caption.id for caption in pairs.split.captions}
    rows = np.array([row for row, caption in enumerate(catalog.train.captions) if caption.id in wanted])
    values = {name: torch.from_numpy(array) for name, array in relevance.rows(rows).items()}
    frame_text = values.get("frame_text")
    if frame_text is not None:
        frame_text = tempered_relevance(frame_text, handle.section.frame_temperature)
    return _ReadRelevance(values["video_text"][:, : len(rows)], frame_text)  # the pairs are of the first videos


def _first_pairs(split: Split, count: int) -> Split:
    videos = split.videos[:count]
    if not split.is_paired:  # the first texts stand for captions: only that a step can be taken is tried
        own = zip(split.captions, videos, strict=False)
        texts = tuple(Caption(caption.id, video.id, caption.text) for caption, video in own)
        return Split(split.name, videos[: len(texts)], texts)
    first = {caption.video_id: caption for caption in reversed(split.captions)}
    return replace(split, videos=videos, captions=tuple(first[video.id] for video in videos))
