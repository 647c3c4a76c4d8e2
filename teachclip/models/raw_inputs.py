"""Texts and frames for models that prepare both themselves: captions as UTF-8 bytes, frames as they were decoded.

Everything between the data and a model moves tensors: batches, loading processes, stores, keys. A model with a
tokenizer and an image processor of its own, such as one of Sentence Transformers, is therefore given the bytes of a
text as its token ids, and uint8 frames (`teachclip.scorer.FrameScorer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from teachclip.models.preprocessing import Preprocessing

MOST_BYTES = 2**16
"""Longer texts are cut; models cut far earlier, at a token of their own."""


class RawTexts:
    """A tokenizer that leaves texts as they are: the ids of a text are its UTF-8 bytes."""

    model_max_length = MOST_BYTES

    def __call__(
        self, texts: Sequence[str], *, max_length: int = MOST_BYTES, **settings: Any
    ) -> dict[str, list[list[int]]]:
        """Return the `input_ids` of texts, cut to `max_length` bytes."""
        return {"input_ids": [list(text.encode()[:max_length]) for text in texts]}


def texts_of(input_ids: Tensor, attention_mask: Tensor) -> list[str]:
    """Return the texts of byte ids (texts, bytes) and their mask; a character that was cut in two is dropped."""
    rows = zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
    return [bytes(ids[:length]).decode(errors="ignore") for ids, length in rows]


def raw_preprocessing(
    size: int, *, resize: Literal["crop", "stretch"] = "crop", resample: Literal["bicubic", "bilinear"] = "bicubic"
) -> Preprocessing:
    """Return the preprocessing of a model that is given texts and uint8 frames of `size` pixels as they are."""
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(RawTexts(), MOST_BYTES, size=size, mean=zeros, std=ones, resize=resize, resample=resample)


def frames_of_pixels(pixel_values: Tensor) -> Tensor:
    """Return uint8 frames of pixels that were normalised by the mean 0 and deviation 1 of `raw_preprocessing`."""
    return (pixel_values * 255).round().clamp(0, 255).to(torch.uint8)
