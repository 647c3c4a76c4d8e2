"""The relevance of a recipe's teachers for its training pairs: computed once, kept in stores, checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from teachclip.console import log
from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Video
from teachclip.losses.checks import pick
from teachclip.pipeline.shortlist import OPTIONS, Finder, open_finder, shortlist_relevance, verify_shortlist
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import Workspace
from teachclip.processes import Processes
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES, code_hash
from teachclip.scoring.pair_store import SparseRelevance
from teachclip.scoring.relevance import recompute, relevance_rows, verify_relevance
from teachclip.scoring.relevance_store import Compute, store_relevance
from teachclip.scoring.token_store import store_scorer_tokens
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.row_plan import row_keys
from teachclip.store.stored_items import StoredItems

SAMPLE = 8
"""Captions whose relevance is computed again to verify a store."""


BFLOAT16_SPREAD = 0.1
"""What scores may differ by if they are computed again in bfloat16, over their standard deviation."""


def training_content(work: Workspace) -> dict[str, str]:
    """Return hashes of all that a run trains and selects on: what the recipe's paths led to."""
    splits = {"train": (work.catalog.train, work.views), "selection": (work.selection_split(), 1)}
    content = {
        name: fingerprint_of(work.provenance(split, work.backbone, {}, views))
        for name, (split, views) in splits.items()
    }
    losses = work.recipe.losses
    for name, kind, table in (
        ("video_text", losses.video_text.kind, VIDEO_TEXT_LOSSES),
        ("frame_text", losses.frame_text.kind, FRAME_TEXT_LOSSES),
    ):
        code = code_hash(pick(name, kind, table))
        content |= {} if code is None else {f"losses.{name}.kind": code}
    return content | {
        f"teacher {label}": fingerprint_of(_provenance(work, handle)) for label, handle in work.teachers.items()
    }


def teacher_relevance(work: Workspace, handle: TeacherHandle) -> StoredItems | SparseRelevance:
    """Return the relevance of a teacher for the training split; compute or read what is not stored yet."""
    if handle.scores_shortlist:
        return shortlist_relevance(work, handle, _finder(work, handle), provenance=_common_provenance(work, handle))
    return _dense_relevance(work, handle)


def _finder(work: Workspace, handle: TeacherHandle) -> Finder:
    shortlist = handle.traits.shortlist
    assert shortlist is not None
    return open_finder(
        work,
        shortlist,
        read=functools.partial(_dense_relevance, work),
        describe=functools.partial(_common_provenance, work),
    )


def _dense_relevance(work: Workspace, handle: TeacherHandle) -> StoredItems:
    """Return the relevance of all pairs."""
    split = work.catalog.train
    options: dict[str, Any] = {
        "provenance": _common_provenance(work, handle),
        "precision": work.recipe.teaching.precision,
        "label": f"{handle.label} relevance",
    }
    path = work.recipe.stores / work.training_name(f"relevance-{handle.section.folder}")
    if handle.reads_relevance:  # its file is read by one process: it may be large
        compute = _from_file(work, handle)
        ids = [(caption.id, caption.video_id, caption.text) for caption in split.captions]
        options |= {"captions": row_keys(ids), "videos": row_keys(video.id for video in split.videos)}
        return work.processes.main_first(lambda: store_relevance(path, compute, processes=Processes(), **options))
    texts, videos = _tokens(work, handle)
    inputs = work.inputs_for(handle.model, split, work.views)
    captions, columns = inputs.text_keys(), inputs.video_keys()
    own = columns.reshape(work.views, -1, columns.shape[1])[:, split.caption_videos]
    pairs = np.concatenate([captions[None], own]).swapaxes(0, 1)  # frame relevance is of a caption and its video
    return store_relevance(
        path,
        functools.partial(
            relevance_rows, handle.model, texts, videos, split.caption_videos, views=work.views, device=work.device
        ),
        captions=row_keys(pair.tobytes() for pair in pairs),
        videos=columns,
        processes=work.processes,
        **options,
    )


def verify_teacher(
    work: Workspace, handle: TeacherHandle, store: StoredItems | SparseRelevance, *, sample: bool = True
) -> list[str]:
    """Check a teacher's stores: every checksum, and a `sample` of rows computed or read again from the start.

    No sample is taken where a checksum is wrong: what it is computed from may be at fault.
    """
    split, problems = work.catalog.train, []
    if not handle.reads_relevance:
        inputs = work.inputs_for(handle.model, split, work.views)
        if not isinstance(store, SparseRelevance):
            problems = [problem for tokens in _tokens(work, handle) for problem in tokens.verify()]
        if inputs.frames is not work.frames:
            problems += inputs.frames.verify()
    problems += store.verify()
    if problems or not sample:
        return problems
    rows = np.unique(np.linspace(0, store.rows - 1, min(SAMPLE, store.rows)).astype(np.int64))
    if isinstance(store, SparseRelevance):
        return verify_shortlist(work, handle, store, rows, pairs=SAMPLE)
    if handle.reads_relevance:
        columns = np.arange(len(split.videos))
        again = _from_file(work, handle)(rows)
    else:
        videos = np.unique(split.caption_videos[rows])
        columns = np.concatenate([view * len(split.videos) + videos for view in range(work.views)])
        again = recompute(
            handle.model,
            inputs,
            split.caption_videos,
            rows,
            columns,
            views=work.views,
            device=work.device,
            precision=work.recipe.teaching.encoding_precision,
        )
    spread = 0.0 if work.recipe.teaching.encoding_precision == "float32" else BFLOAT16_SPREAD
    return verify_relevance(store, again, rows, columns, label=handle.label, spread=spread)


def _provenance(work: Workspace, handle: TeacherHandle) -> dict[str, Any]:
    """Return everything that a teacher's relevance for the training split depends on."""
    if handle.reads_relevance:
        return {**_common_provenance(work, handle), "split": work.catalog.train.provenance()}
    if handle.scores_shortlist:
        lists = _finder(work, handle).provenance
        return {**work.provenance(work.catalog.train, handle.model, _options(handle)), "lists": lists}
    return work.provenance(work.catalog.train, handle.model, _options(handle), views=work.views)


def _common_provenance(work: Workspace, handle: TeacherHandle) -> dict[str, Any]:
    """Return what a teacher's relevance depends on besides the captions and videos."""
    if not handle.reads_relevance:
        inputs = work.inputs_for(handle.model, work.catalog.train, work.views)
        return work.common_provenance(handle.model, _options(handle), inputs, work.views)
    # The content of its files counts, not where they lie.
    files = handle.model.files()
    facts = file_facts(
        [Video(name, path) for name, path in files.items()],
        work.recipe.stores / "score-file-hashes.json",
        progress=work.processes.is_main,
    )
    return {
        "model": {
            "class": type(handle.model).__name__,
            "options": {key: value for key, value in _options(handle).items() if key not in files},
            "files": {name: {"bytes": fact["bytes"], "sha256": fact["sha256"]} for name, fact in facts.items()},
        },
        "frames": work.recipe.frames.count,
    }


def _options(handle: TeacherHandle) -> dict[str, Any]:
    options = {"name": handle.section.name, **handle.section.options}
    left_out = OPTIONS if handle.scores_shortlist else ()
    return {key: value for key, value in options.items() if key not in left_out}


def _from_file(work: Workspace, handle: TeacherHandle) -> Compute:
    """Return a function that reads relevance from the teacher's files, which are opened at its first call."""

    @functools.cache
    def opened() -> Any:
        others = [split for split in work.catalog.splits if split is not work.catalog.train]
        relevance = handle.model.relevance_of(
            work.catalog.train, frames=work.recipe.frames.count, others=others, scratch=work.recipe.stores
        )
        for line in relevance.notes:
            log(f"{handle.label}: {line}")
        return relevance

    def rows(
        captions: np.ndarray, videos: np.ndarray | None = None, *, with_frames: bool = True
    ) -> Mapping[str, np.ndarray]:
        values = dict(opened().rows(captions))
        if videos is not None:
            values["video_text"] = values["video_text"][:, videos]
        if not with_frames:
            values.pop("frame_text", None)
        return values

    return rows


def _tokens(work: Workspace, handle: TeacherHandle) -> tuple[StoredItems, StoredItems]:
    """Return the stored tokens of the training texts and videos; compute them if they are not stored yet."""
    return store_scorer_tokens(
        work.recipe.stores / work.training_name(f"tokens-{handle.section.folder}"),
        handle.model,
        work.inputs_for(handle.model, work.catalog.train, work.views),
        provenance=_common_provenance(work, handle),
        batch_size=work.recipe.teaching.batch_size,
        device=work.device,
        processes=work.processes,
        label=f"{handle.label} tokens",
        precision=work.recipe.teaching.encoding_precision,
    )
