"""Look at the data of a recipe before anything is trained: the data doctor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.console import log
from teachclip.data.annotations.catalog import refuse_too_many, require_readable
from teachclip.data.annotations.files import describe_overlaps, file_facts, overlaps
from teachclip.data.annotations.records import Catalog, Video
from teachclip.data.frames.views import Frames
from teachclip.data.video.probe import probe_video
from teachclip.data.video.workers import Decoding, Failure, guarded_map
from teachclip.data_check.findings import (
    Finding,
    caption_facts,
    facts_oddities,
    frame_oddities,
    part_of,
    same_files,
    thumbnails,
)
from teachclip.data_check.report import (
    MISSING,
    PICTURED,
    Examination,
    Strip,
    named_problems,
    remarks,
    tables,
    write_prepare_report,
)
from teachclip.errors import DataError, StoreError
from teachclip.models.backbone import load_config
from teachclip.models.processing import StudentProcessor
from teachclip.pipeline import build
from teachclip.pipeline.frames import build_decoding, build_frames, hashes_file
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.reports.tables import markdown_table
from teachclip.store.files import make_folder

GOOD_STRIPS = 6
"""Videos without oddities that the page shows."""


def prepare(recipe: RecipeSource, overrides: Sequence[str] = ()) -> None:
    """Examine the data and write the report. Raises DataError if training would refuse the data.

    `recipe`, `overrides`: as of `distill`.
    """

    recipe = load_recipe(recipe, overrides)
    make_folder(recipe.output)  # now, not after an hour of decoding
    anything = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_missing": 1.0})})
    catalog = build.build_catalog(anything)
    processor = build.build_processor(recipe, load_config(recipe.student.backbone))
    found = examine(recipe, catalog, processor)
    for table in tables(found):
        print(f"{table.title}\n{markdown_table(table)}\n", flush=True)
    for line in [*named_problems(found), *remarks(found)]:
        print(line, flush=True)
    for path in write_prepare_report(found, recipe.output):
        log(f"report: {path}")
    if found.refusal:
        raise DataError(f"training refuses this data: {found.refusal}")


def examine(recipe: Recipe, catalog: Catalog, processor: StudentProcessor) -> Any:
    """Return an `Examination` of all videos and captions."""

    findings = {
        video.id: Finding(video.id, str(video.path), split.name) for split in catalog.splits for video in split.videos
    }
    for split_name, ids in catalog.lost.items():
        findings |= {name: Finding(name, "", split_name, f"{MISSING}: {catalog.excluded[name]}") for name in ids}
    _probe(build_decoding(recipe, processor.transform), catalog, findings)
    strips, trouble = _look(recipe, catalog, processor, findings)
    facts = file_facts(catalog.videos, hashes_file(recipe), progress=True)
    how = processor.preprocessing
    captions = {
        split.name: caption_facts(split, _token_counts(split, how.tokenizer), how.max_tokens)
        for split in catalog.splits
    }
    hashes = {video_id: fact["sha256"] for video_id, fact in facts.items()}
    lines, refusal = verdict(recipe, catalog, list(findings.values()), trouble)
    return Examination(
        recipe.name,
        list(findings.values()),
        captions,
        same_files(hashes, {video.id: str(video.path) for video in catalog.videos}),
        describe_overlaps(overlaps(catalog, facts)),
        lines,
        refusal,
        strips,
    )


def _probe(decoding: Decoding, catalog: Catalog, findings: dict[str, Finding]) -> None:
    """Ask the packets of every file, once per file, in guarded processes."""

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
        for path, facts in zip(files, tqdm(outcomes, "probe", len(files), unit="file"), strict=True):
            for video_id in files[path]:
                if isinstance(facts, Failure):
                    findings[video_id].reason = facts.reason
                else:
                    findings[video_id].facts = facts


def _look(
    recipe: Recipe, catalog: Catalog, processor: StudentProcessor, findings: dict[str, Finding]
) -> tuple[list[Strip], str]:
    """Look at the frames of every video, note what is odd, and keep the pictures of the odd and of a few others.

    Returns the pictures, and why the frame store cannot be used ("" if it can): frames are then decoded without it.
    """

    good: list[Strip] = []
    odd: list[Strip] = []
    store, trouble = _store(recipe, catalog, processor)
    for video, frames, remark in _frames(recipe, catalog, processor, store):
        finding = findings[video.id]
        if frames is None:
            finding.reason = remark
            continue
        finding.frames = len(frames)
        if remark:
            finding.is_partial = True
            finding.oddities.append(f"only a part can be decoded: {remark}")
        if finding.facts is not None:
            finding.seconds, inside = part_of(finding.facts, video.start, video.end)
            finding.oddities += facts_oddities(finding.facts, finding.seconds, inside, planned=recipe.frames.count)
        finding.oddities += frame_oddities(frames)
        if finding.oddities and len(odd) < PICTURED:
            odd.append(Strip(finding, thumbnails(frames)))
        elif not finding.oddities and len(good) < GOOD_STRIPS:
            good.append(Strip(finding, thumbnails(frames)))
    return good + odd, trouble


def _store(recipe: Recipe, catalog: Catalog, processor: StudentProcessor) -> tuple[Frames | None, str]:
    """Return the frame store, filled; or None and why it cannot be used, if it is to be used at all."""

    if recipe.frames.store == "none":
        return None, ""
    videos = sorted(catalog.videos, key=lambda video: video.id)
    training = sorted(catalog.train.videos, key=lambda video: video.id)
    try:
        return build_frames(recipe, Processes(), videos, training, processor.transform, "frames"), ""
    except StoreError as error:
        log(f"the frame store cannot be used, so the frames are decoded for this examination alone: {error}")
        return None, str(error)


def _frames(
    recipe: Recipe, catalog: Catalog, processor: StudentProcessor, store: Frames | None
) -> Iterator[tuple[Video, Tensor | None, str]]:
    """Yield every video with its frames, uint8 (frames, 3, size, size), or None; and why not all or none of them."""

    videos = sorted(catalog.videos, key=lambda video: video.id)
    if store is None:
        outcomes = build_decoding(recipe, processor.transform).run((video, 0) for video in videos)
        with contextlib.closing(outcomes):
            for video, found in zip(videos, tqdm(outcomes, "decode", len(videos), unit="video"), strict=True):
                if isinstance(found, Failure):
                    yield video, None, found.reason
                else:
                    yield video, torch.from_numpy(found.frames), found.remark
        return
    rows = store.rows_of([video.id for video in videos])
    for video, row in zip(videos, tqdm(rows, "look", unit="video"), strict=True):
        if video.id in store.failures:
            yield video, None, store.failures[video.id]
        else:
            frames, mask = store.read(row[None])
            yield video, frames[0][mask[0]], store.partial.get(video.id, "")


def _token_counts(split: Any, tokenizer: Any) -> list[int]:
    """Return the number of tokens of every caption, before any is cut."""
    texts = [caption.text for caption in split.captions]
    return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def verdict(recipe: Recipe, catalog: Catalog, findings: Sequence[Finding], trouble: str) -> tuple[list[str], str]:
    """Return what can be trained on, split by split, and why training would refuse it ("" if it would not).

    `trouble`: what is wrong with the frame store. Training decides by the same functions.
    """

    bad = {finding.id: finding.reason for finding in findings if finding.reason}
    lines = []
    for split in catalog.splits:
        total = len(split.videos) + len(catalog.lost.get(split.name, ()))
        kept = [video.id for video in split.videos if video.id not in bad]
        captions = sum(caption.video_id not in bad for caption in split.captions)
        lines.append(f"{split.name}: {len(kept):,} of {total:,} videos and {captions:,} captions can be used")
    partly = sum(finding.is_partial for finding in findings)
    lines += [f"{partly:,} videos are used in part: the rest of them cannot be decoded"] if partly else []
    unreadable = [name for name, reason in bad.items() if name not in catalog.excluded]
    try:
        refuse_too_many(bad, bad, len(findings), recipe.data.max_missing, "cannot be used")
        require_readable(build.build_catalog(recipe), bad, max_missing=recipe.data.max_missing)
        if trouble:
            raise DataError(trouble)
        if unreadable and recipe.frames.store == "none":
            raise DataError(
                f"frames.store=none leaves out no unreadable video, and {len(unreadable)} are; take them out of the "
                "annotations, or keep the frames on the disk"
            )
    except DataError as error:
        return [*lines, "training refuses this data"], str(error)
    share, allowed = 100 * len(bad) / len(findings), 100 * recipe.data.max_missing
    out = f"training leaves out {len(bad):,} videos ({share:.3g} %, allowed {allowed:g} %)"
    return [*lines, out if bad else "nothing is left out"], ""
