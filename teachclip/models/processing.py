"""From strings and video files to what a student reads; saved beside the model.

The only module under `teachclip.models` that imports `teachclip.data`: for the one decoder and image transform.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from teachclip.data.transform import CLIP_MEAN, CLIP_STD, normalize, resize_and_crop
from teachclip.data.video import FramePlan, decode_frames
from teachclip.errors import CheckpointError, DataError, VideoError

PROCESSOR_FILE = "processor_config.json"
IMAGE_FILE = "preprocessor_config.json"
SETTING_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")


class StudentProcessor(ProcessorMixin):
    """A tokenizer and the settings with which a student's videos are read.

    tokenizer: a CLIP tokenizer.
    frame_plan: which frames are looked at, a `FramePlan` or its fields as a dict.
    size: height and width of the frames in pixels.
    mean, std: per channel, of pixels in 0..1; CLIP's by default.
    max_tokens: texts are cut to so many tokens, start and end of text included.
    """

    # transformers reads the names of saved settings off this signature: they may not be keyword-only.
    def __init__(
        self,
        tokenizer: Any,
        frame_plan: FramePlan | Mapping[str, Any] | None = None,
        size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        max_tokens: int = 32,
    ) -> None:
        super().__init__(tokenizer)
        if frame_plan is None:
            frame_plan = FramePlan("per_second", 12)
        self.frame_plan: dict[str, Any] = (
            asdict(frame_plan) if isinstance(frame_plan, FramePlan) else dict(frame_plan)
        )
        self.size = size
        self.mean = list(mean)
        self.std = list(std)
        self.max_tokens = max_tokens
        try:
            self.plan = FramePlan(**self.frame_plan)
        except TypeError as error:
            raise CheckpointError(f"StudentProcessor: frame_plan {self.frame_plan} is not one: {error}") from error

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: Any | Sequence[Any] | None = None,
        return_tensors: str = "pt",
        **settings: Any,
    ) -> BatchFeature:
        """Prepare texts, videos or both.

        `videos`: paths, or uint8 arrays (frames, 3, height, width) or (frames, height, width, 3), or one of them.
        Returns `input_ids`, `attention_mask` (texts, tokens), and `pixel_values` (videos, frames, 3, size, size)
        with `frame_mask` (videos, frames); a video with fewer frames than the plan's count ends in zeros. The groups
        of settings that other libraries send (`text_kwargs`, `common_kwargs`, ...) are taken but change nothing: a
        student's inputs are prepared in one way only. Raises DataError for an empty text, unknown words or another
        setting, and VideoError for a video that cannot be read.
        """
        other = [name for name in settings if name not in SETTING_GROUPS]
        if other:
            raise DataError(f"{other[0]} cannot be set here; the processor's own settings hold")
        if text is None and videos is None:
            raise DataError("nothing to prepare: give text, videos or both")
        data: dict[str, Tensor] = {}
        if text is not None:
            data |= self._tokenize([text] if isinstance(text, str) else list(text))
        if videos is not None:
            one = isinstance(videos, str | os.PathLike) or (hasattr(videos, "ndim") and videos.ndim == 4)
            data |= self._read([videos] if one else list(videos))
        return BatchFeature(data, tensor_type=return_tensors)

    @classmethod
    def from_clip(
        cls, clip: str | os.PathLike[str], *, plan: FramePlan, size: int | None = None, max_tokens: int = 32
    ) -> StudentProcessor:
        """Take the tokenizer, size, mean and standard deviation from a CLIP's folder or hub id.

        Without image settings beside the CLIP, the pixels are OpenAI's: 224, and their mean and deviation. Raises
        CheckpointError if there is no tokenizer.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(clip)
            found = cached_file(clip, IMAGE_FILE, _raise_exceptions_for_missing_entries=False)
            settings = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{clip}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from error
        mean, std = settings.get("image_mean") or CLIP_MEAN, settings.get("image_std") or CLIP_STD
        crop = settings.get("crop_size") or 224
        wanted = size or (crop if isinstance(crop, int) else crop["height"])
        return cls(tokenizer, frame_plan=plan, size=wanted, mean=mean, std=std, max_tokens=max_tokens)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call may return."""
        return ["input_ids", "attention_mask", "pixel_values", "frame_mask"]

    def _tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        check_texts(texts)
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt", verbose=False
        )
        ids, attention = tokens["input_ids"], tokens["attention_mask"]
        unknown = (ids[:, 1:] == self.tokenizer.unk_token_id) & attention[:, 1:].bool()
        # The end of text may stand for unknown words as well, as in CLIP: only the last one is meant so.
        allowed = int(self.tokenizer.unk_token_id == self.tokenizer.eos_token_id)
        for number in torch.nonzero(unknown.sum(dim=1) > allowed).flatten().tolist():
            words = [word for word in texts[number].split() if self._is_unknown(word)] or [texts[number]]
            raise DataError(f"text {texts[number][:60]!r}: not in the vocabulary: {', '.join(words[:5])}")
        return {"input_ids": ids, "attention_mask": attention}

    def _is_unknown(self, word: str) -> bool:
        return self.tokenizer.unk_token_id in self.tokenizer(word, add_special_tokens=False)["input_ids"]

    def _read(self, videos: list[Any]) -> dict[str, Tensor]:
        pixels = torch.zeros(len(videos), self.plan.count, 3, self.size, self.size)
        mask = torch.zeros(len(videos), self.plan.count, dtype=torch.bool)
        for number, video in enumerate(videos):
            if isinstance(video, str | os.PathLike):
                frames = decode_frames(video, self.plan)
            else:
                frames = self._thin(_as_frames(video))
            pixels[number, : len(frames)] = normalize(resize_and_crop(frames, self.size), self.mean, self.std)
            mask[number, : len(frames)] = True
        return {"pixel_values": pixels, "frame_mask": mask}

    def _thin(self, frames: Tensor) -> Tensor:
        """Take evenly spread frames of an array that has more than the plan's count, as the published code does."""
        if len(frames) <= self.plan.count:
            return frames
        return frames[np.linspace(0, len(frames) - 1, self.plan.count, dtype=int)]


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError, with the number of the text, if one is empty or no string."""
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {number} is {text!r}, expected words")


def _as_frames(video: Any) -> Tensor:
    """Return uint8 (frames, 3, height, width). Raises VideoError for anything that is no such array."""
    frames = torch.as_tensor(video) if isinstance(video, np.ndarray | Tensor) else None
    if frames is None or frames.ndim != 4 or not len(frames) or frames.dtype != torch.uint8:
        got = type(video).__name__ if frames is None else f"{frames.dtype} {tuple(frames.shape)}"
        raise VideoError(f"a video is a {got}, expected a path or a uint8 array (frames, 3, height, width)")
    if frames.shape[1] == 3:
        return frames
    if frames.shape[3] == 3:
        return frames.permute(0, 3, 1, 2)
    raise VideoError(f"a video has shape {tuple(frames.shape)}: neither axis 1 nor the last one has 3 channels")


def load_processor(source: Any) -> StudentProcessor | None:
    """Return the processor saved in a student's folder or hub repository, or None if there is none.

    Raises CheckpointError if there is one that cannot be loaded.
    """
    if Path(source).is_dir() and not (Path(source) / PROCESSOR_FILE).is_file():
        return None
    try:
        return StudentProcessor.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if not Path(source).is_dir():
            return None
        raise CheckpointError(f"{source}: its processor cannot be loaded: {str(error).splitlines()[0]}") from error
