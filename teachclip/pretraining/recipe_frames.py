"""Pre-training of a tiny CLIP on the frames and captions of a recipe's training videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from teachclip.console import log
from teachclip.data.annotations.catalog import require_readable
from teachclip.data.annotations.records import Split
from teachclip.data.frames.views import Frames
from teachclip.data.video.transform import FrameTransform
from teachclip.errors import DataError
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.frames import build_frames, frames_folder
from teachclip.pretraining.clip import FRESH, ClipSettings, Pictures, pretrain_clip
from teachclip.pretraining.tokenizer import build_tokenizer, words_of
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe

SIZE = 64
"""Pixels of a frame where the recipe does not say `frames.size`."""


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
    folder = Path(out)
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
    data = _pictures(frames, catalog.train, tokenizer)
    fresh = None
    if catalog.validation is not None and catalog.validation.is_paired:
        fresh = _pictures(frames, catalog.validation, tokenizer, middle=True)
    log(f"pre-training on {len(data):,} frames of {data.different:,} videos")
    folder.mkdir(parents=True, exist_ok=True)
    return pretrain_clip(folder, data, fresh, tokenizer, settings or ClipSettings(), progress=progress)


def _pictures(frames: Frames, split: Split, tokenizer: CLIPTokenizer, *, middle: bool = False) -> Pictures:
    """Return frames of a split, each with a caption of its video; `middle`: one frame of at most `FRESH` videos."""
    pixels, mask = frames.read(frames.rows_of([video.id for video in split.videos]))
    captions: list[list[str]] = [[] for _ in split.videos]
    for caption, video in zip(split.captions, split.caption_videos, strict=True):
        captions[video].append(caption.text)
    videos, places = np.nonzero(mask.numpy())
    if middle:
        videos = np.arange(min(FRESH, len(split.videos)))
        places = (mask.sum(dim=1).numpy() // 2)[: len(videos)]
    texts = [captions[video][place % len(captions[video])] for video, place in zip(videos, places, strict=True)]
    return Pictures(pixels[videos, places].contiguous(), texts, tokenizer, videos.tolist())
