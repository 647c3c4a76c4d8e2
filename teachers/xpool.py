"""X-Pool: every text attends to the frames of a video and pools them for itself (Gorti et al., CVPR 2022, section 4).

The encoders are CLIP's; the pooled video differs from text to text, so that scoring all pairs is costly. Its
attention over the frames of a matched pair is the frame relevance that students learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import another_model, check_state, to_float32
from teachclip.models.clip import clip_of_teacher, frame_features, text_features
from teachclip.models.frame_attention import check_pairs, complete_mask, masked_softmax
from teachclip.models.layouts import check_openai_architecture, clip_options, under
from teachclip.scorer import Tokens

CHUNK_ELEMENTS = 1 << 24
"""Pooled features (texts x videos x dim) held at once when scoring without gradients: 64 MiB in float32."""


LOG_PRIOR = "log_prior"
"""A token of videos (videos, frames) that a published X-Pool does not have; see `teachers.guided_xpool`."""


class CrossAttention(nn.Module):
    """Attention from texts to the frames of each video."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def weights(
        self, queries: Tensor, keys: Tensor, frame_mask: Tensor | None, log_prior: Tensor | None = None
    ) -> Tensor:
        """Return softmax_f(k_f . q / sqrt(width / heads) + log_prior_f) as (videos, heads, texts, frames).

        `queries`: (texts, width), or (videos, texts, width); `keys`: (videos, frames, width), both projected;
        `log_prior`: (videos, frames), what frames weigh before a text is known, or None: all alike.
        """
        query = queries.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        key = keys.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if log_prior is not None:
            scores = scores + log_prior[:, None, None, :]
        return masked_softmax(scores, None if frame_mask is None else frame_mask[:, None, None, :])

    def pool(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return the frames pooled by `weights` and projected: (videos, texts, width)."""
        value = values.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        mixed = weights.to(value.dtype) @ value
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2))


class FramePooling(nn.Module):
    """The text-conditioned pooling module; `dropout` acts on its residual branch in training."""

    def __init__(self, width: int, *, heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(width, heads)
        self.linear_proj = nn.Linear(width, width)
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.layer_norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        frame_mask: Tensor | None,
        log_prior: Tensor | None = None,
    ) -> Tensor:
        """Pool every video for every text: (videos, texts, width). `log_prior`: see `CrossAttention.weights`.

        o = LN2(W_o sum_f A_f v_f); result = LN3(o + dropout(linear(o))).
        """
        weights = self.cross_attn.weights(queries, keys, frame_mask, log_prior)
        pooled = self.layer_norm2(self.cross_attn.pool(weights, values))
        return self.layer_norm3(pooled + self.dropout(self.linear_proj(pooled)))

    def queries(self, text_features: Tensor) -> Tensor:
        """Project texts (texts, width)."""
        return self.cross_attn.q_proj(self.layer_norm1(text_features))

    def keys_and_values(self, frame_features: Tensor) -> tuple[Tensor, Tensor]:
        """Project frames (videos, frames, width); texts and frames share one norm."""
        normed = self.layer_norm1(frame_features)
        return self.cross_attn.k_proj(normed), self.cross_attn.v_proj(normed)


class XPool(nn.Module):
    """The X-Pool teacher.

    mask_padding: padded frames get no attention; False reproduces the official code, which has no mask.
    """

    def __init__(self, clip: CLIPModel, *, heads: int = 1, dropout: float = 0.3, mask_padding: bool = True) -> None:
        super().__init__()
        width = clip.config.projection_dim
        if heads < 1 or width % heads:
            raise CheckpointError(f"X-Pool: {heads} heads do not divide the width {width}")
        self.clip = clip
        self.pool_frames = FramePooling(width, heads=heads, dropout=dropout)
        self.mask_padding = mask_padding

    @classmethod
    def from_clip(cls, clip: CLIPModel, *, heads: int = 1, dropout: float = 0.3, mask_padding: bool = True) -> XPool:
        """Start a teacher from a CLIP as published: all projections are the identity, so that it begins as CLIP."""
        model = cls(clip, heads=heads, dropout=dropout, mask_padding=mask_padding)
        for module in model.pool_frames.modules():
            if isinstance(module, nn.Linear):
                nn.init.eye_(module.weight)
                nn.init.zeros_(module.bias)
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        mask_padding: bool = True,
        heads: int = 1,
        dropout: float = 0.3,
        clip_config: Mapping[str, Any] | None = None,
        source: str = "xpool checkpoint",
    ) -> XPool:
        """Build a teacher from an official state dict: CLIP under `clip.` with transformers' or OpenAI's names.

        `heads`, `dropout`: cannot be read off the weights; 1 and 0.3 as published. `clip_config`: of a CLIP that is
        not as OpenAI's. Raises CheckpointError, with `source` in front, if names or shapes do not fit.
        """
        pooling = under(state, "pool_frames.")
        if not pooling:
            raise another_model(state, "an X-Pool", source=source)
        rest = {key: tensor for key, tensor in state.items() if not key.startswith(("clip.", "pool_frames."))}
        check_state(rest, {}, source=source)
        clip = clip_of_teacher(state, clip_config, source=source)
        model = cls(clip, heads=heads, dropout=dropout, mask_padding=mask_padding)
        expected = {f"pool_frames.{key}": tensor for key, tensor in model.pool_frames.state_dict().items()}
        check_state({f"pool_frames.{key}": tensor for key, tensor in pooling.items()}, expected, source=source)
        model.pool_frames.load_state_dict(to_float32(pooling))
        return model

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names (CLIP's as transformers'), in float32.

        Raises CheckpointError if they do not tell the whole model; `checkpoint` saves any.
        """
        check_openai_architecture(self.clip.config, source="X-Pool")
        return to_float32(self.state_dict())

    def checkpoint(self) -> dict[str, Any]:
        """Return what to save: the official container, and the options that the weights do not tell.

        `load_teacher` reads all of it; the official code reads `state_dict`.
        """
        options = {"heads": self.pool_frames.cross_attn.heads, "dropout": self.pool_frames.dropout.p}
        return {
            "state_dict": to_float32(self.state_dict()),
            "options": options | clip_options(self.clip.config, source="X-Pool"),
        }

    # The scorer interface

    def texts_from_features(self, text_features: Tensor) -> Tokens:
        """Return {"sentence": (texts, dim)}: the raw CLIP text feature."""
        return {"sentence": text_features}

    def videos_from_features(self, frame_features: Tensor, frame_mask: Tensor) -> Tokens:
        """Return {"frames": (videos, frames, dim), "mask": (videos, frames) bool}: raw CLIP frame features."""
        return {"frames": frame_features, "mask": complete_mask(frame_mask, frame_features)}

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens); see `texts_from_features`."""
        return self.texts_from_features(text_features(self.clip, input_ids, attention_mask))

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width); see `videos_from_features`."""
        return self.videos_from_features(frame_features(self.clip, pixel_values), frame_mask)

    def _mask(self, videos: Tokens) -> Tensor | None:
        return videos["mask"] if self.mask_padding else None

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return exp(logit_scale) times the cosine of each text and the video pooled for it (texts, videos), float32.

        In evaluation mode the texts are taken in chunks, so that memory does not grow with texts x videos x dim.
        """
        sentence = texts["sentence"]
        count, width = sentence.shape
        keys, values = self.pool_frames.keys_and_values(videos["frames"])
        step = count if self.training else max(1, CHUNK_ELEMENTS // (max(1, len(keys)) * width))
        rows = [
            self._score_chunk(sentence[start : start + step], keys, values, videos)
            for start in range(0, count, max(1, step))
        ]
        return torch.cat(rows) if rows else sentence.new_zeros(0, len(keys), dtype=torch.float32)

    def _score_chunk(self, sentence: Tensor, keys: Tensor, values: Tensor, videos: Tokens) -> Tensor:
        queries = self.pool_frames.queries(sentence)
        pooled = self.pool_frames(queries, keys, values, self._mask(videos), videos.get(LOG_PRIOR)).float()
        # The cosine as one product and one norm: no normalised copy of the pooled features is made.
        with torch.autocast(pooled.device.type, enabled=False):
            products = (pooled.transpose(0, 1) @ F.normalize(sentence.float(), dim=-1).unsqueeze(-1)).squeeze(-1)
            lengths = pooled.norm(dim=-1).T.clamp_min(1e-12)
            return self.clip.logit_scale.float().exp() * products / lengths

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the attention of text i over the frames of video i (pairs, frames), averaged over the heads."""
        check_pairs(texts["sentence"], videos["frames"])
        queries = self.pool_frames.queries(texts["sentence"]).unsqueeze(1)
        keys, _ = self.pool_frames.keys_and_values(videos["frames"])
        weights = self.pool_frames.cross_attn.weights(queries, keys, self._mask(videos), videos.get(LOG_PRIOR))
        return weights.mean(dim=1).squeeze(1)
