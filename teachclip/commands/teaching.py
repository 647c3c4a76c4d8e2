"""All teachers of a run, in the form in which they teach: from stores, or running in every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from teachclip.commands.cli import say
from teachclip.commands.teacher_files import build_teacher, teacher_class
from teachclip.commands.workspace import Workspace
from teachclip.data.catalog import Split
from teachclip.inputs import Inputs, PixelInputs
from teachclip.recipe import Recipe
from teachclip.recipe import Teacher as TeacherSection
from teachclip.scorer import gives_frame_relevance, reads_relevance
from teachclip.training.batches import StoredRelevance
from teachclip.training.task import OnlineTeacher


@dataclass
class Teachers:
    """What teaches, and what it reads beside the student's inputs (`extras`, by prefix; see `TrainingBatches`)."""

    stored: list[StoredRelevance] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    online: list[OnlineTeacher] = field(default_factory=list)
    extras: dict[str, Inputs] = field(default_factory=dict)

    def say_frames(self, recipe: Recipe) -> None:
        """Say in the log if some or all teachers give no frame relevance."""
        have = [item.has_frames for item in self.stored]
        have += [gives_frame_relevance(item.teacher) for item in self.online]
        if have and not any(have):
            weight = recipe.losses.frame_text.weight
            say(f"no teacher gives frame relevance: the frame-text term (weight {weight:g}) is left out")
        elif not all(have):
            say(f"the frame-text term is learned from {sum(have)} of {len(have)} teachers: the rest give no frames")


def build_teachers(work: Workspace, split: Split) -> Teachers:
    """Prepare every teacher of the recipe for the training split.

    Relevance from a file (`scores`) is read from its store even where `teaching.source` is online. Online teachers
    that read the same tokens and frames as the student, or as each other, share them.
    """
    recipe, found = work.recipe, Teachers()
    known = {"": work.pixel_inputs(split, views=work.views)}
    for section in recipe.teachers:
        if is_stored(recipe, section):
            relevance = StoredRelevance.build(
                work.relevance(section),
                split,
                targets=recipe.losses.frame_text.targets,
                frame_temperature=section.frame_temperature,
            )
            found.stored.append(relevance)
            found.weights.append(section.weight)
            continue
        teacher = build_teacher(section, work.device)
        prefix = shared_prefix(known, work.inputs_for(teacher, split, work.views))
        found.online.append(OnlineTeacher(teacher, section.weight, section.frame_temperature, prefix))
        if prefix or recipe.train.towers == "frozen":  # a student with tuned towers brings its own
            found.extras[prefix] = known[prefix]
    found.say_frames(recipe)
    return found


def is_stored(recipe: Recipe, section: TeacherSection) -> bool:
    """Whether a teacher teaches from its store."""
    return recipe.teaching.source == "stored" or reads_relevance(teacher_class(section))


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
