"""The one central interface: a scorer encodes texts once, encodes videos once, and scores pairs.

The student and every teacher are scorers (TeachCLIP, CVPR 2024, section 3: all of its models factor so). Training,
precomputing, evaluation and reranking are written once against it. This module is the whole contract of a teacher:
`Teacher` has its methods, `TeacherTraits` its optional attributes with their defaults, `TeacherFactories` the ways to
make one. Nothing else in the toolkit looks for an attribute of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from teachclip.errors import RecipeError
from teachclip.registry import closest

PRECISIONS = ("float32", "bfloat16")
"""What encoders may compute in."""

Tokens = dict[str, Tensor]
"""What scoring needs of some texts or videos: named tensors whose first dimension is the item."""


@runtime_checkable
class Scorer(Protocol):
    """A video-text scorer, student or teacher."""

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts. `input_ids`, `attention_mask`: (texts, tokens)."""

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos. `pixel_values`: (videos, frames, 3, height, width); `frame_mask`: (videos, frames) bool."""

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Score all pairs. Returns logits (texts, videos), higher is closer."""


@runtime_checkable
class Teacher(Scorer, Protocol):
    """A scorer that also says which frames of a video a matched text speaks of.

    A teacher that cannot say it has the attribute `has_frame_relevance = False` and may omit the method. What else a
    teacher may have is in `TeacherTraits` and `TeacherFactories`.
    """

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Relevance of the frames of aligned pairs. Returns (pairs, frames), rows sum to 1 over valid frames."""


@runtime_checkable
class FeatureScorer(Scorer, Protocol):
    """A scorer on top of CLIP encoders, whose stored encoder features can stand in for the encoders."""

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Encode texts from raw CLIP text features (texts, dim)."""

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos from raw CLIP frame features (videos, frames, dim) and their mask (videos, frames)."""


@runtime_checkable
class FrameScorer(Scorer, Protocol):
    """A scorer that normalises pixels itself, as a student in ONNX does: it is given frames as they are stored."""

    def encode_stored_frames(self, frames: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos. `frames`: uint8 (videos, frames, 3, size, size); `frame_mask`: (videos, frames) bool."""


@runtime_checkable
class PairScorer(Scorer, Protocol):
    """A scorer that reads a text and a video together: what it says of a pair is computed for that pair.

    Its tokens are the inputs themselves, so that they are not worth storing, and all pairs are too many.
    """

    def score_pairs(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Score aligned pairs. Returns logits (pairs,), equal to the diagonal of `score`."""


@dataclass(frozen=True)
class Shortlist:
    """Which pairs a `PairScorer` scores: of each text its own video and the best others that another scorer finds.

    first: who finds them: the label of another teacher of the recipe, `zero_shot` (mean pooling of the student's
        backbone), or the folder of a student.
    count: videos of a text, its own one among them, from 2.
    margin: the relevance of a pair that is not scored is the lowest one of its text less this, not below 0.
    """

    first: str = "zero_shot"
    count: int = 50
    margin: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 2:
            raise RecipeError(f"videos to score of a text: {self.count}; allowed: whole numbers from 2")
        if not 0 <= self.margin < float("inf"):
            raise RecipeError(f"margin below the lowest score: {self.margin}; allowed: numbers from 0")


@dataclass(frozen=True)
class TeacherTraits:
    """The optional attributes of a teacher, by their names, as `teacher_traits` reads them.

    has_frame_relevance: whether `frame_relevance` may be called. Default: True if there is such a method.
    preprocessing: tokenizer, image size and normalisation of its own
        (`teachclip.models.preprocessing.Preprocessing`). Default None: it reads what the student reads.
    max_tokens: the most tokens of a text. Default None: any number.
    min_frames, max_frames: the fewest and most frames of a video. Defaults 1 and None: any number.
    clip: its dual encoder, whose features can be stored if it is a `FeatureScorer`. Default None.
    shortlist: which pairs it scores (`Shortlist`); then it is a `PairScorer`. Default None: all.
    scale_and_bias: method that returns a and b of its scores a cos + b. Default None: those of `clip`, if it has one.
    loads: names of options that say where a part of it lies: its weights and plain settings tell what it is, wherever
        that is. Default: none.
    """

    has_frame_relevance: bool
    preprocessing: Any | None
    max_tokens: int | None
    min_frames: int
    max_frames: int | None
    clip: nn.Module | None
    shortlist: Shortlist | None
    scale_and_bias: Callable[[], tuple[float, float]] | None
    loads: tuple[str, ...]


@dataclass(frozen=True)
class TeacherFactories:
    """The ways to make a teacher, class or static methods by their names; None where a class does not have one.

    from_state_dict: `(state, *, source, **options)`, from the weights of a file; `source` is for messages.
    from_source: `(checkpoint, **options)`, from a hub id, a folder or a file of its own kind.
    from_clip: `(clip, **options)`, a fresh teacher to train. If it takes `frames` and `tokens`, it is given how many
        the data has. Such a teacher has a method `checkpoint()` that returns what is saved, and may have
        `training_logits(texts, videos)`, which returns (weight, logits) pairs whose losses are added.
    relevance_of: `(split, *, frames, others, scratch)`, for a teacher that cannot encode but reads relevance that was
        computed elsewhere (`teachers.scores.Scores`); its method `files()` names the files that it reads.
    """

    from_state_dict: Callable[..., Any] | None
    from_source: Callable[..., Any] | None
    from_clip: Callable[..., Any] | None
    relevance_of: Callable[..., Any] | None


def check_teacher(teacher: Any, name: str) -> None:
    """Raise RecipeError unless a teacher has the methods of a `Scorer`, or reads its relevance from a file."""
    if reads_relevance(teacher):
        return
    needed = ["encode_texts", "encode_videos", "score"]
    needed += [] if teacher_traits(teacher).shortlist is None else ["score_pairs"]
    methods = [method for method in needed if not _has_method(teacher, method)]
    if methods:
        raise RecipeError(
            f"teacher {name!r}: a {type(teacher).__name__} has no method {', '.join(methods)}; what a teacher has is "
            "in teachclip.scorer.Teacher"
        )


def _has_method(teacher: Any, name: str) -> bool:
    return callable(getattr(teacher, name, None))


def teacher_traits(teacher: Any) -> TeacherTraits:
    """Return the optional attributes of a teacher, or of any scorer, with defaults for those that are absent."""
    has_method = _has_method(teacher, "frame_relevance")
    return TeacherTraits(
        has_frame_relevance=bool(getattr(teacher, "has_frame_relevance", True)) and has_method,
        preprocessing=getattr(teacher, "preprocessing", None),
        max_tokens=getattr(teacher, "max_tokens", None),
        min_frames=getattr(teacher, "min_frames", 1),
        max_frames=getattr(teacher, "max_frames", None),
        clip=getattr(teacher, "clip", None),
        shortlist=getattr(teacher, "shortlist", None),
        scale_and_bias=getattr(teacher, "scale_and_bias", None),
        loads=tuple(getattr(teacher, "loads", ())),
    )


def teacher_factories(teacher: Any) -> TeacherFactories:
    """Return the ways to make a teacher of this class."""
    methods = {name: getattr(teacher, name, None) for name in TeacherFactories.__dataclass_fields__}
    return TeacherFactories(**{name: method if callable(method) else None for name, method in methods.items()})


def gives_frame_relevance(teacher: Any) -> bool:
    """Whether a teacher gives frame-text relevance too, not video-text relevance alone."""
    return teacher_traits(teacher).has_frame_relevance


def reads_relevance(teacher: Any) -> bool:
    """Whether a teacher, or its class, cannot encode but reads relevance that was computed elsewhere."""
    return teacher_factories(teacher).relevance_of is not None


def training_logits(teacher: Any, texts: Tokens, videos: Tokens) -> Sequence[tuple[float, Tensor]]:
    """Return the weighted logits (texts, videos) that a teacher is trained on: by default its score, weight 1."""
    logits = getattr(teacher, "training_logits", None)
    return [(1.0, teacher.score(texts, videos))] if logits is None else logits(texts, videos)


def text_adapter_of(scorer: Any) -> nn.Module | None:
    """Return what a scorer applies to a text once per query (`StudentModel.text_adapter`), or None."""
    adapter: nn.Module | None = getattr(scorer, "text_adapter", None)
    return adapter


def select_tokens(tokens: Tokens, rows: Tensor | slice | Sequence[int]) -> Tokens:
    """Take the items `rows` of every tensor."""
    return {name: tensor[rows] for name, tensor in tokens.items()}


def concat_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Join token sets of several batches along the items. All parts must have the same names and item shapes."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def encoding_in(precision: str, device: torch.device | str) -> Iterator[None]:
    """Encode in `float32`, or as far as autocast does in `bfloat16`, without a graph, until the block ends.

    What is encoded may then be bfloat16: see `in_float32`. Raises RecipeError for another precision.
    """
    if precision not in PRECISIONS:
        raise RecipeError(
            f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}{closest(precision, PRECISIONS)}"
        )
    half = precision == "bfloat16"
    with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16) if half else nullcontext():
        yield


def in_float32(tokens: Tokens) -> Tokens:
    """Return tokens with those in bfloat16 as float32; what is compared with them is in float32."""
    return {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tokens.items()}


def tokens_to(tokens: Tokens, device: torch.device | str) -> Tokens:
    """Move every tensor to `device`."""
    return {name: tensor.to(device) for name, tensor in tokens.items()}
