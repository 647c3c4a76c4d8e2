"""What a diagnosis needs of the models on a split: a student's frames and shares, a teacher's relevance, scores."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from teachclip.data.annotations.records import Split
from teachclip.diagnosis.choice import Asked
from teachclip.diagnosis.vectors import Features, pair_relevance, pool
from teachclip.errors import CheckpointError
from teachclip.evaluation.metrics import rank_metrics
from teachclip.evaluation.retrieval import Ranks, ranks_from_matrix, spans_of
from teachclip.evaluation.splits import Blocks
from teachclip.models.backbone import log_scale
from teachclip.models.mean_pooling import EncoderFeatures, MeanPooling
from teachclip.models.student import StudentModel
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.scorer import Scorer, Tokens, gives_frame_relevance, select_tokens, tokens_to
from teachclip.scoring.inputs import encode_split

ALIKE = 1e-3
"""By how much vectors pooled here may differ from the student's own, in any component."""


class Scored(NamedTuple):
    """A model's scores of all pairs, on the CPU (captions, videos) float32, and what they rank."""

    scores: Tensor
    ranks: Ranks

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return `t2v` and `v2t` metrics."""
        return {"t2v": rank_metrics(self.ranks.t2v), "v2t": rank_metrics(self.ranks.v2t)}


def encode(work: Workspace, scorer: Any, split: Split, batch_size: int) -> tuple[Tokens, Tokens]:
    """Return a model's tokens of the captions and videos of a split, on the workspace's device."""
    scorer.to(work.device).eval()
    inputs = work.inputs_for(scorer, split)
    options: dict[str, Any] = {"batch_size": batch_size, "device": work.device, "processes": work.processes}
    texts, videos = encode_split(scorer, inputs, progress=True, **options)
    return tokens_to(texts, work.device), tokens_to(videos, work.device)


@torch.no_grad()
def score_all(scorer: Scorer, texts: Tokens, videos: Tokens, owners: np.ndarray, blocks: Blocks) -> Scored:
    """Score all pairs in blocks of one shape, as `retrieval_ranks` does, and rank them. `owners`: (captions,)."""
    sizes = [len(next(iter(tokens.values()))) for tokens in (texts, videos)]
    scores = torch.empty(*sizes)
    for text in spans_of(sizes[0], blocks.text_block):
        rows = slice(text.start, text.stop)
        part = select_tokens(texts, rows)
        for video in spans_of(sizes[1], blocks.video_block):
            columns = slice(video.start, video.stop)
            scores[rows, columns] = scorer.score(part, select_tokens(videos, columns)).float().cpu()
    return Scored(scores, ranks_from_matrix(scores, owners))


def zero_shot(work: Workspace, split: Split, blocks: Blocks) -> Scored:
    """Score mean pooling of the recipe's backbone, as it was before any training."""
    scorer = MeanPooling(work.backbone)
    return score_all(scorer, *encode(work, scorer, split, blocks.batch_size), split.caption_videos, blocks)


@torch.no_grad()
def student_features(work: Workspace, student: StudentModel, split: Split, blocks: Blocks) -> tuple[Features, Scored]:
    """Return what a student makes of a split, and its scores; its encoders run once.

    Raises CheckpointError if the student does not pool its frames as a sum by shares.
    """
    student.to(work.device).eval()
    texts, videos = encode(work, EncoderFeatures(student.backbone), split, blocks.batch_size)
    frames, mask = videos["frame_features"], videos["frame_mask"].bool()
    text_tokens = student.texts_from_features(texts["features"])
    parts = []
    for block in zip(frames.split(blocks.video_block), mask.split(blocks.video_block), strict=True):
        hidden, aggregation = student.aggregate(*block)
        hidden, own = student.correct("frame", hidden), aggregation.pooled
        parts.append((F.normalize(hidden.float(), dim=-1), aggregation.shares, F.normalize(own, dim=-1)))
    hidden, shares, own = (torch.cat(found) for found in zip(*parts, strict=True))
    correct = partial(student.correct, "pooled")
    worst = float((pool(hidden, shares, correct) - own).abs().max())
    if worst > ALIKE:
        raise CheckpointError(
            f"the student does not pool its frames as a sum by shares (vectors differ by {worst:.2g}): the diagnosis "
            "cannot exchange its shares"
        )
    features = Features(
        texts=F.normalize(text_tokens["embeds"].float(), dim=-1),
        frames=hidden,
        encoder_frames=F.normalize(student.correct("frame", frames).float(), dim=-1)
        if student.config.temporal_layers
        else None,
        mask=mask,
        shares=shares,
        vectors=own,
        scale=float(log_scale(student.backbone).exp()),
        owners=torch.from_numpy(split.caption_videos).to(work.device),
        correct=correct,
    )
    return features, score_all(student, text_tokens, {"embeds": own}, split.caption_videos, blocks)


def ask_teacher(
    teacher: Any, section: TeacherSection, texts: Tokens, videos: Tokens, owners: np.ndarray
) -> Asked | None:
    """Return a teacher with its frame relevance for each caption's own video; None if it gives none."""
    if not gives_frame_relevance(teacher):
        return None
    rows = np.arange(len(owners))
    own = pair_relevance(teacher, texts, videos, rows, owners, temperature=section.frame_temperature)
    return Asked(teacher, texts, videos, section.frame_temperature, own.to(next(iter(videos.values())).device))
