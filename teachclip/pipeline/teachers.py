"""The teachers of a recipe: one handle each, which loads its checkpoint once and knows what it takes."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.backbone import load_config
from teachclip.models.families import family_of
from teachclip.models.preprocessing import Preprocessing, load_preprocessing
from teachclip.pipeline.build import build_processor
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import TEACHER_GROUP, TEACHERS, closest, resolve
from teachclip.scorer import TeacherTraits, check_teacher, reads_relevance, teacher_factories, teacher_traits

FILE_ENDINGS = (".bin", ".csv", ".npy", ".parquet", ".pt", ".pth", ".safetensors")
"""A checkpoint whose name ends so is a file, never the id of a repository."""

ZERO_SHOT = "zero_shot"
"""Who finds shortlists and needs no training: mean pooling of the student's backbone."""


def teacher_class(section: TeacherSection) -> Any:
    """Return the class that a teacher's name stands for. Raises RecipeError for an unknown one."""
    return resolve("teacher", section.name, TEACHERS, group=TEACHER_GROUP)


class TeacherHandle:
    """One teacher of a run. Its checkpoint is loaded when `model` is first used, and only then.

    `usual` returns what it reads if neither it nor its section says; None: what the student reads.
    """

    def __init__(
        self, section: TeacherSection, device: torch.device, usual: Callable[[], Preprocessing] | None = None
    ) -> None:
        self.section, self.device, self.usual = section, device, usual

    @property
    def label(self) -> str:
        """What stores, logs and options call it."""
        return self.section.label

    @functools.cached_property
    def reads_relevance(self) -> bool:
        """Whether it reads scores from a file instead of encoding."""
        return reads_relevance(teacher_class(self.section))

    @property
    def scores_shortlist(self) -> bool:
        """Whether it scores a shortlist of each text in place of all pairs."""
        return not self.reads_relevance and self.traits.shortlist is not None

    @functools.cached_property
    def model(self) -> Any:
        """The teacher on the device, in evaluation mode, its weights frozen. Raises CheckpointError, RecipeError."""
        load_teacher = resolve("teacher loader", "teachers:load_teacher", {})
        section = self.section
        teacher = load_teacher(section.name, section.checkpoint, **section.options).to(self.device)
        check_teacher(teacher, self.label)
        if section.reads is not None:
            teacher.preprocessing = load_preprocessing(section.reads, load_config(section.reads))
        elif self.usual is not None and not self.reads_relevance and teacher_traits(teacher).preprocessing is None:
            teacher.preprocessing = self.usual()
        return teacher

    @property
    def traits(self) -> TeacherTraits:
        """The optional attributes of the model."""
        return teacher_traits(self.model)

    def exists(self) -> bool:
        """Whether the checkpoint exists, as a file or folder, or may exist under this id on the hub.

        Only a teacher that reads sources other than files (`from_source`) may be on the hub. Raises RecipeError for
        an unknown teacher.
        """
        checkpoint = self.section.checkpoint
        if Path(checkpoint).exists():
            return True
        if self.reads_relevance:
            return False
        may_be_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", checkpoint)
        is_file = Path(checkpoint).suffix in FILE_ENDINGS
        from_source = teacher_factories(teacher_class(self.section)).from_source
        return from_source is not None and may_be_id is not None and not is_file

    def require(self) -> None:
        """Raise CheckpointError unless the checkpoint exists."""
        if not self.exists():
            hint = (
                "train it with teachclip train-teacher"
                if self.section.training
                else "give the path of its checkpoint"
            )
            raise CheckpointError(f"teacher {self.label}: {self.section.checkpoint} does not exist; {hint}")

    def check(self, recipe: Recipe) -> None:
        """Load the teacher and see that it takes the recipe's frames, tokens and temporal augmentation.

        Raises CheckpointError for a checkpoint that does not exist or fit, DataError for a file of scores,
        RecipeError for options and sizes that the teacher does not take.
        """
        self.require()
        traits, versions = self.traits, recipe.frames.temporal_augmentation
        if traits.clip is not None and traits.preprocessing is None:
            check_family(self.model, load_config(recipe.student.backbone))
        if self.reads_relevance and versions > 1:
            raise RecipeError(
                f"teacher {self.label!r} reads its relevance from a file, which knows one version of each video: it "
                f"needs frames.temporal_augmentation=1, got {versions}"
            )
        tokens, frames = recipe.text.max_tokens, recipe.frames.count
        reads_usual = traits.preprocessing is None or (self.usual is not None and self.section.reads is None)
        most_tokens = traits.max_tokens if reads_usual else None
        if most_tokens is not None and tokens > most_tokens:
            raise RecipeError(f"teacher {self.label} takes at most {most_tokens} tokens, text.max_tokens is {tokens}")
        most_frames = frames if traits.max_frames is None else traits.max_frames
        if not traits.min_frames <= frames <= most_frames:
            raise RecipeError(
                f"teacher {self.label} takes {traits.min_frames} to {most_frames} frames, frames.count is {frames}"
            )

    def release(self) -> None:
        """Let go of the model, which is loaded again if it is used after all."""
        self.__dict__.pop("model", None)


def reranker_section(source: str, labels: Sequence[str]) -> TeacherSection:
    """Return the section of a CrossEncoder that `--rerank` names by its folder or hub id alone.

    `labels`: of the recipe's teachers. Raises RecipeError for another text.
    """
    source = os.path.expanduser(source)
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    if not is_id and not Path(source).is_dir():
        allowed = ", ".join(labels) or "the label of a teacher, with a --recipe that has it"
        hint = closest(source, labels)
        raise RecipeError(f"--rerank {source!r}: allowed: {allowed}; the folder or hub id of a CrossEncoder{hint}")
    return TeacherSection(name="cross_encoder", checkpoint=source)


TeacherHandles = Mapping[str, TeacherHandle]
"""The teachers of a run by label, in the order of the recipe."""


def open_teachers(recipe: Recipe, device: torch.device) -> dict[str, TeacherHandle]:
    """Return a handle for every teacher of a recipe. Nothing is loaded yet.

    Raises RecipeError for a name that stands for no teacher, and for a section `training` of one that has none.
    """
    for section in recipe.teachers:
        teacher_class(section)
        if section.training is not None:
            trainable_factory(section)
    usual = None if recipe.student.text_backbone is None else functools.partial(backbone_preprocessing, recipe)
    return {section.label: TeacherHandle(section, device, usual) for section in recipe.teachers}


def backbone_preprocessing(recipe: Recipe) -> Preprocessing:
    """Return how the recipe's backbone reads texts and frames, whatever text encoder the student has."""
    return build_processor(recipe, load_config(recipe.student.backbone)).preprocessing


def check_teachers(recipe: Recipe, teachers: TeacherHandles) -> None:
    """Load every teacher, before hours of decoding, and see that it fits the recipe. See `TeacherHandle.check`."""
    for handle in teachers.values():
        handle.check(recipe)
    for handle in teachers.values():
        check_shortlist(recipe, handle, teachers)
    check_frame_set_scorer(recipe, teachers)


def check_shortlist(recipe: Recipe, handle: TeacherHandle, teachers: TeacherHandles) -> None:
    """Raise RecipeError if a teacher would teach a shortlist that nobody can find, or of several views."""
    if not handle.scores_shortlist:
        return
    assert handle.traits.shortlist is not None
    if (versions := recipe.frames.temporal_augmentation) > 1:
        raise RecipeError(
            f"teacher {handle.label!r} scores a shortlist, which holds one version of each video: it needs "
            f"frames.temporal_augmentation=1, got {versions}"
        )
    first = handle.traits.shortlist.first
    listing = [label for label, other in teachers.items() if other.exists() and other.scores_shortlist]
    if first in listing:
        raise RecipeError(
            f"teacher {handle.label!r}: options.first: {first!r} scores a shortlist itself; give who scores all pairs"
        )
    if first not in (*teachers, ZERO_SHOT) and not Path(first).exists():
        known = [*(label for label in teachers if label not in listing), ZERO_SHOT]
        allowed = f"{', '.join(known)}, or the folder of a student"
        raise RecipeError(
            f"teacher {handle.label!r}: options.first: {first!r}; allowed: {allowed}{closest(first, known)}"
        )


def check_family(model: Any, student: PreTrainedConfig) -> None:
    """Raise RecipeError if a teacher without a `preprocessing` of its own has encoders of another family.

    `student`: the configuration of the student's backbone, whose tokens and pixels such a teacher reads.
    """
    traits = teacher_traits(model)
    if traits.clip is None or traits.preprocessing is not None:
        return
    clip: Any = traits.clip
    family, student_family = (family_of(config).name for config in (clip.config, student))
    if family != student_family:
        raise RecipeError(
            f"a {type(model).__name__} reads the tokens and pixels of {family}, the student those of "
            f"{student_family}: name the folder or hub id of its CLIP as teachers.reads"
        )


def check_frame_set_scorer(recipe: Recipe, teachers: TeacherHandles) -> None:
    """Raise RecipeError if the teacher that is to score frame sets reads scores from a file or is too slow for it."""
    label = recipe.losses.frame_sets.scorer
    if not recipe.losses.uses_frame_sets or label not in teachers:
        return
    if teachers[label].reads_relevance:
        raise RecipeError(
            f"losses.frame_sets.scorer: {label!r} reads its scores from a file: it cannot score frame sets"
        )
    if teachers[label].scores_shortlist:
        raise RecipeError(
            f"losses.frame_sets.scorer: {label!r} scores a shortlist of each text: it is too slow for frame sets"
        )


def trainable_factory(section: TeacherSection) -> Callable[..., Any]:
    """Return what makes a fresh teacher on a CLIP. Raises RecipeError for a teacher that cannot be trained here."""
    from_clip = teacher_factories(teacher_class(section)).from_clip
    if from_clip is None:
        raise RecipeError(
            f"teacher {section.label!r}: a {section.name!r} cannot be trained here, it has no from_clip(clip, "
            "**options): remove its section `training`"
        )
    return from_clip


def new_teacher(section: TeacherSection, clip: nn.Module, *, seed: int, frames: int, tokens: int) -> Any:
    """Build a fresh teacher on its CLIP, initialised as published.

    A teacher whose `from_clip` takes `frames` and `tokens` is given how many the data has. Raises RecipeError for a
    teacher that cannot be trained.
    """
    from_clip = trainable_factory(section)
    parameters = inspect.signature(from_clip).parameters
    sizes = {name: value for name, value in {"frames": frames, "tokens": tokens}.items() if name in parameters}
    options = {**sizes, **section.options, **(section.training.options if section.training else {})}
    for key in options:
        if key not in parameters:
            raise RecipeError(f"teacher {section.name!r} has no option {key!r} in training{closest(key, parameters)}")
    for key, parameter in list(parameters.items())[1:]:
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY and key not in options:
            raise RecipeError(f"teacher {section.name!r} needs the option {key!r}: write it under training.options")
    torch.manual_seed(seed)
    return from_clip(clip, **options)
