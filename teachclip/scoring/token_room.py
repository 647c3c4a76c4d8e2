"""Room for what encoders give of all texts or videos, in memory or, if it is much, in a file; filled by batches."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor

from teachclip.scorer import Tokens


class TokenRoom:
    """Tokens of `count` items, which come in order.

    Those that take more than `kept_bytes` lie in a temporary file, whose pages the system may drop.
    """

    def __init__(self, count: int, kept_bytes: int) -> None:
        self.count, self.kept_bytes = count, kept_bytes
        self.tokens: Tokens = {}
        self._filled = 0

    def add(self, tokens: Tokens) -> None:
        """Put the tokens of the next items where they belong."""
        if not self.tokens:
            rows = {name: tensor.shape[1:].numel() * tensor.element_size() for name, tensor in tokens.items()}
            in_file = self.count * sum(rows.values()) > self.kept_bytes
            self.tokens = {name: _room(tensor, self.count, in_file) for name, tensor in tokens.items()}
        size = len(next(iter(tokens.values())))
        for name, room in self.tokens.items():
            room[self._filled : self._filled + size] = tokens[name]
        self._filled += size


def _room(like: Tensor, count: int, in_file: bool) -> Tensor:
    """Return a tensor of `count` rows like those of another; the file of one in a file goes when the tensor does."""
    shape = (count, *like.shape[1:])
    if not in_file:
        return torch.empty(shape, dtype=like.dtype)
    with tempfile.TemporaryFile(prefix="teachclip-tokens-") as file:
        mapped = np.memmap(file, dtype=like[:0].numpy().dtype, mode="w+", shape=shape)
    return torch.from_numpy(mapped)
