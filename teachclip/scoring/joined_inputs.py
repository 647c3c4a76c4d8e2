"""Inputs of several sources, one behind the other, as if they were of one split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from teachclip.scoring.inputs import Batch, Inputs, PixelInputs


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
    found = [reads[k](rows[owner == k] - starts[k]) for k in used]
    order = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(owner == k) for k in used])))
    joined = {}
    for name, first in found[0].items():
        if first.ndim < 2 and name in ("mean", "std"):  # of all pictures alike
            joined[name] = first
            continue
        tensors = [part[name] for part in found]
        if first.ndim == 2 and name in ("input_ids", "attention_mask"):
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = [pad(tensor, (0, longest - tensor.shape[1]), value=pads.get(name, 0)) for tensor in tensors]
        joined[name] = torch.cat(tensors)[order]
    return joined
