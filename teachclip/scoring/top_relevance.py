"""Dense relevance of which only the best videos of each text are kept, to see what a shortlist would lose.

The lists are the teacher's own best, so that what is lost is lost by what was not scored, not by who found the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.scoring.pair_store import best_columns

BLOCK = 4096


@dataclass(frozen=True)
class TopRelevance:
    """A store of dense relevance, read as one of shortlists: see `teachclip.scoring.pair_store` for what is not kept.

    `kept` (captions, k): the columns of each caption's best videos, its own among them; `floors` (captions,): the
    lowest of their scores, which all other videos get.
    """

    store: Any
    kept: np.ndarray
    floors: np.ndarray

    @classmethod
    def of(cls, store: Any, own: np.ndarray, count: int) -> TopRelevance:
        """Keep `count` videos of each caption; `own`: (captions,), the column of its own video."""
        kept, floors = [], []
        for start in range(0, len(own), BLOCK):
            rows = slice(start, min(start + BLOCK, len(own)))
            scores = np.asarray(store.read("video_text", rows), dtype=np.float32)
            kept.append(best_columns(scores, own[rows], count).astype(np.int32))
            floors.append(np.take_along_axis(scores, kept[-1], axis=1).min(axis=1))
        return cls(store, np.concatenate(kept), np.concatenate(floors))

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return Path(self.store.path)

    @property
    def arrays(self) -> Any:
        """The arrays of the store."""
        return self.store.arrays

    def read(
        self, name: str, items: slice | Sequence[int] | np.ndarray, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """Return rows as the store does; of `video_text` what was not kept is the caption's floor."""
        if name != "video_text":
            return np.asarray(self.store.read(name, items, columns))
        scores = np.asarray(self.store.read(name, items), dtype=np.float32)
        kept = self.kept[items]
        read = np.repeat(self.floors[items][:, None], scores.shape[1], axis=1)
        np.put_along_axis(read, kept, np.take_along_axis(scores, kept, axis=1), axis=1)
        return np.ascontiguousarray(read if columns is None else read[:, columns])
