"""From a recipe to its teachers: which class, is its checkpoint there, does it take the recipe's sizes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.backbone import load_config
from teachclip.models.preprocessing import load_preprocessing
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import TEACHER_GROUP, TEACHERS, closest, resolve
from teachclip.scorer import Teacher, reads_relevance

FILE_ENDINGS = (".bin", ".csv", ".npy", ".parquet", ".pt", ".pth", ".safetensors")
"""A checkpoint whose name ends so is a file, never the id of a repository."""


def check_teachers(recipe: Recipe) -> None:
    """Load every teacher once, before hours of decoding, and see that it takes the recipe's frames and tokens.

    Raises CheckpointError for a checkpoint that does not exist or fit, DataError for files of scores, RecipeError for
    options and for sizes that a teacher does not take.
    """
    for section in recipe.teachers:
        if not is_there(section):
            hint = "train it with tools/train_teacher.py" if section.training else "give the path of its checkpoint"
            raise CheckpointError(f"teacher {section.label}: {section.checkpoint} does not exist; {hint}")
        teacher = build_teacher(section, torch.device("cpu"))
        if reads_relevance(teacher) and recipe.frames.temporal_augmentation > 1:
            raise RecipeError(
                f"teacher {section.label!r} reads its relevance from a file, which knows one version of each "
                f"video: it needs frames.temporal_augmentation=1, got {recipe.frames.temporal_augmentation}"
            )
        check_sizes(recipe, section, teacher)
    check_frame_set_scorer(recipe)


def check_frame_set_scorer(recipe: Recipe) -> None:
    """Raise RecipeError if the teacher that is to score sets can only read scores of the videos that there are."""
    for section in recipe.teachers:
        asked = recipe.losses.uses_frame_sets and recipe.losses.frame_sets.scorer == section.label
        if asked and reads_relevance(teacher_class(section)):
            raise RecipeError(
                f"losses.frame_sets.scorer: {section.label!r} reads its scores from a file: it cannot score sets"
            )


def check_sizes(recipe: Recipe, section: TeacherSection, teacher: Any) -> None:
    """Raise RecipeError if a teacher takes fewer tokens, or fewer or more frames, than the recipe has.

    Its attributes `max_tokens`, `max_frames` and `min_frames` say so; without them it takes any number.
    """
    tokens, frames = getattr(teacher, "max_tokens", None), recipe.frames.count
    least, most = getattr(teacher, "min_frames", 1), getattr(teacher, "max_frames", frames)
    if tokens is not None and recipe.text.max_tokens > tokens and getattr(teacher, "preprocessing", None) is None:
        raise RecipeError(
            f"teacher {section.label} takes at most {tokens} tokens, text.max_tokens is {recipe.text.max_tokens}"
        )
    if not least <= frames <= most:
        raise RecipeError(f"teacher {section.label} takes {least} to {most} frames, frames.count is {frames}")


def teacher_class(section: TeacherSection) -> Any:
    """Return the class that a teacher's name stands for. Raises RecipeError for an unknown one."""
    return resolve("teacher", section.name, TEACHERS, group=TEACHER_GROUP)


def is_there(section: TeacherSection) -> bool:
    """Whether a teacher's checkpoint exists, as a file or folder, or may exist under this id on the hub.

    Only a teacher that reads sources other than files (`from_source`) may be on the hub. Raises RecipeError for an
    unknown teacher.
    """
    if Path(section.checkpoint).exists():
        return True
    found = teacher_class(section)
    if reads_relevance(found):
        return False
    may_be_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", section.checkpoint)
    is_file = Path(section.checkpoint).suffix in FILE_ENDINGS
    return callable(getattr(found, "from_source", None)) and may_be_id is not None and not is_file


def build_teacher(section: TeacherSection, device: torch.device) -> Teacher:
    """Load a teacher from its checkpoint."""
    load_teacher = resolve("teacher loader", "teachers:load_teacher", {})
    teacher = load_teacher(section.name, section.checkpoint, **section.options).to(device)
    if section.reads is not None:
        teacher.preprocessing = load_preprocessing(section.reads, load_config(section.reads))
    return teacher  # type: ignore[no-any-return]


def new_teacher(section: TeacherSection, clip: nn.Module, *, seed: int, frames: int, tokens: int) -> Any:
    """Build a fresh teacher on its CLIP, initialised as published.

    A teacher whose `from_clip` asks for them learns how many `frames` and `tokens` the data has. Raises RecipeError
    for a teacher that cannot be trained.
    """
    factory = teacher_class(section)
    if not callable(getattr(factory, "from_clip", None)):
        raise RecipeError(f"teacher {section.name!r} cannot be trained here: it has no from_clip(clip, **options)")
    asked = inspect.signature(factory.from_clip).parameters
    sizes = {name: value for name, value in {"frames": frames, "tokens": tokens}.items() if name in asked}
    options = {**sizes, **section.options, **(section.training.options if section.training else {})}
    for key in options:
        if key not in asked:
            raise RecipeError(f"teacher {section.name!r} has no option {key!r} in training{closest(key, asked)}")
    torch.manual_seed(seed)
    return factory.from_clip(clip, **options)
