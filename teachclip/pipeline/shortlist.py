"""The relevance of a teacher that scores a shortlist: who finds the lists, and the sparse store of what it says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import load_student
from teachclip.pipeline.encoders import read_as_saved
from teachclip.pipeline.teachers import ZERO_SHOT, TeacherHandle
from teachclip.pipeline.text_backbone import zero_shot_of_backbone
from teachclip.pipeline.workspace import Workspace
from teachclip.scorer import Scorer, Shortlist
from teachclip.scoring.pair_store import Lists, SparseRelevance, best_columns, pair_scorer, store_pairs
from teachclip.scoring.relevance import VideoTokens, relevance_rows
from teachclip.scoring.token_store import store_scorer_tokens
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.row_plan import row_keys
from teachclip.store.stored_items import StoredItems

OPTIONS = ("first", "top", "margin")
"""Options of a teacher that say which pairs it scores, and nothing of what it says of a pair."""

ReadRelevance = Callable[[TeacherHandle], StoredItems]
"""Returns the stored relevance of a teacher that scores all pairs."""


@dataclass(frozen=True)
class Finder:
    """Who finds the lists of a shortlist: what they depend on, and how to get those of some captions."""

    provenance: Mapping[str, Any]
    open: Callable[[], Lists]


def open_finder(
    work: Workspace, shortlist: Shortlist, *, read: ReadRelevance, describe: Callable[[TeacherHandle], dict[str, Any]]
) -> Finder:
    """Return who finds the lists of a teacher's shortlist, which `check_shortlist` has checked.

    `read`: the relevance of another teacher; `describe`: what it depends on.
    """
    first, own = shortlist.first, work.catalog.train.caption_videos

    def lists_of(scores: Callable[[np.ndarray], np.ndarray]) -> Lists:
        return lambda rows: best_columns(scores(rows), own[rows], shortlist.count)

    if first in work.teachers:
        handle = work.teachers[first]
        provenance = {"count": shortlist.count, "first": fingerprint_of(describe(handle))}

        def of_teacher() -> Lists:
            store = read(handle)
            return lists_of(lambda rows: store.read("video_text", rows))

        return Finder(provenance, of_teacher)
    scorer = _scorer(work, first)
    common = work.common_provenance(scorer, {}, work.inputs_for(scorer, work.catalog.train))
    provenance = {"count": shortlist.count, "first": fingerprint_of(common)}
    return Finder(provenance, lambda: lists_of(_scores_of(work, scorer, common)))


def _scorer(work: Workspace, first: str) -> Any:
    """Return the zero-shot student or the one in a folder, in evaluation mode on the device."""
    if first == ZERO_SHOT and work.recipe.student.text_backbone is not None:
        return zero_shot_of_backbone(work.recipe, work.device)
    if first == ZERO_SHOT:
        return MeanPooling(work.backbone).to(work.device).eval()
    student: Any = load_student(first, mask_padding=work.recipe.student.mask_padding)
    read_as_saved(student)  # another backbone reads other tokens and pixels
    return student.to(work.device).eval().requires_grad_(False)


def _scores_of(work: Workspace, scorer: Scorer, provenance: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that scores some training captions against all training videos."""
    split = work.catalog.train
    texts, videos = store_scorer_tokens(
        work.recipe.stores / f"tokens-first-{fingerprint_of(provenance)[:12]}",
        scorer,
        work.inputs_for(scorer, split),
        provenance=provenance,
        batch_size=work.recipe.teaching.batch_size,
        device=work.device,
        processes=work.processes,
        label="tokens for the shortlist",
    )

    kept = VideoTokens(videos, work.device)

    def scores(rows: np.ndarray) -> np.ndarray:
        relevance = relevance_rows(
            scorer,  # type: ignore[arg-type]
            texts,
            kept,
            split.caption_videos,
            rows,
            with_frames=False,
            device=work.device,
        )
        return relevance["video_text"]

    return scores


def shortlist_relevance(
    work: Workspace, handle: TeacherHandle, finder: Finder, *, provenance: Mapping[str, Any]
) -> SparseRelevance:
    """Return the relevance of a teacher for its shortlists of the training captions; compute what is not stored yet.

    `provenance`: what it depends on besides the captions, the videos and the lists.
    """
    split, shortlist = work.catalog.train, handle.traits.shortlist
    assert shortlist is not None
    inputs = work.inputs_for(handle.model, split)
    columns = inputs.video_keys()
    pairs = np.stack([inputs.text_keys(), columns[split.caption_videos]], axis=1)
    scorer = functools.partial(
        pair_scorer, handle.model, inputs, batch_size=work.recipe.teaching.pairs_at_once, device=work.device
    )
    return store_pairs(
        work.recipe.stores / work.training_name(f"relevance-{handle.section.folder}"),
        finder.open(),
        scorer(),
        captions=row_keys(pair.tobytes() for pair in pairs),
        videos=columns,
        own=split.caption_videos,
        list_provenance=finder.provenance,
        provenance=provenance,
        precision=work.recipe.teaching.precision,
        processes=work.processes,
        label=f"{handle.label} relevance",
        margin=shortlist.margin,
        frame_relevance=scorer(frames=True) if handle.traits.has_frame_relevance else None,
    )


def verify_shortlist(
    work: Workspace, handle: TeacherHandle, store: SparseRelevance, rows: np.ndarray, *, pairs: int
) -> list[str]:
    """Score some of the stored pairs of captions `rows` again, `pairs` of each. Returns a line per difference."""
    inputs = work.inputs_for(handle.model, work.catalog.train)
    stored, scored = store.read("video_text", rows), store.scored(rows)
    row, column = np.nonzero(scored & (np.cumsum(scored, axis=1) <= pairs))
    again = pair_scorer(handle.model, inputs, batch_size=work.recipe.teaching.pairs_at_once, device=work.device)(
        rows[row], column
    )
    half = work.recipe.teaching.precision == "float16"
    allowed = 1e-4 + (2.0**-10 if half else 1e-5) * np.abs(again)
    worst = float(np.max(np.abs(stored[row, column] - again) - allowed))
    if worst <= 0:
        return []
    return [f"{store.path}: {handle.label} scores: stored and recomputed differ by {worst:.2e} too much"]
