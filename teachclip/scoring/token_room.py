"""Room for what encoders give of all texts or videos, in memory or, if it is much, in a file; filled by batches."""

from __future__ import annotations

import math
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from teachclip.errors import StoreError
from teachclip.processes import Processes
from teachclip.scorer import Tokens

SENT_AT_ONCE = 1024
"""Items whose tokens a process sends to the others at a time."""


class TokenRoom:
    """Tokens of `count` items, which come in order.

    Those that take more than `kept_bytes` lie in temporary files, whose pages the system may drop. They are where
    `TMPDIR` says, which should not be a folder in memory (tmpfs). `add` raises StoreError where there is no space.
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


def gathered(own: Tokens, count: int, processes: Processes, kept_bytes: int) -> Tokens:
    """Return the tokens of all `count` items in every process, each of which has those of its share.

    They go from process to process in parts, so that a file of tokens is in no memory as a whole.
    """
    room = TokenRoom(count, kept_bytes)
    shares = [len(share) for share in np.array_split(np.arange(count), processes.count)]  # as of Processes.share
    for owner, size in enumerate(shares):
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
    dtype = like[:0].numpy().dtype
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(prefix="teachclip-tokens-") as file:
            _reserve(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, dtype=dtype, mode="w+", shape=shape))
    except OSError as error:
        raise StoreError(
            f"{tempfile.gettempdir()}: no temporary file of {size / 1e9:.1f} GB for tokens: "
            f"{error.strerror or error}; set TMPDIR to a folder on a disk with that much space"
        ) from error


def _reserve(file: int, size: int) -> None:
    """Take the space of a file at once: a page that is mapped and finds the disk full would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, max(size, 1))
        return
    zeros = bytes(1 << 20)  # macOS and Windows
    for start in range(0, size, len(zeros)):
        os.write(file, zeros[: size - start])
