"""What trains in a run: the student with its teachers, from stores or running in every step, and its frame sets."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.models.student import StudentModel
from teachclip.pipeline import build
from teachclip.pipeline.relevance import frame_temperature, stored_tokens, teacher_relevance, teaches_by_tokens
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.uncaptioned import uncaptioned_relevance
from teachclip.pipeline.unpaired import Unpaired
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.loss_section import BACKBONES, FROZEN_BACKBONE
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import FeatureScorer, gives_frame_relevance
from teachclip.scoring.inputs import FeatureInputs, Inputs, PixelInputs, TokenInputs
from teachclip.scoring.top_relevance import TopRelevance
from teachclip.training.batches import RelevanceStore, StoredRelevance
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachclip.training.task import DistillationTask, OnlineTeacher


@dataclass
class Teachers:
    """What teaches, and what it reads beside the student's inputs (`extras`, by prefix; see `TrainingBatches`)."""

    stored: list[StoredRelevance] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    online: list[OnlineTeacher] = field(default_factory=list)
    extras: dict[str, Inputs] = field(default_factory=dict)

    def log_frame_relevance(self, recipe: Recipe) -> None:
        """Log if some or all teachers give no frame relevance."""
        have = [item.has_frames for item in self.stored]
        have += [gives_frame_relevance(item.teacher) for item in self.online]
        if have and not any(have):
            weight = recipe.losses.frame_text.weight
            log(f"no teacher gives frame relevance: the frame-text term (weight {weight:g}) is not used")
        elif not all(have):
            log(f"the frame-text term is taught by {sum(have)} of {len(have)} teachers; the others give no frames")


def build_teachers(work: Workspace, split: Split) -> Teachers:
    """Prepare every teacher of the recipe for the training split.

    Relevance from a file (`scores`) and of shortlists is read from its store even where `teaching.source` is online.
    Online teachers that read the same tokens and frames as the student, or as each other, share them.
    """
    recipe, found = work.recipe, Teachers()
    known = {"": work.pixel_inputs(split, views=work.views)}
    for handle in work.teachers.values():
        section = handle.section
        if is_stored(recipe, handle) and not split.is_paired:
            found.stored.append(uncaptioned_relevance(work, handle))
            found.weights.append(section.weight)
            continue
        if teaches_by_tokens(recipe, handle, split):
            log(f"{handle.label}: its relevance would exceed teaching.max_gb, it scores stored tokens instead")
            prefix = f"tokens{len(found.extras)}."
            found.extras[prefix] = TokenInputs(*stored_tokens(work, handle, split))
            found.online.append(
                OnlineTeacher(handle.model, section.weight, section.frame_temperature, prefix, has_tokens=True)
            )
            continue
        if is_stored(recipe, handle):
            store = _kept(teacher_relevance(work, handle), section, split)
            relevance = StoredRelevance.build(
                store,
                split,
                targets=recipe.losses.frame_text.targets,
                frame_temperature=_frame_temperature(recipe, handle, store, len(split.captions)),
                saturation=recipe.losses.frame_text.saturation,
            )
            found.stored.append(relevance)
            found.weights.append(section.weight)
            continue
        prefix = shared_prefix(known, work.inputs_for(handle.model, split, work.views))
        found.online.append(OnlineTeacher(handle.model, section.weight, section.frame_temperature, prefix))
        if prefix or recipe.train.encoders == "frozen":  # a student with finetuned encoders brings its own
            found.extras[prefix] = known[prefix]
    found.log_frame_relevance(recipe)
    return found


def _kept(store: RelevanceStore, section: TeacherSection, split: Split) -> RelevanceStore:
    """Return stored relevance, or what a recipe keeps of it."""
    return store if section.keep is None else TopRelevance.of(store, split.caption_videos, section.keep)


def _frame_temperature(recipe: Recipe, handle: TeacherHandle, store: RelevanceStore, captions: int) -> float:
    if "frame_text" not in store.arrays:
        return handle.section.frame_temperature
    return frame_temperature(recipe, handle, functools.partial(store.read, "frame_text"), captions)


def build_task(
    recipe: Recipe, student: StudentModel, teachers: Teachers, frame_set_scorer: FrameSetScorer | None = None
) -> DistillationTask:
    """Return what is trained: the student with its teachers and terms."""
    return DistillationTask(
        student,
        build.build_terms(recipe),
        stored_weights=teachers.weights,
        online=teachers.online,
        by_confidence=recipe.teaching.weighting == "confidence",
        frame_set_scorer=frame_set_scorer,
        chunk_size=recipe.train.chunk_size,
    )


def build_frame_sets(
    work: Workspace, split: Split, inputs: Inputs, unpaired: Unpaired | None = None
) -> tuple[FrameSetSampler | None, FrameSetScorer | None]:
    """Return the synthetic videos of a recipe and who scores them, or nothing if it has no frame-set distillation.

    `inputs`: the student's, of the training split. A teacher that scores, and a backbone that stays as it was while
    encoders train, have inputs of their own. Raises RecipeError for a teacher that cannot score new videos.
    """
    recipe, term = work.recipe, work.recipe.losses.frame_sets
    if not recipe.losses.uses_frame_sets:
        return None, None
    options: dict[str, Any] = {"fewest": term.frames[0], "most": term.frames[1], "repeats": term.repeats}
    options["seed"] = recipe.order_seed
    if term.scorer == FROZEN_BACKBONE and not isinstance(inputs, FeatureInputs):  # stored features are of it already
        options["scorer"] = work.feature_inputs(split, work.backbone, work.views)
        if unpaired is not None:
            options["scorer"] = unpaired.join(options["scorer"], work.backbone, encoders="frozen")
    if unpaired is not None:
        inputs = unpaired.join(inputs, work.backbone, encoders=recipe.train.encoders)
    if term.scorer in BACKBONES:
        return FrameSetSampler(inputs, term.count, term.texts, **options), FrameSetScorer(term.scale)
    teacher, traits = work.teachers[term.scorer].model, work.teachers[term.scorer].traits
    # where a teacher can start from features of its own encoders, they are stored and need not run in every step
    has_features = isinstance(teacher, FeatureScorer) and traits.clip is not None and traits.preprocessing is None
    encoders = "frozen" if has_features else "finetuned"
    scored: Inputs = (
        work.feature_inputs(split, teacher.clip, work.views)
        if has_features
        else work.inputs_for(teacher, split, work.views)
    )
    if unpaired is not None:
        scored = unpaired.join(scored, teacher, encoders=encoders)
    sampler = FrameSetSampler(
        inputs, term.count, term.texts, **options, scorer=scored, scorer_width=traits.min_frames
    )
    return sampler, FrameSetScorer(term.scale, teacher)


def is_stored(recipe: Recipe, handle: TeacherHandle) -> bool:
    """Whether a teacher teaches from its store."""
    return recipe.teaching.source == "stored" or handle.reads_relevance or handle.scores_shortlist


def shared_prefix(known: dict[str, PixelInputs], inputs: PixelInputs) -> str:
    """Return the prefix of equal inputs among `known`, or add these under a new one."""
    for prefix, others in known.items():
        if _same(inputs, others):
            return prefix
    prefix = f"inputs{len(known)}."
    known[prefix] = inputs
    return prefix


def _same(one: PixelInputs, other: PixelInputs) -> bool:
    """Whether two inputs of one split are the same numbers."""
    texts = one.tokenized, other.tokenized
    return (
        one.frames is other.frames
        and torch.equal(one.mean, other.mean)
        and torch.equal(one.std, other.std)
        and all(torch.equal(*pair) for pair in zip(*(text.batch(range(len(text))) for text in texts), strict=True))
    )
