"""What a scorer is fed with: decoded frames and token ids, or the stored features of frozen encoders.

Both kinds offer the same two methods, so that training, precomputing and evaluation are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from teachclip.background import made_ahead
from teachclip.data.annotations.records import Split
from teachclip.data.batches import Tokenized
from teachclip.data.frames.live import LiveFrames
from teachclip.data.frames.views import Frames
from teachclip.data.video.transform import normalize
from teachclip.models.preprocessing import Preprocessing
from teachclip.processes import Processes
from teachclip.scorer import (
    FeatureScorer,
    FrameScorer,
    Scorer,
    Tokens,
    encoding_in,
    in_float32,
)
from teachclip.scoring.token_room import TokenRoom, gathered
from teachclip.store.row_plan import row_keys
from teachclip.store.scratch import blocks
from teachclip.store.stored_items import StoredItems

Batch = dict[str, Tensor]

SWAPPED = "swapped."
"""What the names of captions with their clauses swapped begin with in a batch."""

ALIGNMENT = 64
"""Bytes, as in torch's allocator for CPUs."""


class Inputs(Protocol):
    """The texts and videos of one split, by row."""

    @property
    def text_count(self) -> int:
        """Number of captions."""

    @property
    def video_count(self) -> int:
        """Number of videos."""

    def texts(self, rows: np.ndarray) -> Batch:
        """Return the model inputs of some captions."""

    def videos(self, rows: np.ndarray) -> Batch:
        """Return the model inputs of some videos."""


def tokenize(split: Split, how: Preprocessing, *, vocab_size: int | None = None) -> Tokenized:
    """Return the captions of a split as token ids."""
    return Tokenized.from_captions(
        split.captions,
        how.tokenizer,
        max_tokens=how.max_tokens,
        vocab_size=vocab_size,
        pad_id=how.pad_id,
        pad_to=how.pad_to,
    )


@dataclass(frozen=True)
class PixelInputs:
    """Token ids and decoded frames, for encoders that run.

    `frame_rows` are the rows of the split's videos among the frames; with several views first those of view 0, then
    those of view 1, and each counts as a video here. `mean` and `std` (3,) are CLIP's.
    """

    tokenized: Tokenized
    frames: Frames
    frame_rows: np.ndarray
    mean: Tensor
    std: Tensor

    @property
    def text_count(self) -> int:
        """Number of captions."""
        return len(self.tokenized)

    @property
    def video_count(self) -> int:
        """Number of videos, each of their views counted."""
        return len(self.frame_rows)

    def text_keys(self) -> np.ndarray:
        """Return what tells each caption's tokens from any other: uint8 (captions, 16)."""
        tokens = zip(self.tokenized.input_ids, self.tokenized.lengths, strict=True)
        return row_keys(ids[:length].astype("<i4").tobytes() for ids, length in tokens)

    def video_keys(self) -> np.ndarray:
        """Return what tells each video's frames from any other: uint8 (videos, 16)."""
        return self.frames.keys(self.frame_rows)

    def texts(self, rows: np.ndarray) -> Batch:
        """Return `input_ids` and `attention_mask`, both (texts, tokens), cut to the longest of these texts."""
        input_ids, attention_mask = self.tokenized.batch(rows)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def videos(self, rows: np.ndarray) -> Batch:
        """Return `frames` uint8 (videos, frames, 3, size, size), `frame_mask` and the normalisation."""
        frames, mask = self.frames.read(self.frame_rows[rows])
        return {"frames": frames, "frame_mask": mask, "mean": self.mean, "std": self.std}


KEPT_BYTES = 2**31
"""Stored features that take more are read batch by batch, and tokens are put into a file: memory does not grow."""


@dataclass
class _StoredInputs:
    """Numbers of texts and of videos that are stored."""

    text_store: StoredItems
    video_store: StoredItems

    @property
    def text_count(self) -> int:
        """Number of captions."""
        return self.text_store.rows

    @property
    def video_count(self) -> int:
        """Number of videos, each of their views counted."""
        return self.video_store.rows


@dataclass
class FeatureInputs(_StoredInputs):
    """Stored raw features of frozen CLIP encoders; of texts, and of videos, kept in memory up to `kept_bytes`."""

    kept_bytes: int = KEPT_BYTES
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for store in (self.text_store, self.video_store):
            if store.nbytes <= self.kept_bytes:  # read here, so that processes that load batches share the memory
                self._kept |= {name: torch.from_numpy(store.read(name, slice(None))) for name in store.arrays}

    def _read(self, store: StoredItems, name: str, rows: np.ndarray) -> Tensor:
        return self._kept[name][rows] if name in self._kept else torch.from_numpy(store.read(name, rows))

    def texts(self, rows: np.ndarray) -> Batch:
        """Return `text_features` (texts, dim)."""
        return {"text_features": self._read(self.text_store, "features", rows)}

    def videos(self, rows: np.ndarray) -> Batch:
        """Return `frame_features` (videos, frames, dim) and `frame_mask` (videos, frames)."""
        return {name: self._read(self.video_store, name, rows) for name in ("frame_features", "frame_mask")}


TEXT_TOKENS, VIDEO_TOKENS = "text_tokens.", "video_tokens."
"""What the names of a scorer's stored tokens begin with in a batch."""


@dataclass
class TokenInputs(_StoredInputs):
    """A scorer's stored tokens of texts and videos, which it only has to score."""

    def texts(self, rows: np.ndarray) -> Batch:
        """Return `text_tokens.` and each token's name, (texts, ...)."""
        return _stored_tokens(self.text_store, rows, TEXT_TOKENS)

    def videos(self, rows: np.ndarray) -> Batch:
        """Return `video_tokens.` and each token's name, (videos, ...)."""
        return _stored_tokens(self.video_store, rows, VIDEO_TOKENS)


def _stored_tokens(store: StoredItems, rows: np.ndarray, prefix: str) -> Batch:
    return {prefix + name: torch.from_numpy(store.read(name, rows)) for name in store.arrays}


def _tokens_in(batch: Batch, prefix: str) -> Tokens:
    return {name.removeprefix(prefix): tensor for name, tensor in batch.items() if name.startswith(prefix)}


def decodes_when_read(inputs: Inputs) -> bool:
    """Whether reading videos decodes them, in processes of its own."""
    return isinstance(inputs, PixelInputs) and isinstance(inputs.frames, LiveFrames)


def prefetch(inputs: Inputs, batches: Iterable[np.ndarray]) -> AbstractContextManager[None]:
    """Return a context in which the videos of these rows are going to be read, batch by batch, in this order.

    Where frames are decoded when they are read, that is done in advance by other processes.
    """
    if not isinstance(inputs, PixelInputs):
        return nullcontext()
    rows = (inputs.frame_rows[batch] for batch in batches)
    return inputs.frames.prefetch(rows)


def pixel_values(batch: Batch) -> Tensor:
    """Normalise decoded frames; padded frames become zeros after it, as in the official code (CLIP4Clip)."""
    pixels = normalize(batch["frames"], batch["mean"], batch["std"])
    return pixels.mul_(batch["frame_mask"][:, :, None, None, None])


def model_inputs(batch: Batch) -> Batch:
    """Return the keyword arguments of the student's forward; stored features go before pixels and token ids."""
    features = {"frame_mask": batch["frame_mask"]}
    if "text_features" in batch:
        features["text_features"] = batch["text_features"]
    else:
        features |= {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "frame_features" in batch:
        features["frame_features"] = batch["frame_features"]
    else:
        features["pixel_values"] = pixel_values(batch)
    return features


def encode_text_batch(scorer: Scorer, batch: Batch) -> Tokens:
    """Encode one batch of texts, from features where the batch holds them; tokens that it holds are the result."""
    if tokens := _tokens_in(batch, TEXT_TOKENS):
        return tokens
    if "text_features" in batch:
        return _feature_scorer(scorer).texts_from_features(batch["text_features"])
    return scorer.encode_texts(batch["input_ids"], batch["attention_mask"])


def encode_video_batch(scorer: Scorer, batch: Batch) -> Tokens:
    """Encode one batch of videos, from features where the batch holds them; tokens that it holds are the result."""
    if tokens := _tokens_in(batch, VIDEO_TOKENS):
        return tokens
    if "frame_features" in batch:
        return _feature_scorer(scorer).videos_from_features(batch["frame_features"], batch["frame_mask"])
    if isinstance(scorer, FrameScorer):
        return scorer.encode_stored_frames(batch["frames"], batch["frame_mask"])
    return scorer.encode_videos(pixel_values(batch), batch["frame_mask"])


def _feature_scorer(scorer: Scorer) -> FeatureScorer:
    if not isinstance(scorer, FeatureScorer):
        raise TypeError(
            f"{type(scorer).__name__} cannot score stored encoder features; it needs pixels and token ids"
        )
    return scorer


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to a device without waiting for the copy.

    Numbers that stay on a CPU begin at a multiple of `ALIGNMENT` bytes, as torch's own do. Where numpy's begin is
    chance, and from other places matrix products of MKL differ in the last bit: a run would not repeat exactly.
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: tensor.clone() if _begins_anywhere(tensor) else tensor for name, tensor in moved.items()}


def _begins_anywhere(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT != 0


READ_AHEAD = 2
"""Batches that wait in memory while the one before them is encoded."""


def read_ahead(
    read: Callable[[np.ndarray], Batch], batches: Iterable[np.ndarray], *, pin: bool = False
) -> AbstractContextManager[Iterator[Batch]]:
    """Return a context that gives what `read` returns for each of `batches`, in order.

    A thread reads the next ones while one is encoded. `pin`: for a GPU, it puts them where copying does not wait.
    """

    def made() -> Iterator[Batch]:
        for rows in batches:
            batch = read(rows)
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    return closing(made_ahead(made(), READ_AHEAD))


@torch.no_grad()
def encode_split(
    scorer: Scorer,
    inputs: Inputs,
    *,
    batch_size: int,
    device: torch.device | str,
    processes: Processes | None = None,
    progress: bool = False,
    precision: str = "float32",
    kept_bytes: int = KEPT_BYTES,
) -> tuple[Tokens, Tokens]:
    """Encode all texts and all videos of a split once. Every process returns all tokens, on the CPU.

    `batch_size` counts videos; texts, which are far cheaper, go eight times as many at a time. `precision`: of the
    encoders, see `encoding_in`. Tokens of texts or of videos that take more than `kept_bytes` lie in a file,
    in one of each process; what they send each other is small parts.
    """
    processes = processes or Processes()

    def batches(count: int, size: int) -> Iterator[np.ndarray]:
        own = processes.share(count)
        for rows in blocks(len(own), size):
            yield np.arange(own.start + rows.start, own.start + rows.stop)

    def run(
        count: int,
        size: int,
        label: str,
        read: Callable[[np.ndarray], Batch],
        encode: Callable[[Scorer, Batch], Tokens],
    ) -> Tokens:
        own = len(processes.share(count))
        total, room = -(-own // size), TokenRoom(own, kept_bytes)
        hidden = not (progress and processes.is_main)
        with read_ahead(read, batches(count, size), pin=torch.device(device).type == "cuda") as coming:
            for batch in tqdm(coming, total=total, desc=label, unit="batch", disable=hidden, leave=False):
                with encoding_in(precision, device):
                    tokens = encode(scorer, to_device(batch, device))
                room.add({name: tensor.cpu() for name, tensor in in_float32(tokens).items()})
        if processes.count == 1:
            return room.tokens
        return gathered(room.tokens, count, processes, kept_bytes)

    texts = run(inputs.text_count, 8 * batch_size, "encode texts", inputs.texts, encode_text_batch)
    with prefetch(inputs, batches(inputs.video_count, batch_size)):
        videos = run(inputs.video_count, batch_size, "encode videos", inputs.videos, encode_video_batch)
    return texts, videos


@dataclass(frozen=True)
class JoinedInputs:
    """Several inputs as one: row numbers go on from one to the next. Texts and videos may be of different ones."""

    text_parts: Sequence[Inputs]
    video_parts: Sequence[Inputs]

    @property
    def text_count(self) -> int:
        """Number of captions of all parts."""
        return sum(part.text_count for part in self.text_parts)

    @property
    def video_count(self) -> int:
        """Number of videos of all parts."""
        return sum(part.video_count for part in self.video_parts)

    def texts(self, rows: np.ndarray) -> Batch:
        """Return the model inputs of some captions, in the order of `rows`, padded to the longest of them."""
        counts = [part.text_count for part in self.text_parts]
        return _join(rows, counts, [part.texts for part in self.text_parts], _pad_ids(self.text_parts))

    def videos(self, rows: np.ndarray) -> Batch:
        """Return the model inputs of some videos, in the order of `rows`."""
        counts = [part.video_count for part in self.video_parts]
        return _join(rows, counts, [part.videos for part in self.video_parts], {})


def _pad_ids(parts: Sequence[Inputs]) -> dict[str, int]:
    """Return what shorter texts are filled up with, by the name of the tensor."""
    return {"input_ids": next((part.tokenized.pad_id for part in parts if isinstance(part, PixelInputs)), 0)}


def _join(
    rows: np.ndarray, counts: Sequence[int], reads: Sequence[Callable[[np.ndarray], Batch]], pads: dict[str, int]
) -> Batch:
    """Read rows from the part that each belongs to and put them back into order."""
    ends = np.cumsum(counts)
    owner = np.searchsorted(ends, rows, side="right")
    starts, used = ends - counts, sorted(set(owner.tolist()))
    batches = [reads[k](rows[owner == k] - starts[k]) for k in used]
    order = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(owner == k) for k in used])))
    joined = {}
    for name, first in batches[0].items():
        if first.ndim < 2 and name in ("mean", "std"):  # of all pictures alike
            joined[name] = first
            continue
        tensors = [batch[name] for batch in batches]
        if first.ndim == 2 and name in ("input_ids", "attention_mask"):
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = [pad(tensor, (0, longest - tensor.shape[1]), value=pads.get(name, 0)) for tensor in tensors]
        joined[name] = torch.cat(tensors)[order]
    return joined
