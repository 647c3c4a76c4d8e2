"""What videos without captions are taught and measured by: a teacher's surest texts, and agreement with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from teachclip.data.annotations.records import Split
from teachclip.errors import DataError
from teachclip.evaluation.agreement import Agreement, agreement_with, mean_agreement
from teachclip.evaluation.splits import evaluate_split
from teachclip.pipeline import build
from teachclip.pipeline.relevance import common_provenance, frame_temperature, stored_tokens, teacher_relevance
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import Workspace
from teachclip.scorer import Scorer, Tokens, gives_frame_relevance
from teachclip.scoring.inputs import Inputs
from teachclip.scoring.relevance import pair_frames
from teachclip.scoring.surest import SurePairs, surest_pairs
from teachclip.scoring.targets import tempered_relevance, video_frame_targets
from teachclip.scoring.token_store import store_tokens
from teachclip.store.row_plan import row_keys
from teachclip.store.stored_items import StoredItems
from teachclip.training.batches import RelevanceStore, StoredRelevance


def sure_pairs(work: Workspace, store: RelevanceStore) -> SurePairs:
    """Return the pairs of the training split that stand for captions, from a teacher's stored relevance."""
    split = work.catalog.train
    return surest_pairs(
        lambda rows: store.read("video_text", rows),
        split.caption_videos,
        len(split.videos),
        count=work.recipe.losses.frame_text.surest,
    )


def uncaptioned_relevance(work: Workspace, handle: TeacherHandle) -> StoredRelevance:
    """Return what a teacher teaches of a training split with texts or videos that are of no pair.

    Its frame targets are those of whole videos: of their captions or surest texts, see `surest_pairs`.
    """
    store = teacher_relevance(work, handle)
    term = work.recipe.losses.frame_text
    if not term.is_used or handle.reads_relevance or not gives_frame_relevance(handle.model):
        return StoredRelevance(store)
    pairs = sure_pairs(work, store)
    frames = pair_frame_store(work, handle, pairs)
    relevance = torch.from_numpy(np.asarray(frames.read("frame_text", slice(None)), dtype=np.float32))
    temperature = frame_temperature(work.recipe, handle, relevance.numpy().__getitem__, len(relevance))
    targets = video_frame_targets(
        tempered_relevance(relevance, temperature).numpy(), pairs.confidence, pairs.videos, saturation=term.saturation
    )
    return StoredRelevance(store, targets, temperature)


def pair_frame_store(work: Workspace, handle: TeacherHandle, pairs: SurePairs) -> StoredItems:
    """Return the frame relevance of pairs of a training text and a training video: `frame_text` (pairs, frames)."""
    inputs = work.inputs_for(handle.model, work.catalog.train)
    texts, videos = stored_tokens(work, handle, work.catalog.train)
    names = zip(inputs.text_keys()[pairs.texts], inputs.video_keys()[pairs.videos], strict=True)

    def encode(rows: np.ndarray) -> Tokens:
        return {
            "frame_text": pair_frames(
                handle.model, texts, videos, pairs.texts[rows], pairs.videos[rows], device=work.device
            )
        }

    return store_tokens(
        work.recipe.stores / f"frames-{handle.section.folder}",
        keys=row_keys(text.tobytes() + video.tobytes() for text, video in names),
        encode=encode,
        provenance={**common_provenance(work, handle, work.catalog.train), "of": "frames of pairs"},
        batch_size=8 * work.recipe.teaching.pairs_at_once,
        rows_per_shard=4096,
        processes=work.processes,
        label=f"{handle.label} frames",
        what="pairs",
    )


def teacher_choices(work: Workspace, split: Split) -> list[Agreement]:
    """Return what each teacher says of a split without captions; compute what is not stored yet."""
    found = []
    for handle in work.teachers.values():
        store = teacher_relevance(work, handle, split)
        scores = np.asarray(store.read("video_text", slice(None)), dtype=np.float32)
        found.append(Agreement(handle.label, scores, handle.section.weight))
    return found


def evaluate_any(
    work: Workspace, scorer: Scorer, inputs: Inputs, split: Split, choices: list[Agreement], **options: Any
) -> dict[str, Any]:
    """Evaluate a scorer on a split: retrieval by its captions or, without any, agreement with the teachers.

    `choices`: of `teacher_choices`, for a split without captions; `options`: of `evaluate_split`.
    Raises DataError if there is neither a caption nor a teacher.
    """
    blocks = build.build_blocks(work.recipe)
    if split.is_paired:
        return evaluate_split(scorer, inputs, split, blocks, work.device, work.processes, **options)
    if not choices:
        raise DataError(f"the {split.name} split has no captions, and no teacher says what is right")
    options.pop("final", None)
    measured = agreement_with(scorer, inputs, choices, blocks, work.device, work.processes, **options)
    return {**mean_agreement(measured, choices), "videos": len(split.videos), "captions": len(split.captions)}
