"""Which pairs form which batch, and captions as token ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Caption
from teachclip.errors import DataError, LaunchError


@dataclass(frozen=True)
class BatchSampler:
    """The pairs of every step.

    They are a function of the seed and the step alone, so that neither resuming nor more processes change them.

    Every epoch shuffles all `pairs` anew; what is left over after the last whole batch is dropped. `batch_size`
    counts the pairs of all processes together. Of `views` versions of its video a pair takes the next one in every
    epoch. Raises DataError if `batch_size` is below 2 or above `pairs`.
    """

    pairs: int
    batch_size: int
    seed: int
    views: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise DataError(f"batch size is {self.batch_size}; allowed: at least 2, for the losses compare pairs")
        if self.batch_size > self.pairs:
            raise DataError(f"batch size is {self.batch_size}, but there are only {self.pairs} training pairs")

    @property
    def batches_per_epoch(self) -> int:
        """Number of whole batches in one pass over the pairs."""
        return self.pairs // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """Return the caption rows of the global batch of `step` (from 0): (batch_size,) int64."""
        epoch, number = divmod(step, self.batches_per_epoch)
        return _shuffled(self.pairs, self.seed, epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def local(self, step: int, process_index: int, process_count: int) -> np.ndarray:
        """Return the part of `rows(step)` of one process: slices in the order of the processes, of equal length.

        Raises LaunchError if the batch does not divide by the number of processes.
        """
        share, rest = divmod(self.batch_size, process_count)
        if rest:
            raise LaunchError(
                f"a batch size of {self.batch_size} does not divide by {process_count} processes; allowed: a multiple"
            )
        return self.rows(step)[process_index * share : (process_index + 1) * share]

    def views_of(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Return the view of its video that each of these pairs takes in `step`: (pairs,) int64, below `views`.

        A pair starts at a view of its own, drawn from the seed, and has taken all of them after `views` epochs.
        """
        if self.views == 1:
            return np.zeros(len(rows), dtype=np.int64)
        return (_first_views(self.pairs, self.seed, self.views)[rows] + step // self.batches_per_epoch) % self.views


@functools.lru_cache(maxsize=4)
def _first_views(pairs: int, seed: int, views: int) -> np.ndarray:
    """Return the view that each pair starts at. The fourth word of the seed keeps it apart from the shuffles."""
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([abs(seed), int(seed < 0), 0, 1])))
    return state.randint(0, views, pairs).astype(np.int64)


@functools.lru_cache(maxsize=4)
def _shuffled(pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of the pairs. numpy keeps the streams of RandomState the same in all versions."""
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([abs(seed), int(seed < 0), epoch])))
    order = state.permutation(pairs).astype(np.int64)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Tokenized:
    """Captions as token ids.

    `input_ids` (captions, longest) int32, `pad_id` after a caption's end; `lengths` (captions,) counts its tokens,
    begin and end among them. `unknown_count` captions hold a token that the vocabulary does not know. Batches have
    `pad_to` tokens, or as many as their longest caption.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    unknown_count: int = 0
    pad_id: int = 0
    pad_to: int | None = None

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[Caption],
        tokenizer: Callable[..., Any],
        *,
        max_tokens: int,
        vocab_size: int | None = None,
        pad_id: int = 0,
        pad_to: int | None = None,
    ) -> Tokenized:
        """Tokenise all captions with a transformers tokenizer.

        Longer ones are cut to `max_tokens`; the end-of-text token, where CLIP reads the sentence, stays. Padding is
        `pad_id`, zero as published, up to `pad_to` tokens or the longest caption of a batch. Raises DataError, naming
        the caption, if one is empty, or if a token id is not below `vocab_size`, the rows of the model's token table.
        """
        for caption in captions:
            if not caption.text.strip():
                raise DataError(f"caption {caption.id!r} of video {caption.video_id!r} is empty")
        texts = [caption.text for caption in captions]
        encoded: list[list[int]] = (
            tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"] if texts else []
        )
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        input_ids = np.full((len(encoded), int(lengths.max(initial=pad_to or 0))), pad_id, dtype=np.int32)
        for row, ids in enumerate(encoded):
            input_ids[row, : len(ids)] = ids
        if vocab_size is not None:
            _check_ids(captions, input_ids, vocab_size)
        return cls(input_ids, lengths, _count_unknown(tokenizer, encoded), pad_id, pad_to)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return `input_ids` and `attention_mask`, (texts, tokens) int64: `pad_to` tokens, or as the longest has."""
        lengths = self.lengths[rows]
        width = int(lengths.max(initial=0)) if self.pad_to is None else self.pad_to
        input_ids = torch.from_numpy(self.input_ids[rows, :width].astype(np.int64))
        mask = np.arange(width)[None, :] < lengths[:, None]
        return input_ids, torch.from_numpy(mask.astype(np.int64))


def _check_ids(captions: Sequence[Caption], input_ids: np.ndarray, vocab_size: int) -> None:
    wrong = np.flatnonzero((input_ids >= vocab_size).any(axis=1))
    if wrong.size:
        caption, largest = captions[wrong[0]], input_ids[wrong[0]].max()
        raise DataError(
            f"caption {caption.id!r} ({caption.text!r}) has token id {largest}, but the model knows 0 to "
            f"{vocab_size - 1}; is this tokenizer the model's own?"
        )


def _count_unknown(tokenizer: Any, encoded: Sequence[Sequence[int]]) -> int:
    """Count the texts that hold the unknown token, which in CLIP's tokenizer is also the last token of every text."""
    unknown, end = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "eos_token_id", None)
    if unknown is None:
        return 0
    return sum(unknown in (ids[:-1] if ids and ids[-1] == end else ids) for ids in encoded)
