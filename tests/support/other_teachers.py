"""Teachers that differ from the published ones: one without frames, one that reads inputs of its own."""

from __future__ import annotations

import torch
from tiny_models import tiny_tokenizer
from torch import nn
from torch.nn.functional import normalize

from teachclip.models.preprocessing import Preprocessing
from teachers.xpool import XPool


class VideoOnly(XPool):
    """X-Pool without its frames."""

    has_frame_relevance = False
    frame_relevance = None


class Pixels(nn.Module):
    """Word vectors against mean colours, of small stretched frames and captions padded to a fixed length."""

    def __init__(self, state: dict[str, torch.Tensor], *, size: int, max_tokens: int, share: bool) -> None:
        super().__init__()
        self.words, self.colours = nn.Parameter(state["words"]), nn.Parameter(state["colours"])
        self.size, self.share = size, share
        if not share:
            self.preprocessing = Preprocessing(
                tiny_tokenizer(),
                max_tokens,
                pad_to=8,
                pad_id=3,
                size=size,
                mean=(0.4,) * 3,
                std=(0.2,) * 3,
                resize="stretch",
            )

    @classmethod
    def from_state_dict(cls, state, *, source="pixels", size=16, max_tokens=6, share=False):
        return cls(state, size=size, max_tokens=max_tokens, share=share)

    @staticmethod
    def write(path):
        generator = torch.Generator().manual_seed(0)
        torch.save({n: torch.randn(k, 5, generator=generator) for n, k in (("words", 99), ("colours", 3))}, path)
        return path

    def encode_texts(self, input_ids, attention_mask):
        assert self.share or (input_ids.shape[1] == 8 and (input_ids[attention_mask == 0] == 3).all())
        words = self.words[input_ids] * attention_mask[..., None]
        return {"text": words.sum(1) / attention_mask.sum(1, keepdim=True)}

    def encode_videos(self, pixel_values, frame_mask):
        assert self.share or pixel_values.shape[-1] == self.size
        return {"frames": pixel_values.mean((3, 4)) @ self.colours, "mask": frame_mask}

    def score(self, texts, videos):
        return 9 * normalize(texts["text"], dim=-1) @ normalize(videos["frames"].mean(1), dim=-1).T

    def frame_relevance(self, texts, videos):
        scores = (texts["text"][:, None] * videos["frames"]).sum(-1)
        return scores.masked_fill(~videos["mask"], -torch.inf).softmax(-1)
