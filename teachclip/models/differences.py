"""Differences between neighbouring frames as tokens of their own (CLIP2Video, arXiv 2106.11097, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachclip.models.temporal import TemporalTransformer


class FrameDifferences(nn.Module):
    """The Temporal Difference Block: put a token for the motion between the frames of a video.

    positions: rows of the frame position table. layers: blocks that attend among the differences, or 0 for one matrix
    in their place (`sigmoid_mlp` in the official code). Parameters have the official names.
    """

    def __init__(self, width: int, *, positions: int, layers: int, heads: int) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(positions, width)
        self.type_position_embeddings = nn.Embedding(2, width)
        self.frame2t_attention = TemporalTransformer(width, layers=layers, heads=heads) if layers else None
        self.frame2t_projection = None if layers else nn.Parameter(torch.eye(width))
        self.trans_layernorm = nn.LayerNorm(width)

    def between(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Return a token for each pair of neighbouring frames (videos, frames - 1, dim), between -1 and 1.

        d_i = f_{i+1} - f_i, with the position of its right frame, through the attention among differences, which does
        not read those whose right frame is padded; then 2 sigmoid(LN(d)) - 1. With a matrix M it is
        2 sigmoid(LN(d M)) - 1. `frames`: (videos, frames, dim), `frame_mask`: (videos, frames) bool.
        """
        steps = frames[:, 1:] - frames[:, :-1]
        if self.frame2t_projection is not None:
            projected = steps @ self.frame2t_projection
        else:
            assert self.frame2t_attention is not None
            positions = self.frame_position_embeddings.weight[1 : frames.shape[1]]
            projected = self.frame2t_attention(steps + positions, frame_mask[:, 1:])
        return 2 * torch.sigmoid(self.trans_layernorm(projected)) - 1

    def forward(self, frames: Tensor, frame_mask: Tensor, stack: TemporalTransformer) -> Tensor:
        """Return frames that have seen each other and the differences between them (videos, frames, dim).

        `stack` reads f_0, d_0, f_1, d_1, ..., f_{n-1}. A difference has the position and the mask of its left frame.
        Each frame's own feature is added to its output. `frames`: raw CLIP features, at least two a video.
        """
        positions = self.frame_position_embeddings.weight[: frames.shape[1]]
        of_difference, of_frame = self.type_position_embeddings.weight
        tokens = frames + positions + of_frame
        between = self.between(frames, frame_mask) + positions[:-1] + of_difference
        pairs = torch.stack((tokens[:, :-1], between.to(tokens.dtype)), dim=2).flatten(1, 2)
        mask = frame_mask.repeat_interleave(2, dim=1)[:, :-1]
        return stack(torch.cat((pairs, tokens[:, -1:]), dim=1), mask)[:, ::2] + frames
