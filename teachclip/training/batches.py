"""What the loop is fed with: for every step this process's pairs and the relevance of the global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from teachclip.targets import teacher_confidence, tempered_relevance, video_frame_targets


@dataclass(frozen=True)
class StoredRelevance:
    """A teacher's stored relevance for the training pairs.

    `video_targets` (videos, frames), if given, replaces the relevance of a pair by that of its video; it is tempered
    already. A store without `frame_text` teaches video-text relevance alone.
    """

    store: ArrayStore
    caption_videos: np.ndarray
    video_targets: np.ndarray | None = None
    frame_temperature: float = 1.0

    @classmethod
    def build(
        cls, store: ArrayStore, split: Split, *, targets: str, frame_temperature: float = 1.0
    ) -> StoredRelevance:
        """Teach from a relevance store of `split`; `targets` is `pair`, or `video` to aggregate over captions."""
        columns = split.caption_videos
        if targets == "pair" or "frame_text" not in store.arrays:
            return cls(store, columns, None, frame_temperature)
        confidence = teacher_confidence(lambda rows: store.read("video_text", rows), columns)
        relevance = np.asarray(store.read("frame_text", slice(None)), dtype=np.float32)
        tempered = tempered_relevance(torch.from_numpy(relevance), frame_temperature).numpy()
        return cls(store, columns, video_frame_targets(tempered, confidence, columns), frame_temperature)

    @property
    def has_frames(self) -> bool:
        """Whether it teaches frame-text relevance too."""
        return "frame_text" in self.store.arrays

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return `video_text` (pairs, pairs) and, if it has frames, `frame_text` (pairs, frames), float32.

        Both are of the global batch. Frame relevance that was rounded to float16 sums to 1 again.
        """
        columns = self.caption_videos[rows]
        video_text = np.asarray(self.store.read("video_text", rows), dtype=np.float32)[:, columns]
        if not self.has_frames:
            return torch.from_numpy(video_text), None
        if self.video_targets is not None:
            return torch.from_numpy(video_text), torch.from_numpy(self.video_targets[columns].astype(np.float32))
        frame_text = np.asarray(self.store.read("frame_text", rows), dtype=np.float32)
        frame_text = frame_text / frame_text.sum(axis=1, keepdims=True)
        tempered = tempered_relevance(torch.from_numpy(frame_text), self.frame_temperature)
        return torch.from_numpy(video_text), tempered


class TrainingBatches(Dataset[Batch]):
    """Item number `step` is the batch of that step; a function of the seed and the step alone."""

    def __init__(
        self,
        inputs: Inputs,
        split: Split,
        plan: BatchPlan,
        processes: Processes,
        relevances: Sequence[StoredRelevance] = (),
        extras: Mapping[str, Inputs] | None = None,
    ) -> None:
        """`extras`: more inputs, for online teachers, by the prefix that their names get in the batch.

        Without a prefix they join those of `inputs`: pixels beside a student on stored features.
        """
        self.inputs, self.extras = inputs, dict(extras or {})
        self.split, self.plan = split, plan
        self.share = processes.index, processes.count
        self.caption_videos = split.caption_videos
        self.relevances = list(relevances)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step: local inputs, and `rows`, `video_rows` and relevance of the global batch."""
        rows = self.plan.rows(step).copy()  # the plan's own are read-only, which torch does not know
        local = self.plan.local(step, *self.share).copy()
        batch: Batch = {}
        for prefix, inputs in (*self.extras.items(), ("", self.inputs)):
            found = {**inputs.texts(local), **inputs.videos(self.caption_videos[local])}
            batch.update({prefix + name: tensor for name, tensor in found.items()})
        batch["rows"] = torch.from_numpy(rows)
        batch["video_rows"] = torch.from_numpy(self.caption_videos[rows])
        for number, relevance in enumerate(self.relevances):
            batch[f"video_text.{number}"], frame_text = relevance.batch(rows)
            if frame_text is not None:
                batch[f"frame_text.{number}"] = frame_text
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
