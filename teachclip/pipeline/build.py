"""From a recipe to the parts: only these functions and the workspace read a `Recipe`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from teachclip.data.annotations.catalog import DEFAULT_SHARE, ValidationOptions, load_catalog
from teachclip.data.annotations.records import Catalog, Split
from teachclip.data.batches import BatchSampler
from teachclip.data.caption_groups import CaptionGroups
from teachclip.data.clauses import caption_pairs
from teachclip.data.places import Places
from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import DataError, RecipeError
from teachclip.evaluation.splits import Blocks
from teachclip.losses.checks import pick
from teachclip.models.backbone import load_backbone
from teachclip.models.families import image_size, takes_any_size
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.processes import Processes
from teachclip.recipe.conditions import CONDITIONS
from teachclip.recipe.schema import Optimizer, Recipe, Student, TextTeaching, Train
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES
from teachclip.training.frame_sets import check_divisible
from teachclip.training.loop import Schedule
from teachclip.training.optim import SCHEDULES, build_optimizer, parameter_groups
from teachclip.training.task import DistillationTerms, Term


def build_catalog(recipe: Recipe) -> Catalog:
    """Read the annotations and find the video files."""
    data = recipe.data
    validation: ValidationOptions | Path | None = None
    if (section := data.validation) is not None:
        share = DEFAULT_SHARE if section.share is None else section.share
        validation = section.list or ValidationOptions(videos=section.videos, share=share, seed=section.seed)
    return load_catalog(
        videos=data.videos,
        format=data.format,
        annotations=data.annotations,
        train=data.train,
        test=data.test,
        validation=validation,
        max_missing=data.max_missing,
        texts=data.texts,
        uncaptioned=data.uncaptioned,
    )


def build_frame_sampling(recipe: Recipe) -> FrameSampling:
    """Return the frame sampling."""
    frames = recipe.frames
    return FrameSampling(
        frames.sampling,
        frames.count,
        rate=frames.rate,
        augmentation_seed=frames.augmentation_seed,
        keyframes=frames.keyframes,
        decoded_size=frames.decoded_size,
    )


def build_processor(recipe: Recipe, config: PreTrainedConfig, source: str | None = None) -> StudentProcessor:
    """Return the tokenizer and the decoding settings that are saved with a student on the backbone of `config`.

    `source`: where they are read; None: from the recipe's backbone.
    """
    return StudentProcessor.from_backbone(
        source or recipe.student.backbone,
        config,
        sampling=build_frame_sampling(recipe),
        size=recipe.frames.size,
        max_tokens=recipe.text.max_tokens,
        trust_remote_code=recipe.student.trust_remote_code,
    )


def build_backbone(recipe: Recipe, source: str | None = None) -> PreTrainedModel:
    """Load what the student starts from: `source`, or the recipe's backbone.

    A backbone that is a configuration alone starts from random weights, which depend on the recipe's seed alone.
    Raises RecipeError if frames of another size are asked for.
    """
    source, wanted_size = source or recipe.student.backbone, recipe.frames.size
    torch.manual_seed(recipe.seed)
    backbone = load_backbone(source)
    size = image_size(backbone.config)
    if wanted_size not in (None, size) and not takes_any_size(backbone.config):
        raise RecipeError(f"frames.size is {wanted_size}, but {source} takes images of {size}")
    return backbone


def without_text_backbone(recipe: Recipe) -> Recipe:
    """Return a recipe for what does not stand on the student's text encoder: teachers, and texts that they choose."""
    plain = {"text_backbone": None, "text_teaching": TextTeaching()}
    return recipe.model_copy(update={"student": recipe.student.model_copy(update=plain)})


def build_selection(recipe: Recipe, catalog: Catalog) -> Split:
    """Return the split that checkpoints are selected on. Raises DataError if there is none."""
    split = catalog.validation if recipe.data.select_on == "validation" else catalog.test
    if split is None and recipe.data.select_on == "validation":
        raise DataError(
            f"{recipe.name}: there is no validation split to select on; give data.validation.videos=N to hold out "
            "training videos, or write data.select_on=test to select on test as papers did"
        )
    if split is None:
        raise DataError(f"{recipe.name}: data.select_on is test, but the data has no test split")
    return split


def check_training(recipe: Recipe, train: Train, catalog: Catalog, processes: Processes) -> None:
    """Find what would fail after hours of decoding: no split to select on, or batches that do not fit."""
    build_selection(recipe, catalog)
    check_losses(recipe)
    check_uncaptioned(recipe, catalog)
    sampler = build_sampler(train, catalog.train, seed=recipe.seed)
    sampler.local(0, processes.index, processes.count)
    training_steps(train, sampler.batches_per_epoch)


def check_student_training(recipe: Recipe, catalog: Catalog, processes: Processes) -> None:
    """Find what would fail after hours of decoding, of a student's training and its terms; see `check_training`."""
    check_training(recipe, recipe.train, catalog, processes)
    check_joined_clips(recipe, catalog.train, processes)
    check_more_texts(recipe, catalog.train, processes)
    if recipe.losses.uses_frame_sets:
        sets = recipe.losses.frame_sets
        check_divisible("frame_sets", {"count": sets.count, "texts": sets.texts}, processes.count)


def check_joined_clips(recipe: Recipe, split: Split, processes: Processes) -> None:
    """Raise RecipeError for more joined clips in a step than there are pairs, or than are encoded at a time.

    Raises LaunchError if they cannot be shared out evenly.
    """
    term, train = recipe.losses.joined_clips, recipe.train
    if not term.is_used:
        return
    check_divisible("joined_clips", {"count": term.count}, processes.count)
    pairs = len(caption_pairs(split, recipe.order_seed))
    if pairs < term.count:
        raise RecipeError(
            f"losses.joined_clips.count is {term.count}, but there are {pairs} pairs of captions of different videos "
            "with different texts; lower it"
        )
    each = term.count // processes.count
    if train.encoders != "frozen" and train.chunk_size is not None and each > train.chunk_size:
        raise RecipeError(
            f"train.chunk_size is {train.chunk_size}, but the joined clips of a step are encoded all at once, {each} "
            "in each process: lower losses.joined_clips.count, or raise train.chunk_size to that"
        )


def check_more_texts(recipe: Recipe, split: Split, processes: Processes) -> None:
    """Raise RecipeError for more further texts in a step than there are; LaunchError if they cannot be shared out."""
    count = recipe.losses.video_text.more_texts
    if not uses_more_texts(recipe):
        return
    check_divisible("video_text", {"more_texts": count}, processes.count)
    if (most := len(split.captions) - recipe.train.batch_size) < count:
        raise RecipeError(
            f"losses.video_text.more_texts is {count}, but there are {max(0, most)} training texts beyond a batch of "
            f"{recipe.train.batch_size}; lower it"
        )


def uses_more_texts(recipe: Recipe) -> bool:
    """Whether a step compares its videos with texts beyond the batch."""
    term = recipe.losses.video_text
    return bool(recipe.teachers and term.is_used and term.more_texts)


def check_uncaptioned(recipe: Recipe, catalog: Catalog) -> None:
    """Raise RecipeError for what needs captions where training or selection has texts or videos without them."""
    is_measured = build_selection(recipe, catalog).is_paired
    if catalog.train.is_paired and is_measured:
        return
    frame_text = recipe.losses.frame_text
    problems = []
    if not is_measured:
        problems += [
            f"{name} needs captions to measure by; remove it" for name in CONDITIONS if getattr(recipe, name)
        ]
    if not recipe.teachers:
        problems.append("teachers: it needs one, which says what texts and videos have in common")
    if frame_text.is_used and recipe.teachers and frame_text.targets != "video":
        problems.append("losses.frame_text.targets is pair, which needs captions; write video")
    if recipe.teaching.source != "stored":
        problems.append("teaching.source is online; write stored: it looks for the surest texts of all")
    if recipe.teaching.weighting != "fixed":
        problems.append("teaching.weighting is confidence, which needs captions; write fixed")
    if recipe.frames.temporal_augmentation > 1:
        problems.append("frames.temporal_augmentation needs captions; write 1")
    if any(teacher.keep is not None for teacher in recipe.teachers):
        problems.append("teachers.keep needs captions; remove it")
    if recipe.losses.joined_clips.is_used:
        problems.append("losses.joined_clips needs captions; write weight 0")
    if recipe.train.captions_per_video > 1:
        problems.append("train.captions_per_video needs captions; write 1")
    if problems:
        lines = "\n".join(f"{recipe.name}: {problem}" for problem in problems)
        raise RecipeError(f"{recipe.name}: the data has {catalog.train.describe()}\n{lines}")


def build_sampler(train: Train, split: Split, *, seed: int, views: int = 1) -> BatchSampler:
    """Return which pairs, or other places (see `Places`), of a split are in every batch."""
    together = train.captions_per_video
    groups = CaptionGroups(split.caption_videos, together) if together > 1 else None
    return BatchSampler(Places(split, seed).count, train.batch_size, seed, views, groups)


def check_losses(recipe: Recipe) -> None:
    """Import the losses that a recipe names as `module:name`.

    Raises RecipeError for one that is not there or does not take the tensors of its term.
    """
    for name, kind, table, tensors in (
        ("video-text", recipe.losses.video_text.kind, VIDEO_TEXT_LOSSES, ("student", "teacher")),
        ("frame-text", recipe.losses.frame_text.kind, FRAME_TEXT_LOSSES, ("scores", "relevance", "mask")),
    ):
        function = pick(name, kind, table)
        try:
            inspect.signature(function).bind(*tensors)
        except TypeError as error:
            raise RecipeError(f"{name} loss {kind!r} is called with ({', '.join(tensors)}): {error}") from error


def build_student(section: Student, backbone: PreTrainedModel, *, seed: int, frames: int) -> StudentModel:
    """Build a fresh student on its backbone. The new parameters depend on `seed` alone."""
    torch.manual_seed(seed)
    return StudentModel.from_backbone(
        backbone,
        temporal_layers=section.temporal_layers,
        pooling_temperature=section.pooling_temperature,
        mask_padding=section.mask_padding,
        frames=frames,
        attention=section.attention,
        attention_input=section.attention_input,
        attention_rescale=section.attention_rescale,
        adapters=section.adapters,
        adapter_width=section.adapter_width,
        matryoshka=section.matryoshka,
        vectors=section.vectors,
    )


def build_optimizer_for(model: nn.Module, section: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer over the published parameter groups."""
    groups = parameter_groups(
        model,
        lr=section.lr,
        clip_lr=section.clip_lr,
        attention_lr=section.attention_lr,
        weight_decay=section.weight_decay,
        adapter_lr=section.adapter_lr,
        layer_decay=section.layer_decay,
        clip_decay=0.0 if section.l2_start else None,
    )
    return build_optimizer(section.name, groups)


def training_steps(train: Train, batches_per_epoch: int) -> int:
    """Return the steps of a run. Raises RecipeError if its encoders never move."""
    steps = train.steps or (train.epochs or 1) * batches_per_epoch
    if train.frozen_steps >= steps:
        raise RecipeError(f"train.frozen_steps is {train.frozen_steps}; allowed: fewer than the {steps} steps")
    return steps


def build_schedule(
    train: Any, optimizer: Optimizer, *, batches_per_epoch: int, seed: int, select_last: bool = False
) -> Schedule:
    """Return the lengths of a run in steps. Raises RecipeError if its encoders never move."""
    steps = training_steps(train, batches_per_epoch)
    evaluate_every = train.evaluate_every or min(batches_per_epoch, steps)
    curve = SCHEDULES[optimizer.schedule]
    return Schedule(
        steps=steps,
        rate=lambda progress: curve(progress, optimizer.warmup),
        max_grad_norm=optimizer.max_grad_norm,
        evaluate_every=evaluate_every,
        checkpoint_every=train.checkpoint_every or evaluate_every,
        log_every=train.log_every,
        workers=train.workers,
        seed=seed,
        chunk_size=train.chunk_size,
        select_last=select_last,
        frozen_steps=train.frozen_steps,
        ema=train.ema,
        l2_start=optimizer.l2_start,
    )


def build_precision(train: Train) -> str:
    """Return the autocast of training; see `train.mixed_precision`."""
    if train.mixed_precision != "auto":
        return train.mixed_precision
    moves = train.encoders != "frozen" and train.clip_weights == "float32"
    has_gpu = moves and torch.cuda.is_available()
    return "bf16" if has_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def build_blocks(recipe: Recipe) -> Blocks:
    """Return how much evaluation computes at once."""
    section = recipe.evaluation
    return Blocks(section.batch_size, section.text_block, section.video_block, section.precision)


def run_settings(recipe: Recipe, *, teacher: TeacherSection | None = None) -> dict[str, Any]:
    """Return what the numbers of a run depend on: the recipe without folders, workers and other matters of speed."""
    values = recipe.model_dump(mode="json", exclude={"output", "stores", "evaluation", "card"})
    frames, plain = (
        values["frames"],
        {"temporal_augmentation": 1, "on_error": "skip"},
    )  # named only where they are used
    chosen = ["sampling", "count", "size", *(key for key, value in plain.items() if frames[key] != value)]
    values["frames"] = {key: frames[key] for key in chosen}
    speed = ("workers", "trackers", "log_every", "checkpoint_every")
    values["train"] = {key: value for key, value in values["train"].items() if key not in speed}
    values["train"]["mixed_precision"] = build_precision(recipe.train)
    for entry in values["teachers"]:
        del entry["training"], entry["label"]
        if entry["keep"] is None:
            del entry["keep"]
    if recipe.student.text_backbone is None:
        del values["student"]["text_teaching"]
    else:  # what is read of the file is part of the encoder's weights
        del values["student"]["text_teaching"]["texts"]
    _drop_unused_options(values, recipe)
    del values["teaching"]["batch_size"]  # a matter of speed
    del values["teaching"]["max_gb"]  # which teachers score tokens is part of what the run is trained on
    new = ("texts", "uncaptioned")  # named only where they are used
    values["data"] = {
        key: value
        for key, value in values["data"].items()
        if key not in ("videos", "max_missing") and not (key in new and value is None)
    }
    if recipe.evaluation.precision != "float32":  # selection depends on it
        values["evaluation"] = {"precision": recipe.evaluation.precision}
    if teacher is not None:
        shared = {key: values[key] for key in ("data", "frames", "text")}
        identity = teacher.model_dump(mode="json", exclude={"label", "weight", "frame_temperature", "keep"})
        if teacher.training is not None:
            _drop_usual(identity["training"]["train"], "train", Train)
            identity["training"]["train"]["mixed_precision"] = build_precision(teacher.training.train)
            _drop_usual(identity["training"]["optimizer"], "optimizer", Optimizer)
            del identity["training"]["annotations"]  # that of `data` is what it reads
        return {**shared, "clip": recipe.student.backbone, "teacher": identity}
    return values


_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "train": (
        *("captions_per_video", "chunk_size", "compile", "activation_checkpointing", "tf32"),
        *("lora_rank", "frozen_steps", "ema"),
    ),
    "student": (
        "text_backbone",
        "trust_remote_code",
        "attention",
        "attention_input",
        "attention_rescale",
        "adapters",
        "adapter_width",
        "matryoshka",
        "temperature_scaling",
        "wise_ft",
        "vectors",
    ),
    "optimizer": ("adapter_lr", "layer_decay", "l2_start"),
    "teaching": ("weighting", "encoding_precision"),
}
"""Options beyond the paper: a run without them goes on where one of before they existed stopped."""


def _drop_unused_options(values: dict[str, Any], recipe: Recipe) -> None:
    """Name options in a run's settings only where they are used."""
    for section in _OPTIONS:
        _drop_usual(values[section], section, type(getattr(recipe, section)))
    if recipe.batch_seed is None:
        del values["batch_seed"]
    for name in CONDITIONS:
        if not getattr(recipe, name):
            del values[name]
    losses = values["losses"]
    if not recipe.losses.uses_frame_sets:
        del losses["frame_sets"]
    if not recipe.losses.joined_clips.is_used:
        del losses["joined_clips"]
    for key in ("more_texts", "teacher_temperature", "direction"):
        if losses["video_text"][key] == type(recipe.losses.video_text).model_fields[key].default:
            del losses["video_text"][key]
    if recipe.losses.contrastive.temperature == 1:
        del losses["contrastive"]["temperature"]
    if recipe.losses.contrastive.teaches_adapters or not recipe.student.adapters:
        del losses["contrastive"]["teaches_adapters"]
    if not recipe.losses.contrastive.swapped_clauses:
        del losses["contrastive"]["swapped_clauses"]
    if losses["frame_text"]["surest"] == type(recipe.losses.frame_text).model_fields["surest"].default:
        del losses["frame_text"]["surest"]
    for term in losses.values():
        for key in ("end_weight", "saturation", "spread"):
            if key in term and term[key] is None:
                del term[key]


def _drop_usual(values: dict[str, Any], section: str, kind: type[BaseModel]) -> None:
    """Drop the options of a section that have their default."""
    for key in _OPTIONS[section]:
        if values[key] == kind.model_fields[key].get_default(call_default_factory=True):
            del values[key]


def build_terms(recipe: Recipe) -> DistillationTerms:
    """Return the terms of the loss."""
    losses = recipe.losses

    def term(section: Any) -> Term:
        names = {field.name for field in fields(Term)} - {"of_video"}
        values = section.model_dump(include=names)
        return Term(**values, of_video=getattr(section, "targets", "pair") == "video")

    return DistillationTerms(
        contrastive=term(losses.contrastive),
        video_text=term(losses.video_text),
        frame_text=term(losses.frame_text),
        frame_sets=term(losses.frame_sets),
        joined_clips=term(losses.joined_clips),
    )
