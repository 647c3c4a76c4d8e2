"""The two halves of a student as modules that take what a server has, token ids and uint8 frames, and export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.models.families import family_of, full_length, image_size
from teachclip.models.modeling import StudentModel


class TextTower(nn.Module):
    """From token ids to L2-normalised vectors. Families that need the attention mask get one; others take none."""

    def __init__(self, student: StudentModel) -> None:
        super().__init__()
        self.student = student
        config = student.config.backbone_config
        self.input_names = ["input_ids"] + ["attention_mask"] * (family_of(config).text == "masked")
        self.full_length = full_length(config)
        """The one number of tokens that the tower takes, or None for any."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode texts, both inputs (texts, tokens) int64, to (texts, dim) float32."""
        return self.student.encode_texts(input_ids, attention_mask)["embeds"]


class VideoTower(nn.Module):
    """From uint8 frames to L2-normalised vectors: normalisation of pixels, encoder, adapters and pooling inside.

    mean, std: per channel, of pixels in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, student: StudentModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `frames` uint8 (videos, frames, 3, size, size); `frame_mask` (videos, frames): padding is False.

        Returns vectors (videos, dim) and `StudentOutput.frame_weights` (videos, frames), both float32.
        """
        pixels = (frames.to(torch.float32) / 255 - self.mean) / self.std
        pixels = pixels * frame_mask[:, :, None, None, None]  # padded frames are zero after it, as in training
        output = self.student(pixel_values=pixels, frame_mask=frame_mask)
        return output.video_embeds, output.frame_weights


@contextmanager
def exportable(student: StudentModel) -> Iterator[None]:
    """Replace what cannot be exported by what gives the same numbers.

    SigLIP 2 resizes its position embedding in a loop over the images, to the shape of each. Here all images are
    squares of one size, so one resized embedding serves them all.
    """
    config: Any = student.config.backbone_config
    if config.model_type != "siglip2":
        yield
        return
    embeddings: Any = student.backbone.vision_model.embeddings
    side, stored = image_size(config) // config.vision_config.patch_size, embeddings.position_embedding_size
    with torch.no_grad():
        table = embeddings.position_embedding.weight.reshape(stored, stored, -1)
        shape = torch.tensor([[side, side]])
        resized = embeddings.resize_positional_embeddings(table, shape, max_length=side * side)

    def constant(table: Tensor, shapes: Tensor, max_length: int) -> Tensor:
        return resized.expand(shapes.shape[0], -1, -1)

    embeddings.resize_positional_embeddings = constant
    try:
        yield
    finally:
        del embeddings.resize_positional_embeddings
