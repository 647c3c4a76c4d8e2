"""TS2-Net: patch tokens shift between frames and a few of them speak for each frame (Liu et al., ECCV 2022).

The encoders are CLIP's. In some vision layers attention sees patches of the neighbouring frames; a small network then
selects patch tokens, which go through CLIP4Clip's temporal transformer together with the frames' class tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from teachclip.errors import CheckpointError
from teachclip.models.clip import check_pixel_values, clip_of_teacher, text_features
from teachclip.models.frame_attention import complete_mask, frame_text_relevance, masked_softmax, usable_mask
from teachclip.scorer import Tokens
from teachers.sequential import SequentialTeacher, fresh_sizes, temporal_sizes, unit
from teachers.token_selection import TokenSelector
from teachers.token_shift import SHIFT_PARTS, last_layers, shifted_layer
from teachers.ts2net_layout import read_layout, to_shifted_names

CHUNK_ELEMENTS = 1 << 23
"""Frame cosines (texts x videos x frames) held at once when scoring: 32 MiB in float32 a tensor."""


class TS2Net(SequentialTeacher):
    """The TS2-Net teacher.

    shift_layers: vision layers with token shift. selection: `perturbed` as published, with `samples` draws of noise
    of deviation `sigma`, or `hard`, the plain top k. seed: of the noise, which otherwise depends on the video alone:
    no relevance depends on the batch, the order, the process or earlier calls. In training the noise is fresh. topk:
    patch tokens per frame.
    """

    kind = "TS2-Net"

    def __init__(
        self,
        clip: CLIPModel,
        *,
        shift_layers: Sequence[int],
        selector: Mapping[str, Any],
        source: str = "TS2-Net",
        **sizes: Any,
    ) -> None:
        """`selector`: options of `TokenSelector`; `sizes`: keywords of `SequentialTeacher`."""
        super().__init__(clip, source=source, **sizes)
        self.visual_token_selector = TokenSelector(self.width, source=source, **selector)
        tokens, topk = clip.vision_model.embeddings.num_positions, self.visual_token_selector.topk
        if topk >= tokens:
            raise CheckpointError(f"{source}: topk is {topk}, but a frame has {tokens - 1} patches")
        if shift_layers and tokens < SHIFT_PARTS:
            raise CheckpointError(f"{source}: token shift needs {SHIFT_PARTS} tokens a frame, this CLIP has {tokens}")
        self.shifted = " ".join(map(str, sorted(shift_layers)))  # as text: a plain setting, by which stores are named

    @property
    def shift_layers(self) -> tuple[int, ...]:
        """The vision layers with token shift."""
        return tuple(map(int, self.shifted.split()))

    @classmethod
    def from_clip(
        cls,
        clip: CLIPModel,
        *,
        selection: str = "perturbed",
        samples: int = 500,
        sigma: float = 0.05,
        seed: int = 0,
        topk: int = 3,
        token_shift: bool | None = None,
        temporal_layers: int = 4,
        mask_padding: bool = True,
    ) -> TS2Net:
        """Start a teacher from a CLIP as published: token shift in the last two vision layers, a random selector.

        `token_shift`: False for none. The temporal transformer starts from CLIP's text encoder; what it cannot give
        starts at random, from torch's global generator, as a log line says. With `hard` selection the selector gets
        no gradient and is frozen.
        """
        model = cls(
            clip,
            shift_layers=() if token_shift is False else last_layers(clip),
            temporal_layers=temporal_layers,
            selector={"selection": selection, "samples": samples, "sigma": sigma, "seed": seed, "topk": topk},
            mask_padding=mask_padding,
            **fresh_sizes(clip),
        )
        model.start_from_clip()
        model.visual_token_selector.requires_grad_(selection != "hard")
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        mask_padding: bool = True,
        selection: str = "perturbed",
        samples: int = 500,
        sigma: float = 0.05,
        seed: int = 0,
        topk: int = 3,
        token_shift: bool | None = None,
        base_clip: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        temporal_heads: int | None = None,
        clip_config: Mapping[str, Any] | None = None,
        source: str = "ts2net checkpoint",
    ) -> TS2Net:
        """Build a teacher from an official state dict: CLIP under `clip.` with OpenAI's or transformers' names.

        `token_shift`: None shifts in the layers whose attention is named `attn.net.`, as the original code saves it;
        True also shifts (in the last two layers) where no layer is, False never. `base_clip`: read such a file as
        TeachCLIP's loader does: see `read_layout`. `temporal_heads`, `clip_config`: as of `XCLIP`. Raises
        CheckpointError, with `source` in front, if names or shapes do not fit, RecipeError for impossible options.
        """
        layout = read_layout(state, base_clip=base_clip, token_shift=token_shift, source=source)
        sizes = temporal_sizes(layout.state, source=source)
        clip = clip_of_teacher(layout.state, clip_config, source=source)
        model = cls(
            clip,
            shift_layers=layout.shift_layers or (last_layers(clip) if token_shift else ()),
            temporal_heads=temporal_heads,
            selector={"selection": selection, "samples": samples, "sigma": sigma, "seed": seed, "topk": topk},
            mask_padding=mask_padding,
            source=source,
            **sizes,
        )
        model.load_own(layout.state, source=source)
        return model

    def _official(self) -> dict[str, Tensor]:
        return to_shifted_names(super()._official(), self.shift_layers)

    def options(self) -> dict[str, Any]:
        """Return the options that neither the weights nor the published settings tell."""
        topk = self.visual_token_selector.topk
        return super().options() | ({} if topk == 3 else {"topk": topk})

    def checkpoint(self) -> dict[str, Any]:
        """Return what to save, as of `SequentialTeacher`; how tokens were selected is among the options."""
        selector, content = self.visual_token_selector, super().checkpoint()
        for name, published in (("selection", "perturbed"), ("samples", 500), ("sigma", 0.05)):
            if getattr(selector, name) != published:
                content["options"][name] = getattr(selector, name)
        return content

    # The scorer interface

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Encode texts (texts, tokens) to {"sentence": (texts, dim)}, L2-normalised."""
        return {"sentence": unit(text_features(self.clip, input_ids, attention_mask))}

    def patch_tokens(self, pixel_values: Tensor) -> Tensor:
        """Return all projected tokens of every frame (videos, frames, 1 + patches, dim), the class token first."""
        check_pixel_values(self.clip, pixel_values)
        vision, frames = self.clip.vision_model, pixel_values.shape[1]
        hidden = vision.pre_layrnorm(vision.embeddings(pixel_values.flatten(0, 1)))
        for number, layer in enumerate(vision.encoder.layers):
            is_shifted = number in self.shift_layers
            hidden = shifted_layer(layer, hidden, frames) if is_shifted else layer(hidden, None)
        tokens = self.clip.visual_projection(vision.post_layernorm(hidden))
        return tokens.unflatten(0, pixel_values.shape[:2])

    def encode_videos(self, pixel_values: Tensor, frame_mask: Tensor) -> Tokens:
        """Encode videos (videos, frames, 3, height, width) to the following.

        {"frames": (videos, frames, dim), "mask": (videos, frames) bool}: the class tokens after the temporal
        transformer, L2-normalised. As trained, that one reads the frame mask tiled over the tokens of all frames
        (m_1 .. m_F, m_1 .. m_F, ...), though these are ordered frame by frame: in a padded video it hides other
        tokens than the padded frames'. Positions are counted modulo the rows of their table.
        """
        mask = complete_mask(frame_mask, pixel_values)
        tokens = self.visual_token_selector(self.patch_tokens(pixel_values), pixel_values)
        per_frame = tokens.shape[2]
        tokens = tokens.flatten(1, 2)
        ids = torch.arange(tokens.shape[1], device=tokens.device) % self.frame_position_embeddings.num_embeddings
        hidden = self.over_time(tokens, ids, mask.repeat(1, per_frame))
        return {"frames": unit(hidden[:, ::per_frame]), "mask": mask}

    def _scored_frames(self, mask: Tensor) -> Tensor:
        """Return which frames take part in the score, as trained: every (1 + topk)-th entry of the tiled mask."""
        per_frame = 1 + self.visual_token_selector.topk
        return usable_mask(mask.repeat(1, per_frame)[:, ::per_frame])

    def score(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return exp(logit_scale) sum_f softmax_f(4 c / |c|)_f c_f of the frames' cosines c (texts, videos), float32.

        The norm is over the frames that take part. Texts are taken in chunks, so that without gradients memory does
        not grow with texts x videos x frames.
        """
        sentence, frames = texts["sentence"].float(), videos["frames"].float()
        valid = self._scored_frames(videos["mask"])
        step = max(1, CHUNK_ELEMENTS // max(1, valid.numel()))
        with torch.autocast(sentence.device.type, enabled=False):
            rows = []
            for start in range(0, max(1, len(sentence)), step):
                cosines = (sentence[start : start + step] @ frames.flatten(0, 1).T).unflatten(1, valid.shape)
                directions = F.normalize(cosines * valid, dim=-1)
                rows.append((masked_softmax(4 * directions, valid) * cosines).sum(dim=-1))
            return self.clip.logit_scale.float().exp() * torch.cat(rows)

    def frame_relevance(self, texts: Tokens, videos: Tokens) -> Tensor:
        """Return softmax_f(sentence_i . frame_i,f) over the frames of video i (pairs, frames), temperature 1."""
        mask = videos["mask"] if self.mask_padding else None
        return frame_text_relevance(texts["sentence"], videos["frames"], mask)
