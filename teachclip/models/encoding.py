"""Encode strings and video files with a student, in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from teachclip.errors import DataError
from teachclip.models.processing import check_texts


class EncodingMixin:
    """`encode_text` and `encode_video`, for a student with a `processor`."""

    processor: Any

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = 64, progress: bool = True) -> Tensor:
        """Encode texts. Returns embeddings (texts, dim) on the CPU, L2-normalised, float32, in the given order.

        Raises DataError if the student has no processor, or for a text that is empty or has unknown words.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        return self._encode(texts, "text", batch_size=batch_size, progress=progress)

    @torch.no_grad()
    def encode_video(
        self,
        videos: str | os.PathLike[str] | Sequence[Any],
        *,
        batch_size: int = 8,
        progress: bool = True,
    ) -> Tensor:
        """Encode video files, or arrays of frames as `StudentProcessor` takes them.

        Returns embeddings (videos, dim) on the CPU, L2-normalised, float32, in the given order. Raises DataError if
        the student has no processor, and VideoError for a video that cannot be read, naming it.
        """
        videos = [videos] if isinstance(videos, str | os.PathLike) else list(videos)
        return self._encode(videos, "video", batch_size=batch_size, progress=progress)

    def _encode(self, items: Sequence[Any], kind: str, *, batch_size: int, progress: bool) -> Tensor:
        if self.processor is None:
            raise DataError(
                f"this student has no processor, which encode_{kind} needs: set its .processor to a StudentProcessor"
            )
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, expected at least 1")
        parts = []
        with evaluating(self), tqdm(total=len(items), unit=kind, desc=f"{kind}s", disable=not progress) as bar:
            for start in range(0, len(items), batch_size):
                batch = items[start : start + batch_size]
                parts.append(self._encode_batch(batch, kind).cpu())
                bar.update(len(batch))
        return torch.cat(parts) if parts else torch.empty(0, self.config.width)  # type: ignore[attr-defined]

    def _encode_batch(self, batch: Sequence[Any], kind: str) -> Tensor:
        device = self.device  # type: ignore[attr-defined]
        if kind == "text":
            inputs = self.processor(text=batch)
            outputs = self(  # type: ignore[operator]
                input_ids=inputs["input_ids"].to(device), attention_mask=inputs["attention_mask"].to(device)
            )
            return outputs.text_embeds
        inputs = self.processor(videos=batch)
        outputs = self(  # type: ignore[operator]
            pixel_values=inputs["pixel_values"].to(device), frame_mask=inputs["frame_mask"].to(device)
        )
        return outputs.video_embeds


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode, and back as it was at the end."""
    assert isinstance(model, nn.Module)
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
