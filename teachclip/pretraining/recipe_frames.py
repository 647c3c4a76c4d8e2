"""Pre-training of a tiny CLIP on the frames and captions of a recipe's training videos."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTokenizer

from teachclip.console import log
from teachclip.data.annotations.catalog import require_readable
from teachclip.data.annotations.records import Split
from teachclip.data.frames.views import Frames
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.frames import build_frames, frames_folder
from teachclip.pretraining.clip import FRESH, ClipSettings, SingleFrames, pretrain_clip
from teachclip.pretraining.tokenizer import build_tokenizer, words_of
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.store.files import make_folder

SIZE = 64
"""Pixels of a frame where the recipe does not say `frames.size`."""
VIDEOS_AT_ONCE = 64
"""Whose frames are read at the same time; those that are trained on stay in memory, and once only."""


def pretrain_on_recipe(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    settings: ClipSettings | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Pre-train a tiny CLIP on frames of a recipe's training videos and their captions, and write it into `out`.

    Frames are sampled as `frames` says; each stands beside one of its video's captions, in turn. The recipe's
    `student.backbone` is not read: it may name `out`. The recall is measured on the middle frames of validation
    videos, if there are any. Returns the same as `teachclip.pretraining.clip.pretrain_clip`. Raises DataError if
    `out` holds files, or training videos have no captions.
    """
    recipe = load_recipe(recipe, overrides)
    folder = Path(out).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; give another --out, or delete it")
    catalog = build_catalog(recipe)
    catalog.train.require_captions("a CLIP learns from captions")
    transform = FrameTransform(recipe.frames.size or SIZE)
    splits = [split for split in (catalog.train, catalog.validation) if split is not None]
    videos = sorted({video.id: video for split in splits for video in split.videos}.values(), key=lambda v: v.id)
    frames = build_frames(recipe, Processes(), videos, [], transform, frames_folder(transform))
    catalog = require_readable(catalog, frames.failures, max_missing=recipe.data.max_missing)
    tokenizer = build_tokenizer(
        words_of(caption.text for caption in catalog.train.captions),
        # the temporal transformer copies the positions of its frames from those of texts
        max(recipe.text.max_tokens, recipe.frames.count),
    )
    data = _single_frames(frames, catalog.train, tokenizer)
    fresh = None
    if catalog.validation is not None and catalog.validation.is_paired:
        fresh = _single_frames(frames, catalog.validation, tokenizer, middle=True)
    log(f"pre-training on {len(data):,} frames of {data.different:,} videos")
    temporary = folder.with_name(f"{folder.name}.part")  # so that what ends while it is written leaves no half CLIP
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    results = pretrain_clip(temporary, data, fresh, tokenizer, settings or ClipSettings(), progress=progress)
    if folder.exists():
        folder.rmdir()
    os.replace(temporary, folder)
    return results


def _single_frames(frames: Frames, split: Split, tokenizer: CLIPTokenizer, *, middle: bool = False) -> SingleFrames:
    """Return frames of a split, each with a caption of its video; `middle`: one frame of at most `FRESH` videos."""
    captions: list[list[str]] = [[] for _ in split.videos]
    for caption, video in zip(split.captions, split.caption_videos, strict=True):
        captions[video].append(caption.text)
    if not split.videos:
        raise DataError(f"the {split.name} split has no videos; a CLIP learns from their frames")
    videos = np.arange(min(FRESH, len(split.videos)) if middle else len(split.videos))
    rows = frames.rows_of([split.videos[int(video)].id for video in videos])
    shown: torch.Tensor | None = None
    texts: list[str] = []
    groups: list[int] = []
    for some in np.array_split(videos, -(-len(videos) // VIDEOS_AT_ONCE)):
        pixels, mask = frames.read(rows[some])
        if shown is None:  # memory that is not written to takes no room, so the most frames may be asked for
            most = len(videos) * (1 if middle else pixels.shape[1])
            shown = torch.empty(most, *pixels.shape[2:], dtype=pixels.dtype)
        own, places = np.nonzero(mask.numpy())
        if middle:
            own, places = np.arange(len(some)), mask.sum(dim=1).numpy() // 2
        shown[len(texts) : len(texts) + len(own)] = pixels[own, places]
        texts += [captions[video][at % len(captions[video])] for video, at in zip(some[own], places, strict=True)]
        groups += some[own].tolist()
    assert shown is not None
    return SingleFrames(shown[: len(texts)], texts, tokenizer, groups)
