"""Relevance of some pairs, kept sparsely and read as that of all, of a teacher that is too slow to score all pairs.

A store has a row for each caption: `columns` (k,), which videos were scored, and `scores` (k,), their logits; and if
the teacher gives it, `frame_text` (frames,) of the caption's own video. All captions have the same number of videos.

What is not scored: a video that is not on a caption's list counts as the lowest score of the list, less a margin. The
list holds the best videos that another scorer found, and the caption's own: what was not even found is taken to be no
closer than the last that was. No order among those videos is made up, they tie. So a matrix is read that has a number
everywhere, and each loss, target and weight is computed from it as from any other; with lists of all videos it is the
dense matrix, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachclip.processes import Processes
from teachclip.scorer import PairScorer, Tokens, select_tokens
from teachclip.scoring.inputs import Inputs, encode_text_batch, encode_video_batch, prefetch, to_device
from teachclip.scoring.relevance import check_frame_relevance
from teachclip.scoring.token_store import store_tokens
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.manifest import MANIFEST
from teachclip.store.row_plan import as_bytes
from teachclip.store.stored_items import StoredItems

CAPTIONS_PER_SHARD = 128
"""The most captions of a shard, and so of what a crash loses: their pairs may take minutes."""

Lists = Callable[[np.ndarray], np.ndarray]
"""Returns which videos are scored of some captions: (captions, k) columns, each caption's own among them."""


@dataclass(frozen=True)
class SparseRelevance:
    """Stored relevance of some pairs, read as that of all; see the module for what is not scored.

    `places` (videos,): the number of each video among those that the store names. `margin`: see the module.
    """

    store: StoredItems
    places: np.ndarray
    margin: float = 0.0

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self.store.path

    @property
    def rows(self) -> int:
        """How many captions there are."""
        return self.store.rows

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """The type and shape of one caption's row as it is read, by the name of the array."""
        arrays = {"video_text": ArraySpec("float32", (len(self.places),))}
        if "frame_text" in self.store.arrays:
            arrays["frame_text"] = self.store.arrays["frame_text"]
        return arrays

    def read(
        self, name: str, items: slice | Sequence[int] | np.ndarray, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the rows of some captions: `video_text` (captions, videos) or `frame_text` (captions, frames).

        `columns`: of `video_text` these videos alone, (captions, columns).
        """
        if name != "video_text":
            return self.store.read(name, items, columns)
        scores = self.store.read("scores", items).astype(np.float32)
        floor = scores.min(axis=1, keepdims=True) - np.float32(self.margin)
        every = np.repeat(floor, int(self.places.max()) + 1, axis=1)
        np.put_along_axis(every, self.store.read("columns", items).astype(np.int64), scores, axis=1)
        chosen = self.places if columns is None else self.places[columns]
        return np.ascontiguousarray(every[:, chosen])  # a loss adds up in the order of memory, as of a dense store

    def scored(self, items: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return which pairs of some captions are scored: bool (captions, videos)."""
        columns = self.store.read("columns", items).astype(np.int64)
        every = np.zeros((len(columns), int(self.places.max()) + 1), dtype=bool)
        np.put_along_axis(every, columns, True, axis=1)
        return every[:, self.places]

    def verify(self) -> list[str]:
        """Check the whole store. Returns one line per problem."""
        return self.store.verify()


@torch.no_grad()
def score_pairs(
    teacher: PairScorer,
    inputs: Inputs,
    captions: np.ndarray,
    videos: np.ndarray,
    *,
    batch_size: int,
    device: torch.device | str,
    frames: bool = False,
) -> np.ndarray:
    """Return the logits of aligned pairs (pairs,), float32, or with `frames` their frame relevance (pairs, frames).

    Pairs of one video are scored one after another, `batch_size` pairs at a time, so that few videos are read twice.
    """
    order = np.argsort(videos, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    parts = []
    with prefetch(inputs, [np.unique(videos[batch]) for batch in batches]):
        for batch in batches:
            texts, texts_of_pair = np.unique(captions[batch], return_inverse=True)
            shown, video_of_pair = np.unique(videos[batch], return_inverse=True)
            text_tokens = encode_text_batch(teacher, to_device(inputs.texts(texts), device))
            video_tokens = encode_video_batch(teacher, to_device(inputs.videos(shown), device))
            pairs = _rows(text_tokens, texts_of_pair), _rows(video_tokens, video_of_pair)
            found = teacher.frame_relevance(*pairs) if frames else teacher.score_pairs(*pairs)  # type: ignore[attr-defined]
            parts.append(found.float().cpu().numpy())
    found = np.concatenate(parts)
    return found[np.argsort(order)]


def _rows(tokens: Tokens, rows: np.ndarray) -> Tokens:
    return select_tokens(tokens, torch.from_numpy(rows))


def store_pairs(
    path: Path,
    lists: Lists,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    captions: np.ndarray,
    videos: np.ndarray,
    own: np.ndarray,
    list_provenance: Mapping[str, Any],
    provenance: Mapping[str, Any],
    precision: str,
    processes: Processes,
    label: str,
    margin: float = 0.0,
    frame_relevance: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> SparseRelevance:
    """Store the logits of listed pairs, and the frame relevance of captions with their own videos if it is given.

    `score(captions, videos)`, `frame_relevance(captions, videos)`: of aligned pairs, as `score_pairs` computes them.
    `captions` and `videos`, uint8 (n, 16), are the keys of the rows and columns; `own` (captions,) the column of each
    caption's video. `list_provenance`: what the lists depend on; `provenance`: what the logits of a pair do. Other
    lists or videos make a store beside the one that is there, which takes over the logits that both have. Raises
    StoreError on other provenance.
    """
    provenance = {**provenance, "precision": precision}
    names, places = np.unique(np.array([key.hex() for key in as_bytes(videos)]), return_inverse=True)
    settings = {"videos": names.tolist(), "lists": dict(list_provenance)}
    folder = path / fingerprint_of(settings)[:12]
    held = _held_pairs(path, folder, names, captions, provenance)

    def compute(rows: np.ndarray) -> Tokens:
        columns = lists(rows)
        logits = _taken(held, rows, places[columns])
        row, place = np.nonzero(np.isnan(logits))
        if len(row):
            logits[row, place] = score(rows[row], columns[row, place])
        values = {"columns": torch.from_numpy(places[columns].astype(np.int32)), "scores": torch.from_numpy(logits)}
        if frame_relevance is not None:
            values["frame_text"] = torch.from_numpy(frame_relevance(rows, own[rows]))
        dtype = torch.float16 if precision == "float16" else torch.float32
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in values.items()}

    store = store_tokens(
        folder,
        keys=captions,
        encode=compute,
        provenance={**provenance, **settings},
        batch_size=CAPTIONS_PER_SHARD,
        rows_per_shard=CAPTIONS_PER_SHARD,
        processes=processes,
        label=label,
        what="captions",
    )
    return SparseRelevance(store, places, margin)


@dataclass(frozen=True)
class _Held:
    """A store of pairs that is there.

    `rows[i]` is its row of caption i, -1 where it has none; `places[j]` is our number of its video j, -1 likewise.
    """

    store: ArrayStore
    rows: np.ndarray
    places: np.ndarray


def _held_pairs(
    path: Path, folder: Path, names: np.ndarray, captions: np.ndarray, provenance: Mapping[str, Any]
) -> list[_Held]:
    """Return the other stores of this teacher's pairs. Raises StoreError if they have another provenance."""
    number = {name: place for place, name in enumerate(names.tolist())}
    held = []
    for manifest in sorted(path.glob(f"*/{MANIFEST}")):
        if manifest.parent == folder:
            continue
        there = ArrayStore.open(manifest.parent, complete=False).provenance
        kept = {key: there.get(key) for key in ("videos", "lists")}
        store = ArrayStore.open(manifest.parent, provenance={**provenance, **kept}, complete=False)
        rows = np.where(store.holds(captions), store.rows_of(captions), -1)
        places = np.array([number.get(name, -1) for name in kept["videos"] or []], dtype=np.int64)
        held.append(_Held(store, rows, places))
    return held


def _taken(held: Sequence[_Held], captions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the logits (captions, k) that other stores have of the videos `wanted` (captions, k), NaN elsewhere."""
    found = np.full(wanted.shape, np.nan, dtype=np.float32)
    for one in held:
        known = np.flatnonzero(one.rows[captions] >= 0)
        rows = one.rows[captions[known]]
        places = one.places[one.store.read("columns", rows).astype(np.int64)]
        for row, there, scores in zip(known, places, one.store.read("scores", rows), strict=True):
            score_of = dict(zip(there.tolist(), scores.tolist(), strict=True))
            found[row] = [score_of.get(place, old) for place, old in zip(wanted[row], found[row], strict=True)]
    return found


def best_columns(scores: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of the `count` highest scores of each row, ascending, each row's `own` always among them.

    `scores`: (captions, videos). Returns (captions, min(count, videos)).
    """
    scores = np.array(scores, dtype=np.float32)
    scores[np.arange(len(own)), own] = np.inf
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count] if count < scores.shape[1] else None
    return np.sort(best, axis=1) if best is not None else np.tile(np.arange(count), (len(own), 1))


def pair_scorer(
    teacher: PairScorer, inputs: Inputs, *, batch_size: int, device: torch.device | str, frames: bool = False
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return `score_pairs` of a teacher and its inputs, checked if it is of frames."""
    compute = functools.partial(score_pairs, teacher, inputs, batch_size=batch_size, device=device, frames=frames)

    def checked(captions: np.ndarray, videos: np.ndarray) -> np.ndarray:
        found = compute(captions, videos)
        if frames:
            check_frame_relevance(found, type(teacher).__name__)
        return found

    return checked
