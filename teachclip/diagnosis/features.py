"""What a diagnosis reads of a student and its teacher: frames, pooling weights, frame relevance, scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.data.annotations.records import Split
from teachclip.errors import CheckpointError
from teachclip.evaluation.metrics import rank_metrics
from teachclip.evaluation.retrieval import Ranks, ranks_from_matrix, spans_of
from teachclip.evaluation.splits import Blocks
from teachclip.models.backbone import log_scale
from teachclip.models.mean_pooling import EncoderFeatures, MeanPooling
from teachclip.models.student import StudentModel
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import Scorer, Teacher, Tokens, gives_frame_relevance, select_tokens, teacher_traits, tokens_to
from teachclip.scoring.inputs import encode_split
from teachclip.scoring.targets import tempered_relevance

TOLERANCE = 1e-3
"""By how much vectors pooled here may differ from the student's, in any component."""
PAIR_ELEMENTS = 4_000_000
"""Numbers of the teacher's tokens that are held at once for pairs."""


class Scores(NamedTuple):
    """A model's scores of all pairs, (captions, videos) float32 on the CPU, and their ranks."""

    scores: Tensor
    ranks: Ranks

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the `t2v` and `v2t` metrics."""
        return {"t2v": rank_metrics(self.ranks.t2v), "v2t": rank_metrics(self.ranks.v2t)}


@dataclass(frozen=True)
class Features:
    """What a student makes of the captions and frames of a split. Texts, frames and vectors are L2-normalised."""

    texts: Tensor
    """(captions, dim)."""
    frames: Tensor
    """(videos, frames, dim): as they are pooled, after the temporal transformer."""
    encoder_frames: Tensor | None
    """(videos, frames, dim): as the encoder returns them; None if these are the same."""
    mask: Tensor
    """(videos, frames), False on padded frames."""
    weights: Tensor
    """(videos, frames): the pooling weights, rows sum to 1."""
    vectors: Tensor
    """(videos, dim): the student's video embeddings."""
    scale: float
    """The student's factor between cosines and logits."""
    caption_videos: Tensor
    """(captions,): the row of each caption's video."""
    adapter: Callable[[Tensor], Tensor] = lambda pooled: pooled
    """The student's residual adapter of pooled videos (videos, dim); the identity if it has none."""

    def pool(self, frames: Tensor, weights: Tensor) -> Tensor:
        """Pool frames (videos, frames, dim) by weights (videos, frames) as the student does, adapter included."""
        return pool(frames, weights, self.adapter)


class FrameTeacher(NamedTuple):
    """A teacher with frame relevance, and its tokens of the split."""

    teacher: Teacher
    texts: Tokens
    videos: Tokens
    temperature: float
    """The recipe's `frame_temperature` of the teacher."""
    relevance: Tensor
    """(captions, frames): its relevance for each caption's own video, at `temperature`."""

    def pair_relevance(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """Return the frame relevance of pairs, as the function `pair_relevance` does."""
        return pair_relevance(self.teacher, self.texts, self.videos, rows, columns, temperature=self.temperature)


def pool(frames: Tensor, weights: Tensor, adapter: Callable[[Tensor], Tensor] = lambda pooled: pooled) -> Tensor:
    """Return the L2-normalised weighted sum of frames: (videos, dim).

    `frames`: (videos, frames, dim), L2-normalised; `weights`: (videos, frames). `adapter` is applied to the sum.
    """
    return F.normalize(adapter((weights.unsqueeze(-1) * frames).sum(dim=1)), dim=-1)


def encode(work: Workspace, scorer: Any, split: Split, batch_size: int) -> tuple[Tokens, Tokens]:
    """Return a model's tokens of the captions and videos of a split, on the workspace's device."""
    scorer.to(work.device).eval()
    inputs = work.inputs_for(scorer, split)
    options: dict[str, Any] = {"batch_size": batch_size, "device": work.device, "processes": work.processes}
    texts, videos = encode_split(scorer, inputs, progress=True, **options)
    return tokens_to(texts, work.device), tokens_to(videos, work.device)


@torch.no_grad()
def score_all(scorer: Scorer, texts: Tokens, videos: Tokens, caption_videos: np.ndarray, blocks: Blocks) -> Scores:
    """Score all pairs in blocks of one shape, as `retrieval_ranks` does, and rank them.

    `caption_videos`: (captions,), the row of each caption's video.
    """
    sizes = [len(next(iter(tokens.values()))) for tokens in (texts, videos)]
    scores = torch.empty(*sizes)
    for text_span in spans_of(sizes[0], blocks.text_block):
        rows = slice(text_span.start, text_span.stop)
        block_texts = select_tokens(texts, rows)
        for video_span in spans_of(sizes[1], blocks.video_block):
            columns = slice(video_span.start, video_span.stop)
            scores[rows, columns] = scorer.score(block_texts, select_tokens(videos, columns)).float().cpu()
    return Scores(scores, ranks_from_matrix(scores, caption_videos))


def zero_shot_scores(work: Workspace, split: Split, blocks: Blocks) -> Scores:
    """Score mean pooling of the recipe's backbone, before any training."""
    scorer = MeanPooling(work.backbone)
    return score_all(scorer, *encode(work, scorer, split, blocks.batch_size), split.caption_videos, blocks)


def encoder_tokens(work: Workspace, student: StudentModel, split: Split, batch_size: int) -> tuple[Tokens, Tokens]:
    """Return what a student's encoders give of a split's captions and videos."""
    student.to(work.device).eval()
    encoders: Any = EncoderFeatures(student.backbone)
    encoders.preprocessing = teacher_traits(student).preprocessing
    return encode(work, encoders, split, batch_size)


@torch.no_grad()
def student_features(
    student: StudentModel, tokens: tuple[Tokens, Tokens], split: Split, blocks: Blocks
) -> tuple[Features, Scores]:
    """Return a student's features of a split and its scores.

    `tokens`: of the split's captions and videos, what the student's encoders give.

    Raises CheckpointError if the student's video embedding is not the weighted sum of its frames, DataError if it has
    several of a video.
    """
    student.require_one_vector("diagnose")
    texts, videos = tokens
    encoder_frames, mask = videos["frame_features"], videos["frame_mask"].bool()
    text_tokens = student.texts_from_features(texts["features"])
    parts = []
    for block in zip(encoder_frames.split(blocks.video_block), mask.split(blocks.video_block), strict=True):
        hidden, aggregation = student.aggregate(*block)
        hidden, pooled = student.adapt("frame", hidden), aggregation.pooled
        parts.append((F.normalize(hidden.float(), dim=-1), aggregation.pooling_weights, F.normalize(pooled, dim=-1)))
    frames, weights, vectors = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    adapter = partial(student.adapt, "pooled")
    deviation = float((pool(frames, weights, adapter) - vectors).abs().max())
    if deviation > TOLERANCE:
        raise CheckpointError(
            f"the student's video embedding is not the weighted sum of its frames (components differ by "
            f"{deviation:.2g}), so the diagnosis cannot replace its pooling weights"
        )
    features = Features(
        texts=F.normalize(text_tokens["embeds"].float(), dim=-1),
        frames=frames,
        encoder_frames=F.normalize(student.adapt("frame", encoder_frames).float(), dim=-1)
        if student.config.temporal_layers
        else None,
        mask=mask,
        weights=weights,
        vectors=vectors,
        scale=float(log_scale(student.backbone).exp()),
        caption_videos=torch.from_numpy(split.caption_videos).to(vectors.device),
        adapter=adapter,
    )
    return features, score_all(student, text_tokens, {"embeds": vectors}, split.caption_videos, blocks)


def frame_teacher(
    teacher: Any, section: TeacherSection, texts: Tokens, videos: Tokens, caption_videos: np.ndarray
) -> FrameTeacher | None:
    """Return a teacher with its frame relevance for each caption's own video; None if it has no frame relevance."""
    if not gives_frame_relevance(teacher):
        return None
    rows, temperature = np.arange(len(caption_videos)), section.frame_temperature
    relevance = pair_relevance(teacher, texts, videos, rows, caption_videos, temperature=temperature)
    device = next(iter(videos.values())).device
    return FrameTeacher(teacher, texts, videos, temperature, relevance.to(device))


@torch.no_grad()
def pair_relevance(
    teacher: Teacher, texts: Tokens, videos: Tokens, rows: np.ndarray, columns: np.ndarray, *, temperature: float
) -> Tensor:
    """Return the teacher's frame relevance of pairs: (pairs, frames), on the CPU.

    Pair i is text `rows[i]` and video `columns[i]`. `temperature`: the recipe's `frame_temperature` of the teacher.
    At most as many pairs are held at once as fit `PAIR_ELEMENTS`.
    """
    per_pair = sum(tensor.numel() // max(1, len(tensor)) for tokens in (texts, videos) for tensor in tokens.values())
    size = max(1, PAIR_ELEMENTS // max(1, per_pair))
    blocks = []
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        pairs = (
            select_tokens(tokens, torch.from_numpy(indices[block]).to(next(iter(tokens.values())).device))
            for tokens, indices in ((texts, rows), (videos, columns))
        )
        blocks.append(tempered_relevance(teacher.frame_relevance(*pairs).float(), temperature).cpu())
    return torch.cat(blocks)
