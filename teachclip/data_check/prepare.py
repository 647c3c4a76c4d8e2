"""Check the data of a recipe before anything is trained, and fill its frame store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.console import log, visible
from teachclip.data.annotations.catalog import check_missing_share, require_readable
from teachclip.data.annotations.files import describe_overlaps, file_facts, overlaps
from teachclip.data.annotations.records import Catalog, Split, Video
from teachclip.data.frames.views import Frames
from teachclip.data.video.probe import probe_video
from teachclip.data.video.workers import Decoding, Failure, guarded_map
from teachclip.data_check.checks import (
    Suspicion,
    VideoCheck,
    caption_statistics,
    duplicates,
    file_suspicions,
    frame_suspicions,
    segment_extent,
)
from teachclip.data_check.report import (
    MAX_SUSPICIOUS_STRIPS,
    DatasetCheck,
    Strip,
    named_problems,
    notes,
    tables,
    thumbnails,
    write_check_report,
)
from teachclip.data_check.understanding import print_table, print_understood
from teachclip.errors import DataError, StoreError
from teachclip.models.backbone import load_config
from teachclip.models.processing import StudentProcessor
from teachclip.pipeline import build
from teachclip.pipeline.frames import build_decoding, build_frames, hashes_file
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.store.files import make_folder

USABLE_STRIPS = 6
"""Videos without suspicions that the page shows."""


def prepare(recipe: RecipeSource, overrides: Sequence[str] = ()) -> DatasetCheck:
    """Check the data of a recipe, print the tables, and write `prepare.json` and `prepare.html`.

    `recipe`, `overrides`: as of `distill`; the files go to the recipe's output folder.
    Returns the check. Raises DataError if training would refuse the data.
    """
    recipe = load_recipe(recipe, overrides)
    make_folder(recipe.output)  # now, not after an hour of decoding
    tolerant = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_missing": 1.0})})
    catalog = build.build_catalog(tolerant)
    if catalog.understood is not None:
        print_understood(catalog.understood)
    processor = build.build_processor(recipe, load_config(recipe.student.backbone))
    check = check_dataset(recipe, catalog, processor)
    for table in tables(check):
        print_table(table)
    for line in [*named_problems(check), *notes(check)]:
        print(visible(line), flush=True)
    for path in write_check_report(check, recipe.output):
        log(f"report: {path}")
    if check.refusal:
        raise DataError(f"training refuses this data: {check.refusal}")
    return check


def check_dataset(recipe: Recipe, catalog: Catalog, processor: StudentProcessor) -> DatasetCheck:
    """Check all videos and captions of a catalogue."""
    videos = {
        video.id: VideoCheck(video.id, str(video.path), split.name)
        for split in catalog.splits
        for video in split.videos
    }
    for split_name, ids in catalog.excluded_ids.items():
        videos |= {
            video_id: VideoCheck(video_id, "", split_name, f"missing: {catalog.excluded[video_id]}", is_missing=True)
            for video_id in ids
        }
    _probe_files(build_decoding(recipe, processor.transform), catalog, videos)
    strips, store_error = _check_frames(recipe, catalog, processor, videos)
    facts = file_facts(catalog.videos, hashes_file(recipe), progress=True, time_limit=recipe.frames.time_limit)
    preprocessing = processor.preprocessing
    captions = {
        split.name: caption_statistics(split, _token_counts(split, preprocessing.tokenizer), preprocessing.max_tokens)
        for split in catalog.splits
    }
    hashes = {video_id: fact["sha256"] for video_id, fact in facts.items()}
    lines, refusal = verdict(recipe, catalog, list(videos.values()), store_error)
    return DatasetCheck(
        recipe.name,
        list(videos.values()),
        captions,
        duplicates(hashes, {video.id: str(video.path) for video in catalog.videos}),
        describe_overlaps(overlaps(catalog, facts)),
        lines,
        refusal,
        strips,
    )


def _probe_files(decoding: Decoding, catalog: Catalog, videos: dict[str, VideoCheck]) -> None:
    """Probe the packets of every file, once per file, in guarded processes."""
    files: dict[str, list[str]] = {}
    for video in catalog.videos:
        files.setdefault(str(video.path), []).append(video.id)
    outcomes = guarded_map(
        probe_video,
        ((path,) for path in files),
        workers=decoding.workers,
        time_limit=decoding.time_limit,
        memory_limit=decoding.memory_limit,
    )
    with contextlib.closing(outcomes):
        for path, outcome in zip(files, tqdm(outcomes, "probe", len(files), unit="file"), strict=True):
            for video_id in files[path]:
                if isinstance(outcome, Failure):
                    videos[video_id].error = outcome.error
                else:
                    videos[video_id].facts = outcome


def _check_frames(
    recipe: Recipe, catalog: Catalog, processor: StudentProcessor, videos: dict[str, VideoCheck]
) -> tuple[list[Strip], str]:
    """Check the frames of every video, and keep thumbnails of the suspicious videos and of a few others.

    Returns the thumbnails, and why the frame store cannot be used ("" if it can): frames are then decoded without it.
    """
    usable: list[Strip] = []
    suspicious: list[Strip] = []
    store, store_error = _frame_store(recipe, catalog, processor)
    for video, frames, note in _decoded_frames(recipe, catalog, processor, store):
        check = videos[video.id]
        if frames is None:
            check.error = note
            continue
        check.frames = len(frames)
        if note:
            check.is_partially_decoded = True
            check.suspicions.append(Suspicion("partially decoded", f"partially decoded: {note}"))
        if check.facts is not None:
            check.seconds, available = segment_extent(check.facts, video.start, video.end)
            check.suspicions += file_suspicions(check.facts, check.seconds, available, sampled=recipe.frames.count)
        check.suspicions += frame_suspicions(frames)
        if check.suspicions and len(suspicious) < MAX_SUSPICIOUS_STRIPS:
            suspicious.append(Strip(check, thumbnails(frames)))
        elif not check.suspicions and len(usable) < USABLE_STRIPS:
            usable.append(Strip(check, thumbnails(frames)))
    return usable + suspicious, store_error


def _frame_store(recipe: Recipe, catalog: Catalog, processor: StudentProcessor) -> tuple[Frames | None, str]:
    """Return the filled frame store and "", or None and why it cannot be used ("" if the recipe has none)."""
    if recipe.frames.store == "none":
        return None, ""
    videos = sorted(catalog.videos, key=lambda video: video.id)
    training = sorted(catalog.train.videos, key=lambda video: video.id)
    try:
        return build_frames(recipe, Processes(), videos, training, processor.transform, "frames"), ""
    except StoreError as error:
        log(f"the frame store cannot be used; frames are decoded for this check only: {error}")
        return None, str(error)


def _decoded_frames(
    recipe: Recipe, catalog: Catalog, processor: StudentProcessor, store: Frames | None
) -> Iterator[tuple[Video, Tensor | None, str]]:
    """Yield every video with its frames, uint8 (frames, 3, size, size), or None, and why some or all are missing."""
    videos = sorted(catalog.videos, key=lambda video: video.id)
    if store is None:
        outcomes = build_decoding(recipe, processor.transform).run((video, 0) for video in videos)
        with contextlib.closing(outcomes):
            for video, outcome in zip(videos, tqdm(outcomes, "decode", len(videos), unit="video"), strict=True):
                if isinstance(outcome, Failure):
                    yield video, None, outcome.error
                else:
                    yield video, torch.from_numpy(outcome.frames), outcome.error
        return
    rows = store.rows_of([video.id for video in videos])
    for video, row in zip(videos, tqdm(rows, "check frames", unit="video"), strict=True):
        if video.id in store.failures:
            yield video, None, store.failures[video.id]
        else:
            frames, mask = store.read(row[None])
            yield video, frames[0][mask[0]], store.partially_decoded.get(video.id, "")


def _token_counts(split: Split, tokenizer: Any) -> list[int]:
    """Return the number of tokens of every caption, before truncation."""
    texts = [caption.text for caption in split.captions]
    return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def verdict(
    recipe: Recipe, catalog: Catalog, videos: Sequence[VideoCheck], store_error: str
) -> tuple[list[str], str]:
    """Return what can be used for training, split by split, and why training would refuse it ("" if it would not).

    `store_error`: why the frame store cannot be used. Training decides by the same functions.
    """
    errors = {video.id: video.error for video in videos if video.error}
    lines = []
    for split in catalog.splits:
        total = len(split.videos) + len(catalog.excluded_ids.get(split.name, ()))
        kept = [video.id for video in split.videos if video.id not in errors]
        captions = sum(caption.video_id not in errors for caption in split.captions)
        lines.append(f"{split.name}: {len(kept):,} of {total:,} videos and {captions:,} captions can be used")
    partial = sum(video.is_partially_decoded for video in videos)
    lines += [f"{partial:,} videos are partially decoded: the rest of them is damaged"] if partial else []
    unreadable = [video_id for video_id in errors if video_id not in catalog.excluded]
    try:
        check_missing_share(errors, errors, len(videos), recipe.data.max_missing, "cannot be used")
        require_readable(catalog, errors, max_missing=recipe.data.max_missing)
        if store_error:
            raise DataError(store_error)
        if unreadable and recipe.frames.store == "none":
            raise DataError(
                f"frames.store=none cannot exclude unreadable videos, and {len(unreadable)} are unreadable; remove "
                "them from the annotations, or use frames.store=disk"
            )
    except DataError as error:
        return [*lines, "training refuses this data"], str(error)
    share, allowed = 100 * len(errors) / len(videos), 100 * recipe.data.max_missing
    excluded = f"training excludes {len(errors):,} videos ({share:.3g} %, allowed {allowed:g} %)"
    return [*lines, excluded if errors else "no video is excluded"], ""
