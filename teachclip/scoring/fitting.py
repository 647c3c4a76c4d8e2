"""Batches by memory: as many videos or texts in a forward pass as fit."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import psutil
import torch

from teachclip.scorer import Tokens, concat_tokens
from teachclip.scoring.chunks import OF_ALL
from teachclip.scoring.inputs import Batch, PixelInputs

log = logging.getLogger(__name__)

BatchSize = int | Literal["auto"]

VIDEOS, VIDEOS_ON_GPU = 32, 128
"""The most videos of a batch that is chosen here: a CPU gains nothing from more, and a shard has no more."""

PER_PIXEL = 32
"""Bytes that encoding takes per number of the decoded frames: eight times it as float32, for what a layer holds."""

SHARE = 4
"""The part of the memory that is available now which a batch may take is one of so many."""

READ_BYTES = 2**28
"""Bytes of decoded frames in a batch, of which a few wait in memory."""


def batch_size_for(batch_size: BatchSize, inputs: PixelInputs, device: torch.device | str) -> int:
    """Return how many videos are read at a time: `batch_size`, or for "auto" what the memory of this machine bears.

    On a GPU that is the most there may be; `FittingEncoder` finds how many of them fit into a forward pass.
    """
    if batch_size != "auto":
        return batch_size
    numbers = math.prod(inputs.frames.shape)  # which are bytes, before they are float32
    if torch.device(device).type != "cpu":
        return int(np.clip(READ_BYTES // numbers, 1, VIDEOS_ON_GPU))
    available = psutil.virtual_memory().available // SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(np.clip(available // (PER_PIXEL * numbers), 1, VIDEOS))


class FittingEncoder:
    """Encodes batches, each in as many parts as memory demands; none is lost.

    A part that does not fit is halved, and later ones are no larger. `find_executable_batch_size` of Accelerate
    would begin the whole batch anew, and collects garbage and empties the device's cache before every batch.
    """

    def __init__(self, encode: Callable[[Batch], Tokens], what: str) -> None:
        self._encode, self._what = encode, what
        self.size: int | None = None  # of a part; None: no part was too large yet

    def __call__(self, batch: Batch) -> Tokens:
        """Return the tokens of a batch. Raises the error of `encode` if not even one item fits."""
        count = next(len(tensor) for name, tensor in batch.items() if name not in OF_ALL)
        parts: list[Tokens] = []
        start = 0
        while start < count or not parts:
            size = min(self.size or count, count - start)
            rows = slice(start, start + size)
            part = {name: tensor if name in OF_ALL else tensor[rows] for name, tensor in batch.items()}
            tokens = self._tried(part if size < count else batch, size)
            if tokens is not None:
                parts.append(tokens)
                start += size
        return parts[0] if len(parts) == 1 else concat_tokens(parts)

    def _tried(self, part: Batch, size: int) -> Tokens | None:
        """Return the tokens of a part; None, and halve the size of parts, if they do not fit into memory."""
        try:
            return self._encode(part)
        except RuntimeError as error:
            if size < 2 or not _is_out_of_memory(error):
                raise
        self.size = size // 2
        log.info("%d %s at a time do not fit into memory: %d from here on", size, self._what, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # here, where the error, and with it the frames that hold tensors, is gone
        return None


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What errors say that are no `torch.OutOfMemoryError`: those of drivers, cuBLAS and cuDNN, MPS, and of CPUs."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT_OF_MEMORY)
