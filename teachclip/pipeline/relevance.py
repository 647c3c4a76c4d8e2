"""The relevance of a recipe's teachers for its training pairs: computed once, kept in stores, checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from teachclip.console import log
from teachclip.data.annotations.files import file_facts
from teachclip.data.annotations.records import Split, Video
from teachclip.errors import RecipeError
from teachclip.losses.checks import pick
from teachclip.pipeline.shortlist import OPTIONS, Finder, open_finder, shortlist_relevance, verify_shortlist
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import Workspace
from teachclip.processes import Processes
from teachclip.recipe.schema import Recipe
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES, code_hash
from teachclip.scoring.pair_store import SparseRelevance
from teachclip.scoring.relevance import VideoTokens, recompute, relevance_rows, verify_relevance
from teachclip.scoring.relevance_store import Compute, store_relevance
from teachclip.scoring.targets import frame_spread, sharpening, tempered_relevance
from teachclip.scoring.token_store import store_scorer_tokens
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.row_plan import row_keys
from teachclip.store.stored_items import StoredItems

SAMPLE = 8
"""Captions whose relevance is computed again to verify a store."""


FLAT = 0.9
"""Relevance that spreads over more of the frames in the median tells none from another: a softmax of bare cosines."""

SPREAD_SAMPLE = 4096
"""Captions on which it is measured over how many frames a teacher's relevance spreads."""


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
    for label, handle in work.teachers.items():
        content[f"teacher {label}"] = fingerprint_of(_provenance(work, handle))
        if teaches_by_tokens(work.recipe, handle, work.catalog.train):
            content[f"teacher {label} scores"] = "stored tokens"
    return content


def teacher_relevance(
    work: Workspace, handle: TeacherHandle, split: Split | None = None
) -> StoredItems | SparseRelevance:
    """Return the relevance of a teacher for a split, by default training; compute or read what is not stored yet.

    Every text is scored with every video, or by a teacher of shortlists with those of its shortlist. Frame relevance
    is of a caption and its video: there is none in a split with texts or videos that are of no pair. Raises
    RecipeError for shortlists of such a split.
    """
    if not handle.scores_shortlist:
        return dense_relevance(work, handle, split or work.catalog.train)
    if split not in (None, work.catalog.train) or not work.catalog.train.is_paired:
        raise RecipeError(
            f"teacher {handle.label!r} scores shortlists of captions: data without captions needs a teacher that "
            "scores every text with every video"
        )
    finder = _finder(work, handle)
    return shortlist_relevance(work, handle, finder, provenance=common_provenance(work, handle, work.catalog.train))


def teaches_by_tokens(recipe: Recipe, handle: TeacherHandle, split: Split) -> bool:
    """Whether the relevance of a teacher for all training pairs would be larger than `teaching.max_gb`.

    Then its tokens are stored, and it scores those of a batch in every step. Raises RecipeError for a recipe that
    needs the relevance of all pairs.
    """
    teaching = recipe.teaching
    if teaching.source != "stored" or handle.reads_relevance or handle.scores_shortlist:
        return False
    pairs = len(split.captions) * len(split.videos) * recipe.frames.temporal_augmentation
    size = pairs * np.dtype(teaching.precision).itemsize
    if size <= teaching.max_gb * 1e9:
        return False
    reason = None
    if not split.is_paired:
        reason = "data without captions needs it, to look for the surest texts of all"
    elif recipe.losses.frame_text.targets == "video":
        reason = "losses.frame_text.targets=video needs it, to weigh the captions of a video"
    elif recipe.losses.frame_text.is_used and recipe.losses.frame_text.spread is not None:
        reason = "losses.frame_text.spread is measured on it"
    elif handle.section.keep is not None:
        reason = "keep needs it, to find the best videos of a caption"
    if reason:
        takes = f"takes {size / 1e9:,.1f} GB (teaching.max_gb: {teaching.max_gb:g})"
        raise RecipeError(f"the relevance of {handle.label} {takes}; {reason}")
    return True


def frame_temperature(recipe: Recipe, handle: TeacherHandle, read: Callable[[np.ndarray], Any], rows: int) -> float:
    """Return the temperature of a teacher's frame relevance: its section's, lower where `spread` asks for it.

    `read` returns some of the `rows` captions' relevance as it is stored: (captions, frames) or, with several views,
    (captions, views, frames).
    """
    term, temperature = recipe.losses.frame_text, handle.section.frame_temperature
    alone = term.kind == "binary_cross_entropy"  # frames judged by themselves: relevance of all is taken literally
    if not term.is_used or (term.spread is None and not alone):
        return temperature
    sample = np.unique(np.linspace(0, rows - 1, min(rows, SPREAD_SAMPLE)).astype(np.int64))
    some = torch.from_numpy(np.asarray(read(sample), dtype=np.float32)).flatten(0, -2)
    measured = frame_spread(tempered_relevance(some, temperature))
    told = f"{handle.label}: its frame relevance spreads over {measured:.0%} of the frames"
    if term.spread is None:
        if measured > FLAT:
            log(f"warning: {told}: attention would learn to take them all; write losses.frame_text.spread=0.25")
        return temperature
    if measured <= term.spread:
        return temperature
    sharper = temperature * sharpening(tempered_relevance(some, temperature), term.spread)
    if sharper == temperature:
        log(f"warning: {told}, and no temperature brings it to {term.spread:.0%}: are its frames all alike?")
        return temperature
    reached = frame_spread(tempered_relevance(some, sharper))
    log(f"{told}; sharpened to {reached:.0%} by frame_temperature {sharper:.2g}")
    return sharper


def check_relevance(recipe: Recipe, handles: Iterable[TeacherHandle], split: Split) -> None:
    """Raise RecipeError, before anything is decoded, if relevance of a split is needed that would be too large.

    And for texts beyond the batch whose relevance would not be stored.
    """
    by_tokens = [handle.label for handle in handles if teaches_by_tokens(recipe, handle, split)]
    term = recipe.losses.video_text
    if by_tokens and term.is_used and term.more_texts:
        raise RecipeError(
            f"losses.video_text.more_texts needs stored relevance, and teaching.max_gb has {', '.join(by_tokens)} "
            "score tokens in every step; raise it or write more_texts=0"
        )


def _finder(work: Workspace, handle: TeacherHandle) -> Finder:
    shortlist = handle.traits.shortlist
    assert shortlist is not None
    train = work.catalog.train
    return open_finder(
        work,
        shortlist,
        read=lambda other: dense_relevance(work, other, train),
        describe=lambda other: common_provenance(work, other, train),
    )


def dense_relevance(work: Workspace, handle: TeacherHandle, split: Split) -> StoredItems:
    """Return the relevance of all texts and videos of a split."""
    options: dict[str, Any] = {
        "provenance": common_provenance(work, handle, split),
        "precision": work.recipe.teaching.precision,
        "label": f"{handle.label} relevance",
    }
    views = work.views if split is work.catalog.train else 1
    name = f"relevance-{handle.section.folder}"
    path = work.recipe.stores / (work.training_name(name) if split is work.catalog.train else f"{name}-{split.name}")
    if handle.reads_relevance:  # its file is read by one process: it may be large
        compute = _from_file(work, handle, split)
        ids = ((caption.id, caption.video_id, caption.text) for caption in split.captions)
        options |= {"captions": row_keys(ids), "videos": row_keys(video.id for video in split.videos)}
        return work.processes.main_first(lambda: store_relevance(path, compute, processes=Processes(), **options))
    texts, videos = stored_tokens(work, handle, split)
    inputs = work.inputs_for(handle.model, split, views)
    captions, columns = inputs.text_keys(), inputs.video_keys()
    if split.is_paired:
        of_views = columns.reshape(views, -1, columns.shape[1])
        pairs = zip(captions, split.caption_videos, strict=True)  # frame relevance is of a caption and its video
        rows = row_keys(caption.tobytes() + of_views[:, video].tobytes() for caption, video in pairs)
    else:
        rows = captions
    every = functools.partial(
        relevance_rows,
        handle.model,
        texts,
        VideoTokens(videos, work.device),
        split.caption_videos,
        views=views,
        device=work.device,
    )

    def compute_rows(
        captions: np.ndarray, videos: np.ndarray | None = None, *, with_frames: bool = True
    ) -> Mapping[str, np.ndarray]:
        return every(captions, videos, with_frames=with_frames and split.is_paired)

    return store_relevance(path, compute_rows, captions=rows, videos=columns, processes=work.processes, **options)


def verify_tokens(work: Workspace, handle: TeacherHandle) -> list[str]:
    """Check every checksum of a teacher's stored tokens. Returns one line per problem."""
    return [problem for tokens in stored_tokens(work, handle, work.catalog.train) for problem in tokens.verify()]


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
            problems = verify_tokens(work, handle)
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
        again = _from_file(work, handle, split)(rows)
    else:
        own = split.caption_videos if split.is_paired else np.arange(len(split.videos))
        videos = np.unique(own[rows % len(own)])
        columns = np.concatenate([view * len(split.videos) + videos for view in range(work.views)])
        again = recompute(
            handle.model,
            inputs,
            split.caption_videos,
            rows,
            columns,
            views=work.views,
            with_frames=split.is_paired,
            device=work.device,
            precision=work.recipe.teaching.encoding_precision,
        )
    spread = 0.0 if work.recipe.teaching.encoding_precision == "float32" else BFLOAT16_SPREAD
    return verify_relevance(store, again, rows, columns, label=handle.label, spread=spread)


def _provenance(work: Workspace, handle: TeacherHandle) -> dict[str, Any]:
    """Return everything that a teacher's relevance for the training split depends on."""
    if handle.reads_relevance:
        return {**common_provenance(work, handle, work.catalog.train), "split": work.catalog.train.provenance()}
    if handle.scores_shortlist:
        lists = _finder(work, handle).provenance
        return {**work.provenance(work.catalog.train, handle.model, _options(handle)), "lists": lists}
    return work.provenance(work.catalog.train, handle.model, _options(handle), views=work.views)


def common_provenance(work: Workspace, handle: TeacherHandle, split: Split) -> dict[str, Any]:
    """Return what a teacher's relevance depends on besides the captions and videos."""
    if not handle.reads_relevance:
        views = work.views if split is work.catalog.train else 1
        inputs = work.inputs_for(handle.model, split, views)
        return work.common_provenance(handle.model, _options(handle), inputs, views)
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
    excluded = (*handle.traits.loads, *(OPTIONS if handle.scores_shortlist else ()))
    return {key: value for key, value in options.items() if key not in excluded}


def _from_file(work: Workspace, handle: TeacherHandle, split: Split) -> Compute:
    """Return a function that reads relevance from the teacher's files, which are opened at its first call."""

    @functools.cache
    def opened() -> Any:
        others = [other for other in work.catalog.splits if other is not split]
        relevance = handle.model.relevance_of(
            split, frames=work.recipe.frames.count, others=others, scratch=work.recipe.stores
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


def stored_tokens(work: Workspace, handle: TeacherHandle, split: Split) -> tuple[StoredItems, StoredItems]:
    """Return the stored tokens of a split's texts and videos; compute them if they are not stored yet.

    Tokens are the same in every split: they share a store, unless the training split has augmented views.
    """
    views = work.views if split is work.catalog.train else 1
    name = f"tokens-{handle.section.folder}"
    return store_scorer_tokens(
        work.recipe.stores / (name if views == 1 else work.training_name(name)),
        handle.model,
        work.inputs_for(handle.model, split, views),
        provenance=common_provenance(work, handle, split),
        batch_size=work.recipe.teaching.batch_size,
        device=work.device,
        processes=work.processes,
        label=f"{handle.label} tokens",
        precision=work.recipe.teaching.encoding_precision,
    )
