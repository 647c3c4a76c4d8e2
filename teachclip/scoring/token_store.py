"""Compute once, keep on disk: tokens of texts and videos.

It is resumable, may run in several processes at once, and refuses a store made under other provenance.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from teachclip.background import done_behind
from teachclip.errors import StoreError
from teachclip.processes import Processes
from teachclip.scorer import Scorer, Tokens, encoding_in, in_float32
from teachclip.scoring.fitting import BatchSize, FittingEncoder, batch_size_for
from teachclip.scoring.inputs import (
    Batch,
    PixelInputs,
    encode_text_batch,
    encode_video_batch,
    prefetch,
    read_ahead,
    to_device,
)
from teachclip.scoring.token_room import TokenRoom
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.files import occupied_folder
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.manifest import MANIFEST
from teachclip.store.row_plan import KeyPlaces
from teachclip.store.scratch import blocks
from teachclip.store.stored_items import StoredItems

Encode = Callable[[Any], Tokens]
Read = Callable[[np.ndarray], Any]


def weights_hash(module: nn.Module, *, rounded: bool = False) -> str:
    """Return the sha256 of all parameters and buffers, with their names, types and shapes.

    `rounded`: of the weights in half precision, so that a copy that was stored in it has the same hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if rounded and tensor.is_floating_point():
            tensor = tensor.half()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_hash(module: nn.Module) -> str:
    """Return the sha256 of what the weights do not tell: the parts' types and their plain settings (heads, masks).

    Where a model was loaded from is none of them: a folder that is moved is the same model.
    """
    parts = []
    for name, part in module.named_modules():
        values = {
            key: value
            for key, value in sorted(vars(part).items())
            if key not in ("training", "name_or_path")
            and not key.startswith("_")
            and isinstance(value, (bool, int, float, str))
        }
        parts.append([name, type(part).__name__, values])
    return fingerprint_of({"parts": parts})


TEXTS_PER_SHARD, VIDEOS_PER_SHARD = 4096, 128
"""The most rows of a shard, and so the most that a crash loses."""

SHARD_KEPT = 2**24
"""Bytes up to which a shard that is being filled stays in memory; a larger one waits in a temporary file."""


def store_tokens(
    path: Path,
    *,
    keys: np.ndarray,
    encode: Encode,
    read: Read = lambda items: items,
    provenance: Mapping[str, Any],
    batch_size: int | Callable[[], int],
    rows_per_shard: int,
    processes: Processes,
    label: str,
    what: str = "",
    pin: bool = False,
    ahead: Callable[[Iterable[np.ndarray]], AbstractContextManager[None]] | None = None,
) -> StoredItems:
    """Encode the items with these `keys`, uint8 (items, 16), into a store with one array per token name.

    What the store at `path` holds already is not encoded again; `batch_size` is called if something is. `encode` gets
    what `read` returns for numbers of items; without it, these numbers. While a batch is encoded, a thread reads the
    next ones (`pin`: see `read_ahead`) and another writes the last shard. `ahead`, as `prefetch`, gets the items that
    will be read. `what` are the items, such as videos, for a log line when some are new. Returns all items. Raises
    StoreError on other provenance.
    """
    with to_make(path, lambda: complete_items(path, keys, provenance), processes) as done:
        if done is not None:
            return done
        size = batch_size() if callable(batch_size) else batch_size
        first, tokens = np.arange(0), None
        if (path / MANIFEST).exists():
            arrays = ArrayStore.open(path, complete=False).arrays
        else:  # the main process goes on from what tells the arrays; the others have other shards
            first = np.arange(min(size, rows_per_shard, len(keys)) if processes.is_main else 1)
            tokens = encode(read(first))
            sample = tokens.items()
            arrays = {name: ArraySpec(str(t.numpy(force=True).dtype), tuple(t.shape[1:])) for name, t in sample}
        store = processes.main_first(
            lambda: ArrayStore.open_or_create(
                path, provenance=provenance, arrays=arrays, keys=keys, rows_per_shard=rows_per_shard, what=what
            )
        )
        missing = store.missing_shards(processes.index, processes.count)
        items = ItemsOfShards(store, keys)
        next_items = next(items.batches(missing, size), np.arange(0))
        waiting = [tokens] if tokens is not None and np.array_equal(first, next_items) else []
        encoded = len(waiting)
        coming = functools.partial(items.batches, missing, size, encoded)
        with (
            ahead(coming()) if ahead else nullcontext(),
            read_ahead(read, coming(), pin=pin) as inputs,
            done_behind() as behind,
        ):
            for shard in shard_bar(missing, label, processes):
                room = TokenRoom(len(store.shard_rows(shard)), SHARD_KEPT)
                while not room.is_full:
                    room.add(waiting.pop() if waiting else encode(next(inputs)))
                behind(_write, store, shard, room)
        processes.wait()  # and then open it before another run may plan rows of its own
        return StoredItems.of(ArrayStore.open(path, provenance=provenance), keys)


class ItemsOfShards:
    """Which of the items with these `keys` the rows of a shard are of: (rows of the shard,) int64.

    Raises StoreError for a shard with a row of none of them.
    """

    def __init__(self, store: ArrayStore, keys: np.ndarray) -> None:
        self._store, self._places = store, KeyPlaces(keys)

    def __getitem__(self, shard: int) -> np.ndarray:
        items = self._places.find(self._store.keys_of(self._store.shard_rows(shard)))
        if (items < 0).any():
            raise StoreError(f"{self._store.path}: shard {shard} has rows of none of the items; delete the folder")
        return items

    def batches(self, shards: Iterable[int], size: int, skipped: int = 0) -> Iterator[np.ndarray]:
        """Return the items of some shards in batches, each of which is of one shard, without the first `skipped`."""
        own = (self[shard] for shard in shards)
        return itertools.islice((items[rows] for items in own for rows in blocks(len(items), size)), skipped, None)


def _write(store: ArrayStore, shard: int, room: TokenRoom) -> None:
    store.write_shard(shard, {name: room.tokens[name].numpy() for name in store.arrays})


@torch.no_grad()
def store_scorer_tokens(
    folder: Path,
    scorer: Scorer,
    inputs: PixelInputs,
    *,
    provenance: Mapping[str, Any],
    batch_size: BatchSize,
    device: torch.device | str,
    processes: Processes,
    label: str,
    precision: str = "float32",
) -> tuple[StoredItems, StoredItems]:
    """Store a scorer's tokens of all texts and videos of `inputs` in `folder/texts` and `folder/videos`.

    `provenance`: what they depend on besides the texts and videos. `batch_size`: videos of a forward pass, and an
    eighth of its texts; "auto": see `fitting`. `precision`: of the encoders, see `encoding_in`.
    """
    pin = torch.device(device).type == "cuda"
    size = functools.cache(lambda: batch_size_for(batch_size, inputs, device))

    def encode_texts(batch: Batch) -> Tokens:
        with encoding_in(precision, device):
            return in_float32(encode_text_batch(scorer, to_device(batch, device)))

    def encode_videos(batch: Batch) -> Tokens:
        with encoding_in(precision, device):
            return in_float32(encode_video_batch(scorer, to_device(batch, device)))

    is_auto = batch_size == "auto"
    texts = store_tokens(
        folder / "texts",
        keys=inputs.text_keys(),
        encode=FittingEncoder(encode_texts, "texts") if is_auto else encode_texts,
        read=inputs.texts,
        provenance={**provenance, "of": "texts"},
        batch_size=lambda: 8 * size(),
        rows_per_shard=TEXTS_PER_SHARD,
        processes=processes,
        label=f"{label}: texts",
        what="captions",
        pin=pin,
    )
    videos = store_tokens(
        folder / "videos",
        keys=inputs.video_keys(),
        encode=FittingEncoder(encode_videos, "videos") if is_auto else encode_videos,
        read=inputs.videos,
        provenance={**provenance, "of": "videos"},
        batch_size=size,
        rows_per_shard=VIDEOS_PER_SHARD,
        processes=processes,
        label=f"{label}: videos",
        what="videos",
        pin=pin,
        ahead=functools.partial(prefetch, inputs),
    )
    return texts, videos


def read_tokens(store: StoredItems, rows: slice | np.ndarray, device: torch.device | str) -> Tokens:
    """Read the tokens of some items from a token store."""
    return {name: torch.from_numpy(np.array(store.read(name, rows))).to(device) for name in store.arrays}


def complete_items(path: Path, keys: np.ndarray, provenance: Mapping[str, Any]) -> StoredItems | None:
    """Return the items with these keys from the store at `path`; None if some of them are still to be computed.

    Raises StoreError if the store was made under other provenance.
    """
    if not (path / MANIFEST).exists():
        return None
    store = ArrayStore.open(path, provenance=provenance, complete=False)
    return StoredItems.of(store, keys) if store.complete and store.holds(keys).all() else None


@contextmanager
def to_make(path: Path, look: Callable[[], StoredItems | None], processes: Processes) -> Iterator[StoredItems | None]:
    """Give what `look` finds, or else None and hold the folder `path`: other runs wait and find it made.

    All processes enter and leave together, and get the same answer: each looks before any goes on to write.
    """

    def found_by_all() -> StoredItems | None:
        found = look()
        return found if all(processes.gather(found is not None)) else None

    done = found_by_all()
    if done is not None:
        yield done
        return
    with ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(occupied_folder(path, wait=True))
        processes.wait()
        yield found_by_all()
        processes.wait()


def shard_bar(shards: list[int], label: str, processes: Processes) -> Any:
    """Return the shards, with a progress bar on the main process as they are taken."""
    return tqdm(shards, desc=label, unit="shard", disable=not processes.is_main)
