"""Room for what encoders give of all texts or videos, in memory or, if it is much, in a file; filled by batches."""

from __future__ import annotations

import torch
from torch import Tensor

from teachclip.processes import Processes
from teachclip.scorer import Tokens
from teachclip.store.scratch import scratch_array

SENT_AT_ONCE = 1024
"""Items whose tokens a process sends to the others at a time."""


class TokenRoom:
    """Tokens of `count` items, which come in order.

    Those that take more than `kept_bytes` lie in temporary files, see `scratch`. `add` raises StoreError where there
    is no space.
    """

    def __init__(self, count: int, kept_bytes: int) -> None:
        self.count, self.kept_bytes = count, kept_bytes
        self.tokens: Tokens = {}
        self._filled = 0

    @property
    def is_full(self) -> bool:
        """Whether the tokens of all items are there."""
        return self._filled == self.count

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


def gathered(own: Tokens, count: int, processes: Processes, kept_bytes: int) -> Tokens:
    """Return the tokens of all `count` items in every process, each of which has those of its share.

    They go from process to process in parts, so that a file of tokens is in no memory as a whole.
    """
    room = TokenRoom(count, kept_bytes)
    for owner in range(processes.count):
        size = len(Processes(owner, processes.count).share(count))
        for start in range(0, size, SENT_AT_ONCE):
            rows = slice(start, start + SENT_AT_ONCE)
            is_own = owner == processes.index
            part = {name: tensor[rows].clone() for name, tensor in own.items()} if is_own else {}
            room.add(processes.gather(part)[owner])
    return room.tokens


def _room(like: Tensor, count: int, in_file: bool) -> Tensor:
    """Return a tensor of `count` rows like those of another; the file of one in a file goes when the tensor does."""
    shape = (count, *like.shape[1:])
    if not in_file:
        return torch.empty(shape, dtype=like.dtype)
    return torch.from_numpy(scratch_array(shape, torch.empty(0, dtype=like.dtype).numpy().dtype, kept_bytes=0))
