"""What the loop is fed with: for every step this process's pairs and the relevance of the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from teachclip.data.batches import BatchPlan
from teachclip.data.catalog import Split
from teachclip.inputs import Batch, Inputs
from teachclip.processes import Processes
from teachclip.store import ArrayStore
from teachclip.targets import teacher_confidence, video_frame_targets


@dataclass(frozen=True)
class StoredRelevance:
    """A teacher's stored relevance for the training pairs.

    `video_targets` (videos, frames), if given, replaces the relevance of a pair by that of its video.
    """

    store: ArrayStore
    caption_videos: np.ndarray
    video_targets: np.ndarray | None = None

    @classmethod
    def build(cls, store: ArrayStore, split: Split, *, targets: str) -> StoredRelevance:
        """Teach from a relevance store of `split`; `targets` is `pair`, or `video` to aggregate over captions."""
        columns = split.caption_videos
        if targets == "pair":
            return cls(store, columns)
        confidence = teacher_confidence(lambda rows: store.read("video_text", rows), columns)
        relevance = np.asarray(store.read("frame_text", slice(None)), dtype=np.float32)
        return cls(store, columns, video_frame_targets(relevance, confidence, columns))

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return `video_text` (pairs, pairs) and `frame_text` (pairs, frames) of the global batch, float32.

        Frame relevance that was rounded to float16 sums to 1 again.
        """
        columns = self.caption_videos[rows]
        video_text = np.asarray(self.store.read("video_text", rows), dtype=np.float32)[:, columns]
        if self.video_targets is not None:
            frame_text = self.video_targets[columns].astype(np.float32)
        else:
            frame_text = np.asarray(self.store.read("frame_text", rows), dtype=np.float32)
        frame_text = frame_text / frame_text.sum(axis=1, keepdims=True)
        return torch.from_numpy(video_text), torch.from_numpy(frame_text)


class TrainingBatches(Dataset[Batch]):
    """Item number `step` is the batch of that step; a function of the seed and the step alone."""

    def __init__(
        self,
        inputs: Inputs,
        split: Split,
        plan: BatchPlan,
        processes: Processes,
        relevances: list[StoredRelevance] | None = None,
        extra: Inputs | None = None,
    ) -> None:
        """`extra` inputs join those of `inputs`: pixels for an online teacher beside a student on stored features."""
        self.inputs, self.extra = inputs, extra
        self.split, self.plan = split, plan
        self.share = processes.index, processes.count
        self.caption_videos = split.caption_videos
        self.relevances = relevances or []

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step: local inputs, and `rows`, `video_rows` and relevance of the global batch."""
        rows = self.plan.rows(step).copy()  # the plan's own are read-only, which torch does not know
        local = self.plan.local(step, *self.share).copy()
        batch: Batch = {}
        for inputs in (self.extra, self.inputs):
            if inputs is not None:
                batch.update(inputs.texts(local))
                batch.update(inputs.videos(self.caption_videos[local]))
        batch["rows"] = torch.from_numpy(rows)
        batch["video_rows"] = torch.from_numpy(self.caption_videos[rows])
        for number, relevance in enumerate(self.relevances):
            batch[f"video_text.{number}"], batch[f"frame_text.{number}"] = relevance.batch(rows)
        return batch

    def pair_ids(self, row: int) -> dict[str, str]:
        """Name a training pair for a person."""
        caption = self.split.captions[row]
        return {"video": caption.video_id, "caption": caption.id, "text": caption.text}

    def loader(self, start: int, steps: int, *, workers: int) -> DataLoader[Batch]:
        """Return the batches of steps `start` to `steps - 1` in order, loaded ahead by `workers` processes."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, steps),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )
