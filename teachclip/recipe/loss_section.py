"""The part of a recipe that says what a student learns from, and with which weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from teachclip.recipe.data_section import Count, PathValue, Positive, Section, Weight
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES, closest

FROZEN_BACKBONE = "frozen_backbone"
BACKBONES = ("backbone", FROZEN_BACKBONE)
"""Who may score frame sets beside a teacher: the student's backbone as it trains, and as it was before."""


def _one_of(kinds: Mapping[str, str]) -> Callable[[str], str]:
    """Return a check that a kind of loss is known, or written as `module:name`."""

    def check(kind: str) -> str:
        if kind not in kinds and ":" not in kind:
            raise ValueError(f"allowed: {', '.join(kinds)}, or module:name{closest(kind, kinds)}")
        return kind

    return check


class _Term(Section):
    """What every term has."""

    weight: Weight
    end_weight: Weight | None = Field(None, description="weight at the last step, reached linearly; null: it stays")

    @property
    def is_used(self) -> bool:
        """Whether the term has a weight at any time of the run."""
        return bool(self.weight or self.end_weight)


class ContrastiveTerm(_Term):
    """Cross-entropy of the matching pairs, in both directions."""

    weight: Weight = 0.2
    temperature: Positive = Field(1.0, description="divisor of the logits, which have the backbone's scale already")
    swapped_clauses: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="what stands between two clauses, such as [', then ', ' before ']: a caption with its clauses "
        "swapped is one more negative of its own video; teaches the order of events",
    )
    teaches_adapters: bool = Field(
        True,
        description="whether residual adapters learn from captions too, here and in joined clips; false: from "
        "teachers' relevance and frame sets alone",
    )


class VideoTextTerm(_Term):
    """Imitate the teachers' video-text relevance."""

    weight: Weight = 1.0
    kind: Annotated[str, AfterValidator(_one_of(VIDEO_TEXT_LOSSES))] = Field(
        "pearson", description=f"{', '.join(VIDEO_TEXT_LOSSES)}, or module:name of a function"
    )
    temperature: Positive = Field(1.0, description="divisor of both logits")
    teacher_temperature: Positive = Field(
        1.0, description="further divisor of the teachers' logits alone; above 1 what is imitated is softer"
    )
    direction: Literal["both", "texts", "videos"] = Field(
        "both", description="whose rows are compared: those of texts, of videos, or both as published"
    )
    more_texts: Annotated[int, Field(ge=0)] = Field(
        0,
        description="training texts beyond the batch that its videos are compared with too, per step, over all "
        "processes together; needs stored relevance",
    )


class FrameTextTerm(_Term):
    """Imitate the teachers' frame-text relevance."""

    weight: Weight = 2.0
    kind: Annotated[str, AfterValidator(_one_of(FRAME_TEXT_LOSSES))] = Field(
        "cross_entropy",
        description=f"{', '.join(FRAME_TEXT_LOSSES)}, or module:name of a function; binary_cross_entropy judges "
        "every frame by itself, for student.attention=sigmoid",
    )
    temperature: Positive = Field(1.0, description="match temperature: divisor of the frame scores in the loss")
    targets: Literal["pair", "video"] = Field(
        "pair", description="pair: as published; video: mean over its captions, weighted by the teacher's confidence"
    )
    saturation: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="with targets=video: the share of a video's captions above which a frame's target is 1"
    )

    spread: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="share of the frames that a teacher's relevance may spread over in the median; flatter "
        "relevance is sharpened by a frame temperature below 1; null: as it is",
    )
    surest: Count = Field(
        4, description="for videos without captions: how many texts that a teacher is surest of stand for captions"
    )

    @model_validator(mode="after")
    def _saturation_needs_video(self) -> FrameTextTerm:
        if self.saturation is not None and self.targets != "video":
            raise ValueError("saturation needs targets=video")
        return self


class FrameSetsTerm(_Term):
    """Frame-set distillation: random sets of training frames as synthetic videos, scored against random captions."""

    weight: Weight = Field(0.0, description="0: off")
    scorer: str = Field(
        "backbone",
        description="who scores the sets; backbone: late interaction, its own best cosine of text and frame; "
        "frozen_backbone: the same of the backbone as it was before its encoders trained; or the label of a teacher",
    )
    scale: Positive = Field(
        40.0, description="of the late interaction's cosines; a teacher's scores stay as they are"
    )
    count: Annotated[int, Field(ge=2)] = Field(512, description="sets per step, over all processes together")
    texts: Count = Field(512, description="captions per step, over all processes together")
    frames: list[Count] = Field([1, 2], min_length=2, max_length=2, description="fewest and most frames of a set")

    repeats: Count = Field(
        1, description="a frame counts 1 to at most this many times, as an event does that is seen in several frames"
    )
    videos: PathValue | None = Field(None, description="folder with more videos to draw frames from, unlabelled")
    captions: PathValue | None = Field(None, description="text file with more captions to draw from, one per line")

    @model_validator(mode="after")
    def _in_order(self) -> FrameSetsTerm:
        if self.frames[0] > self.frames[1]:
            raise ValueError(f"frames is {self.frames}: the fewest come first")
        return self


class JoinedClipsTerm(_Term):
    """Contrast of videos joined from two training clips: "A then B" is true of them, "B then A" is not."""

    weight: Weight = Field(0.0, description="0: off")
    count: Annotated[int, Field(ge=2)] = Field(
        64,
        description="joined clips per step, over all processes together; encoded at once, so no more in each than a "
        "train.chunk_size",
    )
    connective: Annotated[str, Field(min_length=1)] = Field(
        " then ", description="what stands between the captions of the two clips"
    )


class Losses(Section):
    """Weighted sum of the terms. Without teachers contrast, joined clips and sets scored by the backbone are used.

    Without teachers, sets and joined clips the contrastive term is the whole loss, with weight 1.
    """

    contrastive: ContrastiveTerm = ContrastiveTerm()
    video_text: VideoTextTerm = VideoTextTerm()
    frame_text: FrameTextTerm = FrameTextTerm()
    frame_sets: FrameSetsTerm = FrameSetsTerm()
    joined_clips: JoinedClipsTerm = JoinedClipsTerm()

    @property
    def uses_frame_sets(self) -> bool:
        """Whether there is frame-set distillation at any time of the run."""
        return self.frame_sets.is_used


def check_losses(recipe: Any) -> Iterator[str]:
    """Yield what is wrong between the losses of a recipe and its other parts."""
    losses, student, labels = recipe.losses, recipe.student, [teacher.label for teacher in recipe.teachers]
    terms = [
        losses.contrastive,
        losses.frame_sets,
        losses.joined_clips,
        *([losses.video_text, losses.frame_text] if labels else []),
    ]
    if not any(term.is_used for term in terms):
        who = "" if labels else " and there are no teachers"
        yield f"every term of losses that is used has weight 0{who}: nothing to train on"
    others = losses.uses_frame_sets or losses.joined_clips.is_used
    if not labels and not others and losses.contrastive.end_weight is not None:
        yield "losses.contrastive.end_weight needs another term: without teachers and sets it is the whole loss"
    is_binary, is_ours = losses.frame_text.kind == "binary_cross_entropy", losses.frame_text.kind in FRAME_TEXT_LOSSES
    if labels and losses.frame_text.is_used and is_ours and is_binary != (student.attention == "sigmoid"):
        yield (
            f"losses.frame_text.kind={losses.frame_text.kind} does not fit student.attention={student.attention}: "
            "binary_cross_entropy is for the sigmoid attention, the other kinds for softmax"
        )
    if losses.contrastive.swapped_clauses and not losses.contrastive.is_used:
        yield (
            "losses.contrastive.swapped_clauses are negatives of the contrastive term, which has weight 0: give it a "
            "weight, or remove them"
        )
    taught = losses.uses_frame_sets or bool(labels and losses.video_text.is_used)
    if student.adapters and not losses.contrastive.teaches_adapters and not taught:
        yield (
            "losses.contrastive.teaches_adapters is false, and neither a teacher's video-text relevance nor frame "
            "sets teach the adapters: write true, or remove student.adapters"
        )
    if losses.joined_clips.is_used and recipe.frames.count < 2:
        yield "losses.joined_clips shows two clips in one video: frames.count is 1; allowed: 2 or more"
    if losses.joined_clips.is_used and recipe.frames.store == "none" and recipe.train.encoders != "frozen":
        yield "losses.joined_clips reads frames of many videos at random, which frames.store=none cannot: use disk"
    if labels and losses.video_text.is_used and losses.video_text.more_texts:
        if recipe.teaching.source != "stored":
            yield "losses.video_text.more_texts reads relevance beyond the batch; write teaching.source=stored"
        if recipe.teaching.weighting != "fixed":
            yield "losses.video_text.more_texts has no pairs to be sure of; write teaching.weighting=fixed"
    if labels and losses.frame_text.is_used and losses.frame_text.spread:
        yield from _check_spread(recipe)
    if losses.uses_frame_sets:
        yield from _check_frame_sets(recipe, labels)


def _check_spread(recipe: Any) -> Iterator[str]:
    spread, frames = recipe.losses.frame_text.spread, recipe.frames.count
    if recipe.teaching.source != "stored" and any(teacher.name != "scores" for teacher in recipe.teachers):
        yield "losses.frame_text.spread is measured on stored relevance; write teaching.source=stored"
    if spread * frames < 1:
        yield f"losses.frame_text.spread is {spread}, less than one of {frames} frames; at least {1 / frames:.2g}"


def _check_frame_sets(recipe: Any, labels: Sequence[str]) -> Iterator[str]:
    term, student = recipe.losses.frame_sets, recipe.student
    for label in sorted({*BACKBONES} & {*labels}):
        yield f"teachers: losses.frame_sets.scorer calls a backbone {label!r}; give that teacher another label"
    if term.scorer not in (known := [*BACKBONES, *labels]):
        yield (
            f"losses.frame_sets.scorer is {term.scorer!r}; allowed: {', '.join(BACKBONES)}, or the label of a "
            f"teacher: {', '.join(labels) or 'there is none'}{closest(term.scorer, known)}"
        )
    if not student.adapters and not student.temporal_layers:
        yield "losses.frame_sets teaches residual adapters and the temporal transformer; this student has neither"
    if term.frames[1] > recipe.frames.count:
        yield f"losses.frame_sets.frames is {term.frames}, but videos have {recipe.frames.count} frames"
    if recipe.frames.store != "none":
        return
    if recipe.train.encoders != "frozen" or term.scorer not in BACKBONES:
        yield "losses.frame_sets reads frames of many videos at random, which frames.store=none cannot: use disk"
    if term.videos is not None:
        yield "losses.frame_sets.videos needs frames.store=disk"
