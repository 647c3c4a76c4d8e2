"""The batch sampler, and captions as token ids."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Caption
from teachclip.data.caption_groups import CaptionGroups
from teachclip.errors import DataError, LaunchError
from teachclip.store.scratch import Growing, blocks, scratch_array


@dataclass(frozen=True)
class BatchSampler:
    """The pairs of every step: a function of seed and step alone, whatever is resumed and on how many processes.

    Every epoch shuffles all `pairs` again and drops the incomplete last batch. `batch_size` counts the pairs of all
    processes together. `views`: augmented views per video, of which a pair takes the next one in every epoch.

    With `groups`, captions of a video stand side by side in a batch, so that it is encoded once for them: see
    `captions_together`. Raises DataError if `batch_size` is below 2, above `pairs` or no multiple of the captions of
    a group.
    """

    pairs: int
    batch_size: int
    seed: int
    views: int = 1
    groups: CaptionGroups | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise DataError(f"batch size is {self.batch_size}; allowed: at least 2, as losses compare pairs")
        if self.batch_size > self.pairs:
            raise DataError(f"batch size is {self.batch_size}, but there are only {self.pairs} training pairs")
        if self.groups is not None and self.batch_size % (size := self.groups.size):
            raise DataError(f"batch size is {self.batch_size}; allowed: a multiple of captions_per_video, {size}")

    @property
    def batches_per_epoch(self) -> int:
        """Number of complete batches in one pass over the pairs."""
        return self.pairs // self.batch_size

    def rows(self, step: int) -> np.ndarray:
        """Return the caption rows of the global batch of `step` (from 0): (batch_size,) int64."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if self.groups is not None:
            return self.groups.epoch(epoch, self.batch_size, self.seed).batches[number]
        return _shuffled(self.pairs, self.seed, epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def captions_together(self, step: int) -> int:
        """Return how many captions of a video stand side by side in the batch of `step`, g.

        Rows g*i to g*i + g - 1 are of one video. g is the size of `groups`, or in batches of the captions that are
        left over a divisor of it.
        """
        if self.groups is None:
            return 1
        epoch, number = divmod(step, self.batches_per_epoch)
        return int(self.groups.epoch(epoch, self.batch_size, self.seed).together[number])

    def local(self, step: int, process_index: int, process_count: int) -> np.ndarray:
        """Return the rows of one process: the part of `rows(step)` that is its `share`."""
        return self.rows(step)[self.share(process_index, process_count)]

    def share(self, process_index: int, process_count: int) -> slice:
        """Return the part of every batch of one process: equal slices, in the order of the processes.

        Raises LaunchError if the batch size, in whole videos, is not divisible by the number of processes.
        """
        local_size, rest = divmod(self.batch_size, process_count)
        if rest or (self.groups is not None and local_size % self.groups.size):
            each = "" if self.groups is None else f" x {self.groups.size} captions per video"
            raise LaunchError(
                f"batch size {self.batch_size} is not divisible by {process_count} processes{each}; "
                "expected a multiple"
            )
        return slice(process_index * local_size, (process_index + 1) * local_size)

    def views_of(self, step: int, rows: np.ndarray) -> np.ndarray:
        """Return the view of the video that each of these pairs uses in `step`: (pairs,) int64, below `views`.

        A pair starts at a view drawn from the seed and has used all of them after `views` epochs. Captions that share
        the encoding of a video share its view: then the first view is drawn for each video.
        """
        if self.views == 1:
            return np.zeros(len(rows), dtype=np.int64)
        items, count = rows, self.pairs
        if self.groups is not None:
            items, count = self.groups.caption_videos[rows], int(self.groups.caption_videos.max()) + 1
        return (_first_views(count, self.seed, self.views)[items] + step // self.batches_per_epoch) % self.views


@functools.lru_cache(maxsize=4)
def _first_views(pairs: int, seed: int, views: int) -> np.ndarray:
    """Return the first view of each pair. The fourth word of the seed makes it independent of the shuffles."""
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([abs(seed), int(seed < 0), 0, 1])))
    first = scratch_array(pairs, np.int64)
    first[:] = state.randint(0, views, pairs)
    return first


@functools.lru_cache(maxsize=4)
def _shuffled(pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of the pairs. numpy keeps the streams of RandomState fixed across versions."""
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([abs(seed), int(seed < 0), epoch])))
    order = scratch_array(pairs, np.int64)
    for rows in blocks(pairs):
        order[rows] = np.arange(rows.start, rows.stop)
    state.shuffle(order)  # which is what `permutation(pairs)` does, in an array of its own
    order.setflags(write=False)
    return order


TOKENIZED_AT_ONCE = 4096
"""Captions that the tokenizer gets at once: its lists take some 6 kB a caption, the array 4 bytes a token."""


@dataclass(frozen=True)
class Tokenized:
    """Captions as token ids.

    `input_ids`: (captions, longest) int32, padded with `pad_id` on the right. `lengths`: (captions,) int64, tokens
    including the special ones. `unknown_count`: captions with a token outside the vocabulary. `pad_to`: tokens of a
    batch; None: as many as in its longest caption.
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

        Captions are truncated to `max_tokens`; the end-of-text token, where CLIP reads the sentence, is kept. See the
        class for `pad_id` (zero as published) and `pad_to`. Raises DataError, naming the caption, if one is empty or
        has a token id of `vocab_size`, the rows of the model's token embedding, or more.
        """
        flat, widths, unknown = Growing(np.int32), [pad_to or 0], 0
        lengths = scratch_array(len(captions), np.int64)
        for rows in blocks(len(captions), TOKENIZED_AT_ONCE):
            texts = [_checked(caption).text for caption in captions[rows]]
            encoded: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
            lengths[rows] = [len(ids) for ids in encoded]
            widths.append(max(map(len, encoded)))
            flat.append(_padded(encoded, widths[-1], pad_id).ravel())
            unknown += _count_unknown(tokenizer, encoded)
        ids, read = flat.array(), 0
        input_ids = scratch_array((len(captions), max(widths)), np.int32)
        for rows, width in zip(blocks(len(captions), TOKENIZED_AT_ONCE), widths[1:], strict=True):
            block = ids[read : read + (rows.stop - rows.start) * width].reshape(-1, width)
            input_ids[rows, :width], input_ids[rows, width:] = block, pad_id
            read += block.size
        if vocab_size is not None:
            _check_ids(captions, input_ids, vocab_size)
        return cls(input_ids, lengths, unknown, pad_id, pad_to)

    def __len__(self) -> int:
        return len(self.lengths)

    def width(self, rows: slice | np.ndarray | Sequence[int]) -> int:
        """Return the number of tokens that a batch of these captions has."""
        return int(self.lengths[rows].max(initial=0)) if self.pad_to is None else self.pad_to

    def batch(self, rows: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return `input_ids` and `attention_mask` of some captions, each (texts, tokens) int64."""
        lengths, width = self.lengths[rows], self.width(rows)
        input_ids = torch.from_numpy(self.input_ids[rows, :width].astype(np.int64))
        mask = np.arange(width)[None, :] < lengths[:, None]
        return input_ids, torch.from_numpy(mask.astype(np.int64))

    def sha256(self) -> str:
        """Return the hash of token ids and attention mask of all captions, as `batch` would return them."""
        digest, every = hashlib.sha256(), self.input_ids[:, : self.width(slice(None))]
        blocks = [slice(start, start + TOKENIZED_AT_ONCE) for start in range(0, len(self), TOKENIZED_AT_ONCE)]
        for rows in blocks:
            digest.update(every[rows].astype(np.int64).tobytes())
        for rows in blocks:
            mask = np.arange(every.shape[1])[None, :] < self.lengths[rows, None]
            digest.update(mask.astype(np.int64).tobytes())
        return digest.hexdigest()


def _checked(caption: Caption) -> Caption:
    if not caption.text.strip():
        raise DataError(f"caption {caption.id!r} of video {caption.video_id!r} is empty")
    return caption


def _padded(encoded: Sequence[Sequence[int]], width: int, pad_id: int) -> np.ndarray:
    """Return token ids as (texts, width) int32, padded on the right."""
    padded = np.full((len(encoded), width), pad_id, dtype=np.int32)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids)] = ids
    return padded


def _check_ids(captions: Sequence[Caption], input_ids: np.ndarray, vocab_size: int) -> None:
    for rows in blocks(len(input_ids)):
        invalid = np.flatnonzero((input_ids[rows] >= vocab_size).any(axis=1))
        if invalid.size:
            row = rows.start + int(invalid[0])
            caption, largest = captions[row], input_ids[row].max()
            raise DataError(
                f"caption {caption.id!r} ({caption.text!r}) has token id {largest}, but the vocabulary of the model "
                f"is 0 to {vocab_size - 1}; does the tokenizer belong to the model?"
            )


def _count_unknown(tokenizer: Any, encoded: Sequence[Sequence[int]]) -> int:
    """Count the texts with the unknown token, which in CLIP's tokenizer is also the last token of every text."""
    unknown, end = getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "eos_token_id", None)
    if unknown is None:
        return 0
    return sum(unknown in (ids[:-1] if ids and ids[-1] == end else ids) for ids in encoded)
