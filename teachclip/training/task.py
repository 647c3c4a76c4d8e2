"""What is computed in one step: a module whose one forward goes from a local batch to the losses of the global one.

The task as a whole is what DDP wraps, so that both encoders and the logit scale are used in one forward pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.losses import contrastive_loss, frame_set_loss, frame_text_loss, video_text_loss
from teachclip.models.backbone import clamp_scale
from teachclip.models.student import StudentModel
from teachclip.scorer import Teacher, Tokens, gives_frame_relevance
from teachclip.scoring.chunks import TEXT_INPUTS, encode_chunks
from teachclip.scoring.inputs import SWAPPED, Batch, encode_text_batch, encode_video_batch, model_inputs
from teachclip.scoring.targets import tempered_relevance
from teachclip.training.distributed import gather_rows, gather_tokens, gather_with_gradient
from teachclip.training.frame_sets import FrameSetScorer, part_of
from teachclip.training.joined_clips import JoinedLogits, joined_logits
from teachclip.training.more_texts import more_logits
from teachclip.training.spared_adapters import encode_and_spare, spares_adapters


class Task(nn.Module, ABC):
    """What is trained: `forward(batch)` returns `loss` and its terms, 0-d tensors equal on all processes.

    It has two halves: `encode` needs the memory, and no pair in it knows of another; `losses` compares pairs.
    """

    @abstractmethod
    def encode(self, batch: Batch) -> Tokens:
        """Return what `losses` needs of this process's texts and videos: tensors with a row for each."""

    @abstractmethod
    def losses(self, batch: Batch, encoded: Tokens) -> dict[str, Tensor]:
        """Return `loss` and its unweighted terms, 0-d float32, equal on all processes."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its unweighted terms, 0-d float32, equal on all processes."""
        return self.losses(batch, self.encode(batch))

    @abstractmethod
    def clamp_scale(self) -> None:
        """Keep the factor between cosines and logits within its bounds; called after each step."""


FAR = -1e9
"""A logit that has no part in a softmax; finite, so that a row of it alone gives no NaN."""


@dataclass(frozen=True)
class Term:
    """One term of the total loss."""

    weight: float
    kind: str = ""
    temperature: float = 1.0
    end_weight: float | None = None
    of_video: bool = False
    """Of the frame-text term: whether its targets are those of the whole video, not of the pair."""
    teacher_temperature: float = 1.0
    direction: str = "both"
    """Of the video-text term, as is `teacher_temperature`: see `video_text_loss`."""
    teaches_adapters: bool = True
    """Of the contrastive term: whether residual adapters learn from captions, its own and those of joined clips."""

    def weight_at(self, batch: Batch) -> float | Tensor:
        """Return the weight in a step; `progress` of the batch, 0-d, goes from 0 in the first to 1 in the last."""
        if self.end_weight is None:
            return self.weight
        return self.weight + (self.end_weight - self.weight) * batch["progress"]


@dataclass(frozen=True)
class DistillationTerms:
    """The total of TeachCLIP (CVPR 2024, section 3.3): 0.2 contrastive + 1 video-text + 2 frame-text.

    Not published: frame-set distillation, `frame_sets`, for a task that has a `FrameSetScorer`; and `joined_clips`,
    for batches that hold some.
    """

    contrastive: Term = Term(0.2)
    video_text: Term = Term(1.0, "pearson")
    frame_text: Term = Term(2.0, "cross_entropy")
    frame_sets: Term = Term(0.0)
    joined_clips: Term = Term(0.0)


@dataclass(frozen=True)
class Relevance:
    """One teacher's relevance for the global batch: (pairs, pairs) logits and, if it gives it, (pairs, frames)."""

    video_text: Tensor
    frame_text: Tensor | None
    weight: float = 1.0


@dataclass(frozen=True)
class OnlineTeacher:
    """A teacher that runs in every step. Its inputs are those of the batch whose names begin with `prefix`.

    `has_tokens`: they are its stored tokens, which it only scores.
    """

    teacher: Teacher
    weight: float = 1.0
    frame_temperature: float = 1.0
    prefix: str = ""
    has_tokens: bool = False


class DistillationTask(Task):
    """The student, learning from matching pairs and from its teachers.

    A batch holds this process's texts and videos (see `teachclip.scoring.inputs`), g texts in a row for each video, g
    = 1 as published; of stored teacher number k `video_text.k`, these texts by the videos of the global batch, and,
    unless it gives none, `frame_text.k` (texts, frames); and of the global batch `video_rows` (pairs,). Where texts
    or videos are without the other, it also holds `is_pair` (pairs,) bool; see `pairs_loss`. Each term is the
    weighted mean over the teachers that support it; a term that none supports is not used. Stored and online teachers
    may be mixed. Further texts of the batch (see `MoreTexts`) are rows of the video-text term too. If
    `by_confidence`, the weights are those of `confidence_weights`, pair by pair. With `frame_set_scorer` the batch
    holds synthetic videos too (see `FrameSetSampler`). The terms of embeddings are means over them and the prefixes
    that the student's `matryoshka` names. With an `end_weight` of a term it holds `progress`, 0-d, from 0 in the
    first step to 1 in the last.
    """

    def __init__(
        self,
        student: StudentModel,
        terms: DistillationTerms,
        *,
        stored_weights: Sequence[float] = (),
        online: Sequence[OnlineTeacher] = (),
        by_confidence: bool = False,
        frame_set_scorer: FrameSetScorer | None = None,
        chunk_size: int | None = None,
    ) -> None:
        """`chunk_size`: pairs that online teachers encode at a time; None: all of this process."""
        super().__init__()
        self.student = student
        self.terms = terms
        self.stored_weights = tuple(stored_weights)
        self.by_confidence, self.frame_set_scorer, self.chunk_size = by_confidence, frame_set_scorer, chunk_size
        self._online = (tuple(online),)  # inside a tuple: not a sub-module, so neither wrapped, trained nor saved

    def clamp_scale(self) -> None:
        """Clamp the scale of the student's backbone."""
        clamp_scale(self.student.backbone)

    def encode(self, batch: Batch) -> Tokens:
        """Return `texts` (pairs, dim), `videos` (videos, dim) and `frame_scores` (videos, frames), float32.

        With several vectors per video these are (videos, vectors, dim) and (videos, vectors, frames). Also `swapped`
        (pairs, dim) if the batch holds captions with their clauses swapped. Where captions do not teach the adapters,
        `contrasted_texts` and `contrasted_videos` are the same embeddings without a gradient to them.
        """
        if spares_adapters(self.student, self.terms.contrastive.teaches_adapters):
            encoded = encode_and_spare(self.student, model_inputs(batch))
        else:
            out = self.student(**model_inputs(batch))
            encoded = {"texts": out.text_embeds, "videos": out.video_embeds, "frame_scores": out.frame_scores}
        swapped = {name: batch[SWAPPED + name] for name in TEXT_INPUTS if SWAPPED + name in batch}
        if swapped:
            with self._of_captions():
                encoded["swapped"] = encode_text_batch(self.student, swapped)["embeds"]
        return {name: tensor.float() for name, tensor in encoded.items()}

    def _of_captions(self) -> AbstractContextManager[None]:
        """Return the context of what captions alone teach."""
        spared = spares_adapters(self.student, self.terms.contrastive.teaches_adapters)
        return self.student.heads.spared() if spared else nullcontext()

    def losses(self, batch: Batch, encoded: Tokens) -> dict[str, Tensor]:
        """Return `loss` and its unweighted terms, 0-d float32, equal on all processes."""
        texts = gather_with_gradient(encoded["texts"])
        videos = gather_with_gradient(encoded["videos"])
        frame_scores = gather_with_gradient(encoded["frame_scores"])
        frame_mask = gather_with_gradient(batch["frame_mask"]) if self.student.config.mask_padding else None
        videos, frame_scores = of_pairs(videos, len(texts)), of_pairs(frame_scores, len(texts))
        frame_mask = None if frame_mask is None else of_pairs(frame_mask, len(texts))
        frame_sets = None if self.frame_set_scorer is None else self.frame_set_scorer.logits(self.student, batch)
        with self._of_captions():
            joined = joined_logits(self.student, batch)
        more = more_logits(self.student, batch, videos)
        with torch.autocast(texts.device.type, enabled=False):
            logits = self.student.prefix_logits({"embeds": texts}, {"embeds": videos})
            contrasted, contrasted_videos = logits, videos
            if "contrasted_texts" in encoded:
                sides = [gather_with_gradient(encoded[f"contrasted_{side}"]) for side in ("texts", "videos")]
                contrasted_videos = of_pairs(sides[1], len(texts))
                contrasted = self.student.prefix_logits({"embeds": sides[0]}, {"embeds": contrasted_videos})
            swapped = self._swapped_logits(batch, encoded, contrasted_videos)
            if videos.ndim == 3:
                frame_scores = taught_scores(texts, videos, frame_scores, of_video=self.terms.frame_text.of_video)
            return self._losses(
                batch, logits, contrasted, swapped, frame_scores, frame_mask, frame_sets, joined, more
            )

    def _swapped_logits(self, batch: Batch, encoded: Tokens, videos: Tensor) -> list[Tensor] | None:
        """Return the logits of swapped captions, `FAR` in rows without one; None if the batch holds none at all."""
        if "swapped" not in encoded:
            return None
        texts = gather_with_gradient(encoded["swapped"])
        is_swapped = gather_with_gradient(batch[f"{SWAPPED}is_swapped"])
        both = self.student.prefix_logits({"embeds": texts}, {"embeds": videos})
        return [logits.masked_fill(~is_swapped[:, None], FAR) for logits in both]

    def _losses(
        self,
        batch: Batch,
        logits: Sequence[Tensor],
        contrasted: Sequence[Tensor],
        swapped: Sequence[Tensor] | None,
        frame_scores: Tensor,
        frame_mask: Tensor | None,
        frame_sets: tuple[Sequence[Tensor], Tensor] | None,
        joined: JoinedLogits | None,
        more: tuple[Sequence[Tensor], list[Tensor]] | None,
    ) -> dict[str, Tensor]:
        same_video = batch["video_rows"][:, None] == batch["video_rows"][None, :]
        temperature, is_pair = self.terms.contrastive.temperature, batch.get("is_pair")
        others: Sequence[Tensor | None] = [None] * len(contrasted) if swapped is None else swapped
        pairs = zip(contrasted, others, strict=True)
        losses = {
            "contrastive": _mean(pairs_loss(each, same_video, is_pair, temperature, other) for each, other in pairs)
        }
        relevances = self._relevances(batch)
        total = losses["contrastive"]
        if relevances or frame_sets is not None or joined is not None:
            total = self.terms.contrastive.weight_at(batch) * total
        if relevances:
            confidence = confidence_weights(relevances, same_video) if self.by_confidence else None
            weights, video_text = [item.weight for item in relevances], [item.video_text for item in relevances]
            rows = logits
            if more is not None:
                rows = [torch.cat(both) for both in zip(logits, more[0], strict=True)]
                video_text = [torch.cat(both) for both in zip(video_text, more[1], strict=True)]
            losses["video_text"] = _mean(self._video_text(each, video_text, weights, confidence) for each in rows)
            total = total + self.terms.video_text.weight_at(batch) * losses["video_text"]
            if any(item.frame_text is not None for item in relevances):
                losses["frame_text"] = self._frame_text(frame_scores, frame_mask, relevances, confidence)
                total = total + self.terms.frame_text.weight_at(batch) * losses["frame_text"]
        if frame_sets is not None:
            student_logits, targets = frame_sets
            losses["frame_sets"] = _mean(frame_set_loss(each, targets) for each in student_logits)
            total = total + self.terms.frame_sets.weight_at(batch) * losses["frame_sets"]
        if joined is not None:
            pairs = zip(joined.captions, joined.swapped, strict=True)
            losses["joined_clips"] = _mean(
                pairs_loss(each, joined.same_clips, None, temperature, other) for each, other in pairs
            )
            total = total + self.terms.joined_clips.weight_at(batch) * losses["joined_clips"]
        return {"loss": total, **losses}

    def _video_text(
        self,
        logits: Tensor,
        relevances: Sequence[Tensor],
        weights: Sequence[float],
        confidence: Sequence[Tensor] | None,
    ) -> Tensor:
        """Return the video-text term of the student's logits; `relevances`: those of each teacher, as many rows."""
        term = self.terms.video_text
        options: dict[str, Any] = {
            "kind": term.kind,
            "temperature": term.temperature,
            "teacher_temperature": term.teacher_temperature,
            "direction": term.direction,
        }
        if confidence is None:
            losses = (video_text_loss(logits, relevance, **options) for relevance in relevances)
            return _weighted_mean(zip(weights, losses, strict=True))
        pairs = zip(relevances, confidence, strict=True)
        return sum_of(video_text_loss(logits, relevance, **options, pair_weights=each) for relevance, each in pairs)

    def _frame_text(
        self,
        frame_scores: Tensor,
        frame_mask: Tensor | None,
        relevances: Sequence[Relevance],
        confidence: Sequence[Tensor] | None,
    ) -> Tensor:
        term = self.terms.frame_text
        options: dict[str, Any] = {"kind": term.kind, "temperature": term.temperature, "frame_mask": frame_mask}
        have = [k for k, item in enumerate(relevances) if item.frame_text is not None]
        targets = [(k, relevances[k].frame_text) for k in have]
        if confidence is None:
            return _weighted_mean(
                (relevances[k].weight, frame_text_loss(frame_scores, target, **options))
                for k, target in targets
                if target is not None
            )
        total = sum_of(confidence[k] for k in have).clamp_min(torch.finfo(torch.float32).tiny)
        return sum_of(
            frame_text_loss(frame_scores, target, **options, pair_weights=confidence[k] / total)
            for k, target in targets
            if target is not None
        )

    def _relevances(self, batch: Batch) -> list[Relevance]:
        names = [f"{kind}.{k}" for k in range(len(self.stored_weights)) for kind in ("video_text", "frame_text")]
        read = gather_rows({name: batch[name] for name in names if name in batch})
        stored = [
            Relevance(read[f"video_text.{k}"].float(), read.get(f"frame_text.{k}"), weight)
            for k, weight in enumerate(self.stored_weights)
        ]
        return stored + [_teach(item, batch, self.chunk_size) for item in self._online[0]]


def taught_scores(texts: Tensor, videos: Tensor, frame_scores: Tensor, *, of_video: bool) -> Tensor:
    """Return the frame scores (pairs, frames) that the frame-text term teaches, of several vectors per video.

    A teacher says which frames a text speaks of: that is taught to the attention of the vector that is nearest to the
    text, and so answers it. Targets `of_video`, which all its captions share, are taught to the highest score of each
    frame: some attention is to look at it. `texts`: (pairs, dim); `videos`: (pairs, vectors, dim); `frame_scores`:
    (pairs, vectors, frames).
    """
    if of_video:
        return frame_scores.amax(dim=1)
    nearest = torch.einsum("pd,pvd->pv", texts, videos).argmax(dim=-1)
    return frame_scores[torch.arange(len(nearest), device=nearest.device), nearest]


def of_pairs(videos: Tensor, pairs: int) -> Tensor:
    """Repeat the rows of videos, (videos, ...), for the captions that share them, to (pairs, ...)."""
    together = pairs // len(videos)
    return videos if together == 1 else videos.repeat_interleave(together, dim=0)


def pairs_loss(
    logits: Tensor,
    same_video: Tensor,
    is_pair: Tensor | None = None,
    temperature: float = 1.0,
    swapped: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of the places of a batch that hold a caption with its own video.

    A text and a video that were dealt out side by side are no pair, and nobody knows which captioned videos the text
    describes too: they are neither positives nor negatives here; teachers judge them. Without any pair it is 0.
    `logits`, `same_video`: (places, places); `is_pair`: (places,) bool, None: all are; `temperature`: of that loss.
    `swapped`: (places, places) logits of captions that are no longer true of their own videos, `FAR` in rows without
    one: further negatives of these videos (as NegCLIP has them; Yuksekgonul et al., ICLR 2023, section 4). Of other
    videos such a caption may be true, so it is none of theirs.
    """
    if is_pair is not None:
        if not is_pair.any():
            return logits.sum() * 0
        same_video, logits = same_video[is_pair][:, is_pair], logits[is_pair][:, is_pair]
        swapped = None if swapped is None else swapped[is_pair][:, is_pair]
    if swapped is not None:
        logits = torch.cat([logits, swapped.masked_fill(~same_video, FAR)])
        same_video = torch.cat([same_video, torch.zeros_like(same_video)])
    return contrastive_loss(logits, same_video, temperature)


def _mean(losses: Iterable[Tensor]) -> Tensor:
    """Return the mean of some 0-d losses; of one, itself."""
    values = list(losses)
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def _weighted_mean(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Return the mean of some 0-d losses, each with its weight."""
    weights, losses = zip(*terms, strict=True)
    return torch.stack([weight / sum(weights) * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(list(parts)).sum(dim=0)


@torch.no_grad()
def confidence_weights(relevances: Sequence[Relevance], same_video: Tensor) -> list[Tensor]:
    """Return the weight of each teacher for each pair: (pairs,) per teacher, adding up to 1 over the teachers.

    `w_k p_k / sum_k w_k p_k`, where p_k is what teacher k gives to the pair's own video when it looks for it by the
    caption among the videos of the batch, `softmax(row)` of its video-text relevance, and w_k its weight in the
    recipe. `same_video` (pairs, pairs) bool: columns that show the pair's own video.
    """
    sure = []
    for item in relevances:  # in logarithms: a teacher may be so wrong about a pair that its share underflows
        logits = item.video_text.float()
        matching = logits.masked_fill(~same_video, float("-inf")).logsumexp(-1)
        sure.append(matching - logits.logsumexp(-1) + math.log(item.weight))
    return list(torch.stack(sure).softmax(dim=0))


@torch.no_grad()
def _teach(item: OnlineTeacher, batch: Batch, chunk_size: int | None) -> Relevance:
    """Run a teacher on the local pairs and score the global batch. Teachers run in float32, as when stored."""
    with torch.autocast(batch["frame_mask"].device.type, enabled=False):
        inputs = {
            key.removeprefix(item.prefix): value
            for key, value in batch.items()
            if key.startswith(item.prefix) and (item.has_tokens or not key.endswith("_features"))
        }
        chunk_size = None if item.has_tokens else chunk_size
        encoded = encode_chunks(lambda chunk: encode_pairs(item.teacher, chunk), inputs, chunk_size)
        texts, videos = (gather_tokens(part_of(encoded, prefix)) for prefix in ("texts.", "videos."))
        frame_text, pairs = None, len(batch["video_rows"])
        if gives_frame_relevance(item.teacher):
            of_texts = {name: of_pairs(tensor, pairs) for name, tensor in videos.items()}
            relevance = item.teacher.frame_relevance(texts, of_texts).float()
            if "is_pair" in batch:  # what was dealt out side by side is no pair: it does not count
                relevance = relevance * batch["is_pair"][:, None]
            frame_text = tempered_relevance(relevance, item.frame_temperature)
        video_text = of_pairs(item.teacher.score(texts, videos).float().T, pairs).T
        return Relevance(video_text, frame_text, item.weight)


def encode_pairs(teacher: Any, batch: Batch) -> Tokens:
    """Return a teacher's tokens of texts and of videos; their names begin with `texts.` and `videos.`."""
    sides = {"texts": encode_text_batch(teacher, batch), "videos": encode_video_batch(teacher, batch)}
    return {f"{side}.{name}": tensor for side, tokens in sides.items() for name, tensor in tokens.items()}
