"""The tiny CLIP of the Shapes dataset: what it is pre-trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from teachclip.errors import DataError
from teachclip.pretraining import clip
from teachclip.pretraining.tokenizer import build_tokenizer
from teachclip.shapes.captions import describe_event, vocabulary
from teachclip.shapes.rendering import render_single_frames
from teachclip.shapes.scenes import Purpose, stream

MAX_TOKENS = 32
"""Rows of the text position table: enough for the longest caption, and for frame positions copied from it."""


@dataclass(frozen=True)
class PretrainingSettings:
    """Everything that the weights of the tiny CLIP depend on."""

    seed: int = 0
    frames: int = 12_000
    steps: int = 700
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    border_share: float = 0.3
    caption_drop: float = 0.15
    width: int = 128
    vision_layers: int = 3
    text_layers: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.batch_size <= self.frames:
            raise DataError(f"batch_size is {self.batch_size}; allowed: 2 to the number of frames, {self.frames}")
        self.clip_settings()

    def clip_settings(self) -> clip.ClipSettings:
        """Return what does not concern the frames."""
        own = ("frames", "border_share", "caption_drop")
        return clip.ClipSettings(**{key: value for key, value in vars(self).items() if key not in own})


def shapes_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer to which every word of a caption is one token."""
    return build_tokenizer(vocabulary(), MAX_TOKENS)


def single_frames(
    settings: PretrainingSettings, tokenizer: CLIPTokenizer, *, count: int, index: int
) -> clip.SingleFrames:
    """Return frames with one event each and a caption for each."""
    rng = stream(Purpose.PRETRAINING, settings.seed, index)
    frames, events = render_single_frames(count, rng, settings.border_share)
    texts = [describe_event(event, rng, settings.caption_drop).text for event in events]
    return clip.SingleFrames(torch.from_numpy(frames).permute(0, 3, 1, 2), texts, tokenizer)


def pretrain_clip(folder: Path, settings: PretrainingSettings, *, progress: bool = True) -> dict[str, float]:
    """Pre-train the tiny CLIP of a Shapes dataset and write it into `folder` for transformers.

    Returns what `teachclip.pretraining.clip.pretrain_clip` does; the recall is on 500 fresh frames.
    """
    tokenizer = shapes_tokenizer()
    data = single_frames(settings, tokenizer, count=settings.frames, index=0)
    fresh = single_frames(settings, tokenizer, count=clip.FRESH, index=1)
    return clip.pretrain_clip(folder, data, fresh, tokenizer, settings.clip_settings(), progress=progress)
