"""An ONNX folder as a scorer, so that it is evaluated like any student: on its own tokens, pixels and towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.models.preprocessing import Preprocessing
from teachclip.onnx.student import OnnxStudent
from teachclip.scorer import Tokens


class OnnxScorer(nn.Module):
    """Encodes with onnxruntime and scores with the dot product. It has no weights in torch."""

    def __init__(self, student: OnnxStudent) -> None:
        super().__init__()
        self.student = student
        text, video = student.config.text, student.config.video
        self.preprocessing = Preprocessing(
            Tokenizer(student),
            text.max_tokens,
            text.pad_to,
            text.pad_id,
            video.size,
            resize=video.resize,  # type: ignore[arg-type]
            resample=video.resample,  # type: ignore[arg-type]
            scale_to=video.scale_to,
        )

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode token ids (texts, tokens) to {"embeds": (texts, dim)}, on the CPU."""
        vectors = self.student.text_encoder.run(input_ids.cpu().numpy(), attention_mask.cpu().numpy())
        return {"embeds": torch.from_numpy(vectors)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Raise TypeError: an ONNX student normalises pixels itself, see `encode_stored_frames`."""
        raise TypeError("an ONNX student encodes uint8 frames, not normalised pixels")

    def encode_stored_frames(self, frames: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode uint8 frames (videos, frames, 3, size, size) to {"embeds": (videos, dim)}, on the CPU."""
        vectors, _ = self.student.encode_frames(frames.cpu().numpy(), frame_mask.cpu().numpy())
        return {"embeds": torch.from_numpy(vectors)}

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the cosines (texts, videos)."""
        return texts["embeds"] @ videos["embeds"].T


class Tokenizer:
    """The tokenizer of an ONNX folder, called as one of transformers."""

    def __init__(self, student: OnnxStudent) -> None:
        self.student = student
        self.unk_token_id = student.config.text.unknown_id
        self.eos_token_id = self._end()

    def _end(self) -> int | None:
        ids: Sequence[int] = self.student.text_encoder.tokenizer.backend.encode("").ids
        return int(ids[-1]) if ids else None

    def __call__(self, texts: Sequence[str], **settings: Any) -> dict[str, list[list[int]]]:
        """Return the `input_ids` of texts, cut to the student's most tokens."""
        encoded = self.student.text_encoder.tokenizer.backend.encode_batch(list(texts))
        return {"input_ids": [encoding.ids for encoding in encoded]}
