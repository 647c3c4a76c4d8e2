"""CLIP2Video: differences of neighbouring frames as tokens of their own, and centres that align words with frames.

Fang et al., "CLIP2Video: Mastering Video-Text Retrieval via Image CLIP" (arXiv 2106.11097): the Temporal Difference
Block (section 3.2) and the Temporal Alignment Block (section 3.3). Neither the text nor the video looks at the other,
so that scoring all pairs is two matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from teachclip.errors import CheckpointError, DataError
from teachclip.models.checkpoints import another_model, check_state, count_layers, to_float32
from teachclip.models.clip import clip_of_teacher, frame_features, sentence_and_words
from teachclip.models.frame_attention import complete_mask, frame_text_relevance, residual_pooling
from teachclip.models.layouts import HEAD_WIDTH, check_openai_architecture, clip_options, transformers_to_openai
from teachclip.models.temporal import FrameDifferences, TemporalTransformer, official_blocks, rename_blocks
from teachclip.models.warm_start import start_at_random, start_temporal
from teachclip.scorer import Tokens
from teachers.sequential import fresh_sizes

MIN_FRAMES = 3
"""The alignment block takes every second frame and needs a difference among those."""

_STACKS = {
    "temporal": "transformerClip.resblocks.",
    "action": "actionClip.resblocks.",
    "differences.frame2t_attention": "frame2t_attention.resblocks.",
}
_MARKS = ("actionClip.", "frame2t_", "type_position_embeddings.", "trans_layernorm.", "weight_center", "emb_center")
"""Names that only a CLIP2Video has."""


class CLIP2Video(nn.Module):
    """The CLIP2Video teacher.

    Its training code was never released. `training_logits` is the loss that its released forward computes in training
    mode: center_weight L(global) + (1 - center_weight) L(aligned), L the symmetric cross-entropy.

    centers: K, shared by texts and videos (5; 7 for VATEX). difference_layers: blocks that attend among the
    differences, or 0 for one matrix in their place (`sigmoid_mlp` of the official code). center_weight: share of the
    global score, 0.5 as published. mask_padding: frame relevance never falls on padded frames; the scores are the
    same either way.

    Where it differs from the official code: there, head h of video b uses the mask of video (b * heads + h) mod
    batch, so that results of mixed lengths depend on the batch. Here every video has its own mask, as there in a
    batch of one. As there, the difference after the last valid frame is a valid token and reads the padded frame.
    """

    def __init__(
        self,
        clip: CLIPModel,
        *,
        centers: int = 5,
        positions: int = 77,
        layers: int = 4,
        action_layers: int = 1,
        difference_layers: int = 1,
        temporal_heads: int | None = None,
        center_weight: float = 0.5,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= center_weight <= 1:
            raise CheckpointError(f"CLIP2Video: center_weight is {center_weight}, allowed: 0 to 1")
        if centers < 1 or positions < 2:
            raise CheckpointError(
                f"CLIP2Video: {centers} centers and {positions} positions; allowed: 1 and 2 or more"
            )
        width = clip.config.projection_dim
        heads = max(1, width // HEAD_WIDTH) if temporal_heads is None else temporal_heads
        if heads < 1 or width % heads:
            raise CheckpointError(f"CLIP2Video: {heads} temporal heads do not divide the width {width}")
        self.clip = clip
        self.differences = FrameDifferences(width, positions=positions, layers=difference_layers, heads=heads)
        self.temporal = TemporalTransformer(width, layers=layers, heads=heads)
        self.action = TemporalTransformer(width, layers=action_layers, heads=heads)
        self.weight_center = nn.Parameter(0.125 * torch.randn(centers, width))
        self.emb_center = nn.Parameter(0.125 * torch.randn(centers, width))
        self.temporal_heads = heads
        self.center_weight = center_weight
        self.mask_padding = mask_padding

    @classmethod
    def from_clip(
        cls, clip: CLIPModel, *, frames: int, centers: int = 5, center_weight: float = 0.5, mask_padding: bool = True
    ) -> CLIP2Video:
        """Start a teacher from a CLIP as published.

        Positions, types (the first two positions) and blocks start from CLIP's text encoder if it is as wide as the
        joint space, the centres from N(0, 0.125^2). `frames`: at least so many positions.
        """
        sizes = fresh_sizes(clip, frames=frames)
        model = cls(clip, centers=centers, center_weight=center_weight, mask_padding=mask_padding, **sizes)
        block = model.differences
        assert block.frame2t_attention is not None
        start_at_random(block, model.temporal, model.action)
        stacks = (model.temporal, model.action, block.frame2t_attention)
        if start_temporal(clip, block.frame_position_embeddings, *stacks):
            with torch.no_grad():
                block.type_position_embeddings.weight.copy_(block.frame_position_embeddings.weight[:2])
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        mask_padding: bool = True,
        center_weight: float = 0.5,
        temporal_heads: int | None = None,
        clip_config: Mapping[str, Any] | None = None,
        source: str = "clip2video checkpoint",
    ) -> CLIP2Video:
        """Build a teacher from an official state dict: CLIP under `clip.` with OpenAI's or transformers' names.

        The centres, the layers and how differences are projected are read off it; `center_weight` and
        `temporal_heads` (None: width // 64) cannot be read off the weights. `clip_config`: of a CLIP that is not as
        OpenAI's. Raises CheckpointError, with `source` in front, if names or shapes do not fit.
        """
        head_state = {key: tensor for key, tensor in state.items() if not key.startswith("clip.")}
        if not any(key.startswith(_MARKS) for key in head_state):
            raise another_model(state, "a CLIP2Video", source=source)
        clip = clip_of_teacher(state, clip_config, source=source)
        layers = {name: max(1, count_layers(head_state, prefix)) for name, prefix in _STACKS.items()}
        model = cls(
            clip,
            centers=_rows(head_state, "weight_center", "emb_center", default=5),
            positions=_rows(head_state, "frame_position_embeddings.weight", default=77),
            layers=layers["temporal"],
            action_layers=layers["action"],
            difference_layers=0 if "frame2t_projection" in head_state else layers["differences.frame2t_attention"],
            temporal_heads=temporal_heads,
            center_weight=center_weight,
            mask_padding=mask_padding,
        )
        check_state(head_state, model._official_without_clip(), source=source)
        loaded = {
            key if key.endswith("_center") else f"differences.{key}": tensor for key, tensor in head_state.items()
        }
        for name, prefix in _STACKS.items():
            loaded |= {f"{name}.{key}": tensor for key, tensor in rename_blocks(head_state, prefix=prefix).items()}
        model.load_state_dict(to_float32(loaded), strict=False)
        return model

    def _official_without_clip(self) -> dict[str, Tensor]:
        inside = tuple(f"{name}." for name in ("clip", *_STACKS))
        result = {key: tensor for key, tensor in self.state_dict().items() if not key.startswith(inside)}
        result = {key.removeprefix("differences."): tensor for key, tensor in result.items()}
        modules = dict(self.named_modules())
        for name, prefix in _STACKS.items():
            if name in modules:
                result |= official_blocks(modules[name], prefix=prefix)  # type: ignore[arg-type]
        return result

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names (CLIP's as OpenAI's), in float32.

        Raises CheckpointError if they do not tell the whole CLIP; `checkpoint` saves any.
        """
        check_openai_architecture(self.clip.config, source="CLIP2Video")
        if "temporal_heads" in self._options():
            raise CheckpointError(f"CLIP2Video: the official layout cannot hold {self.temporal_heads} temporal heads")
        return self._official()

    def _official(self) -> dict[str, Tensor]:
        clip = {f"clip.{key}": tensor for key, tensor in transformers_to_openai(self.clip.state_dict()).items()}
        return to_float32(clip | self._official_without_clip())

    def _options(self) -> dict[str, Any]:
        by_width = max(1, self.clip.config.projection_dim // HEAD_WIDTH)
        heads = {} if self.temporal_heads == by_width else {"temporal_heads": self.temporal_heads}
        return {"center_weight": self.center_weight, **heads, **clip_options(self.clip.config, source="CLIP2Video")}

    def checkpoint(self) -> dict[str, Any]:
        """Return what to save: the weights by official names, and the options that they do not tell."""
        return {"state_dict": self._official(), "options": self._options()}

    min_frames = MIN_FRAMES

    @property
    def max_frames(self) -> int:
        """The most frames a video may have."""
        return self.differences.frame_position_embeddings.num_embeddings

    # The scorer interface

    def videos_from_frames(self, frames: Tensor, frame_mask: Tensor) -> Tokens:
        """Return what scoring needs of raw CLIP frame features (videos, frames, dim) and their mask.

        `frames`: after the temporal transformer (videos, frames, dim), raw; `mask`; `video`: the normalised mean of
        the normalised valid frames; `aligned`: see `residual_pooling`. Both are (videos, dim) and L2-normalised.
        """
        mask = complete_mask(frame_mask, frames)
        hidden = self.differences(frames, mask, self.temporal)
        action = self.differences(frames[:, ::2], mask[:, ::2], self.action)
        tokens, valid = torch.cat((frames, action), dim=1), torch.cat((mask, mask[:, ::2]), dim=1)
        aligned = residual_pooling(tokens, valid, self.weight_center, self.emb_center)
        pooled = (F.normalize(hidden.float(), dim=-1) * mask.unsqueeze(-1)).sum(dim=1)
        return {"frames": hidden, "mask": mask, "video": F.normalize(pooled, dim=-1), "aligned": aligned}

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens).

        Returns `sentence`, CLIP's raw text feature, and `aligned`, which describes all words but the start-of-text
        token and padding; both (texts, dim). Raises DataError if ids and mask differ in shape.
        """
        if (found := attention_mask.shape) != input_ids.shape:
            raise DataError(f"attention_mask has shape {tuple(found)}, input_ids {tuple(input_ids.shape)}")
        sentence, words = sentence_and_words(self.clip, input_ids)
        mask = attention_mask.bool().clone()
        mask[:, 0] = False
        return {"sentence": sentence, "aligned": residual_pooling(words, mask, self.weight_center, self.emb_center)}

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width); see `videos_from_frames`.

        Raises DataError for fewer than 3 frames, or more than there are positions.
        """
        if pixel_values.ndim == 5 and not MIN_FRAMES <= pixel_values.shape[1] <= self.max_frames:
            raise DataError(
                f"videos have {pixel_values.shape[1]} frames, CLIP2Video takes {MIN_FRAMES} to {self.max_frames}"
            )
        return self.videos_from_frames(frame_features(self.clip, pixel_values), frame_mask)

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return center_weight times the global and 1 - center_weight times the aligned logits (texts, videos)."""
        (share, overall), (rest, aligned) = self.training_logits(texts, videos)
        return share * overall + rest * aligned

    def training_logits(self, texts: Tokens, videos: Tokens) -> list[tuple[float, Tensor]]:
        """Return the weights and logits (texts, videos) whose contrastive losses add up: global and aligned."""
        sentence = texts["sentence"].float()
        with torch.autocast(sentence.device.type, enabled=False):
            scale = self.clip.logit_scale.float().exp()
            overall = scale * F.normalize(sentence, dim=-1) @ videos["video"].float().T
            aligned = scale * texts["aligned"].float() @ videos["aligned"].float().T
        return [(self.center_weight, overall), (1 - self.center_weight, aligned)]

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return the softmax over the frames of video i of their cosines with text i (pairs, frames), float32.

        None is published; the frames are those after the temporal transformer, as in TS2-Net.
        """
        mask = videos["mask"] if self.mask_padding else None
        return frame_text_relevance(texts["sentence"], videos["frames"], mask)


def _rows(state: Mapping[str, Tensor], *keys: str, default: int) -> int:
    """Return the rows of the first tensor of `keys` that is there; without one, the check of names will say so."""
    return next((len(state[key]) for key in keys if key in state and state[key].ndim), default)
