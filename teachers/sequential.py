"""What X-CLIP and TS2-Net share: CLIP, and CLIP4Clip's temporal transformer over what it sees (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import check_state, count_layers, tensor_of, to_float32
from teachclip.models.layouts import (
    BLOCKS,
    CLIP,
    HEAD_WIDTH,
    POSITIONS,
    check_openai_architecture,
    clip_options,
    transformers_to_openai,
    under,
)
from teachclip.models.temporal import TemporalTransformer, official_blocks, rename_blocks
from teachclip.models.warm_start import start_at_random, start_temporal


class SequentialTeacher(nn.Module):
    """A teacher on CLIP with a temporal transformer: reading and writing its official layout.

    temporal_layers, positions: blocks, and rows of the position table. temporal_heads: None means width // 64.
    mask_padding: frame relevance never falls on padded frames; False reproduces the official code, which has no mask
    there. source: put in front of the CheckpointError for sizes that do not go together.

    Every parameter outside `clip.`, `temporal.` and the position table has its official name.
    """

    kind: ClassVar[str]
    """The teacher's name in messages."""

    def __init__(
        self,
        clip: CLIPModel,
        *,
        positions: int,
        source: str,
        temporal_layers: int = 4,
        temporal_heads: int | None = None,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.width = int(clip.config.projection_dim)
        heads = max(1, self.width // HEAD_WIDTH) if temporal_heads is None else temporal_heads
        if heads < 1 or self.width % heads:
            raise CheckpointError(f"{source}: {heads} temporal heads do not divide the width {self.width}")
        self.clip = clip
        self.frame_position_embeddings = nn.Embedding(positions, self.width)
        self.temporal = TemporalTransformer(self.width, layers=temporal_layers, heads=heads)
        self.temporal_heads = heads
        self.mask_padding = mask_padding

    def over_time(self, tokens: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the temporal transformer's output plus its input without positions, float32.

        `tokens`: (videos, tokens, width); `position_ids`: (tokens,); tokens where `mask` (videos, tokens) is False
        are not attended to.
        """
        return self.temporal(tokens + self.frame_position_embeddings(position_ids), mask).float() + tokens.float()

    # Starting, loading, saving

    def start_from_clip(self) -> None:
        """Start the temporal parts from CLIP's text encoder, and what it cannot give at random, as published.

        Linear weights and tables from N(0, 0.02), less where a `ResidualLinear` says so; biases 0, norms 1 and 0.
        The draws are from torch's global generator.
        """
        start_at_random(*(part for name, part in self.named_children() if name != "clip"))
        start_temporal(self.clip, self.frame_position_embeddings, self.temporal)

    def load_own(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Load all but CLIP from official names. Raises CheckpointError unless names and shapes are the model's."""
        head_state = {key: tensor for key, tensor in state.items() if not key.startswith(CLIP)}
        check_state(head_state, self._own(), source=source)
        renamed = {f"temporal.{key}": tensor for key, tensor in rename_blocks(head_state, prefix=BLOCKS).items()}
        renamed |= {key: tensor for key, tensor in head_state.items() if not key.startswith(BLOCKS)}
        self.load_state_dict(to_float32(renamed), strict=False)

    def _own(self) -> dict[str, Tensor]:
        state = {key: value for key, value in self.state_dict().items() if not key.startswith((CLIP, "temporal."))}
        return state | official_blocks(self.temporal, prefix=BLOCKS)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names (CLIP's as OpenAI's), in float32.

        Raises CheckpointError if they do not tell the whole model; `checkpoint` saves any.
        """
        check_openai_architecture(self.clip.config, source=self.kind)
        for key, value in self.options().items():
            raise CheckpointError(f"{self.kind}: the official layout cannot hold {key} {value}")
        return self._official()

    def _official(self) -> dict[str, Tensor]:
        clip = {CLIP + key: tensor for key, tensor in transformers_to_openai(self.clip.state_dict()).items()}
        return to_float32(clip | self._own())

    def options(self) -> dict[str, Any]:
        """Return the options that neither the weights nor the published settings tell."""
        usual = max(1, self.width // HEAD_WIDTH)
        return {} if self.temporal_heads == usual else {"temporal_heads": self.temporal_heads}

    def checkpoint(self) -> dict[str, Any]:
        """Return what to save: the official names under `state_dict`, and the options that the weights do not tell.

        `load_teacher` reads all of it.
        """
        options = self.options() | clip_options(self.clip.config, source=self.kind)
        return {"state_dict": self._official(), "options": options}


def temporal_sizes(state: Mapping[str, Tensor], *, source: str) -> dict[str, int]:
    """Read `temporal_layers` and `positions` off an official state dict. Raises CheckpointError if there are none."""
    positions = len(tensor_of(state, POSITIONS, source=source, dimensions=2))
    if not under(state, BLOCKS):
        raise CheckpointError(f"{source}: {BLOCKS}0 is missing: there is no temporal transformer")
    return {"temporal_layers": count_layers(state, BLOCKS), "positions": positions}


def fresh_sizes(clip: CLIPModel, *, frames: int = 0) -> dict[str, Any]:
    """Return the sizes of a fresh teacher: as many positions as CLIP has text positions, or frames if they are more.

    The temporal transformer has the heads of CLIP's text encoder, whose weights it starts from, where it is as wide.
    """
    text = clip.config.text_config
    is_joint = text.hidden_size == clip.config.projection_dim
    return {
        "temporal_heads": text.num_attention_heads if is_joint else None,
        "positions": max(text.max_position_embeddings, frames),
    }


def unit(features: Tensor) -> Tensor:
    """Return features L2-normalised over the last dimension, float32."""
    return torch.nn.functional.normalize(features.float(), dim=-1)
