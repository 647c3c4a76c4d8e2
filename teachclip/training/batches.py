"""What the loop is fed with: for every step this process's pairs, and their relevance to all of the global batch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from teachclip.background import made_ahead
from teachclip.data.annotations.records import Split
from teachclip.data.batches import BatchSampler
from teachclip.data.places import Places
from teachclip.data.video.pool import start_context
from teachclip.errors import TrainingError
from teachclip.processes import Processes
from teachclip.scoring.inputs import Batch, Inputs, decodes_when_read, prefetch
from teachclip.scoring.pair_store import SparseRelevance
from teachclip.scoring.targets import teacher_confidence, tempered_relevance, video_frame_targets
from teachclip.scoring.top_relevance import TopRelevance
from teachclip.store.array_store import ArrayStore
from teachclip.store.stored_items import StoredItems
from teachclip.training.frame_sets import FrameSetSampler
from teachclip.training.joined_clips import JoinedClips
from teachclip.training.more_texts import MoreTexts

log = logging.getLogger(__name__)

PREFETCHED = 2
"""Batches that each loading process, or the thread in its place, prepares in advance, as torch does by default."""

LOADING_LIMIT = 1800
"""Seconds to wait for a batch of the loading processes before they count as stuck."""


RelevanceStore = ArrayStore | StoredItems | SparseRelevance | TopRelevance


@dataclass(frozen=True)
class StoredRelevance:
    """A teacher's stored relevance for the training pairs.

    `video_targets` (videos, frames), if given, replaces the relevance of a pair by that of its video; it is tempered
    already, and all there is for videos without captions. A store without `frame_text` teaches video-text relevance
    alone. With several views of a video each is a video here, all of view 0 first, and `frame_text` of the store is
    (captions, views, frames).
    """

    store: RelevanceStore
    video_targets: np.ndarray | None = None
    frame_temperature: float = 1.0

    @classmethod
    def build(
        cls,
        store: RelevanceStore,
        split: Split,
        *,
        targets: str,
        frame_temperature: float = 1.0,
        saturation: float | None = None,
    ) -> StoredRelevance:
        """Teach from a relevance store of `split`; `targets` is `pair`, or `video` to aggregate over captions.

        `saturation`: see `video_frame_targets`.
        """
        if targets == "pair" or "frame_text" not in store.arrays:
            return cls(store, None, frame_temperature)
        columns, videos = split.caption_videos, len(split.videos)
        at_once = max(1, min(4096, 2**22 // store.arrays["video_text"].shape[0]))  # rows: 16 MB of float32
        frame_targets, of_views = [], store.arrays["frame_text"].shape[:-1]  # (views,), or () for one view
        for view in range(of_views[0] if of_views else 1):
            among = slice(view * videos, (view + 1) * videos)  # each view among the videos' same view
            logits = functools.partial(_columns_of, store, among)
            tempered = functools.partial(_tempered_frames, store, frame_temperature, view if of_views else None)
            confidence = teacher_confidence(logits, columns, block=at_once)
            frame_targets.append(video_frame_targets(tempered, confidence, columns, saturation=saturation))
        return cls(store, np.concatenate(frame_targets), frame_temperature)

    @property
    def has_frames(self) -> bool:
        """Whether it teaches frame-text relevance too."""
        return "frame_text" in self.store.arrays or self.video_targets is not None

    def video_text(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """Return the video-text relevance of captions and videos, in one of their views: (captions, videos)."""
        return torch.from_numpy(self.store.read("video_text", rows, columns))

    def batch(self, rows: np.ndarray, columns: np.ndarray, own: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Return `video_text` (own, pairs), as it is stored, and, if it has frames, `frame_text` (own, frames).

        Pair i of the global batch is caption `rows[i]` and video, in one of its views, `columns[i]`. `own`: the pairs
        of this process, whose captions alone are read. `frame_text` is float32: frame relevance that was rounded to
        float16 sums to 1 again.
        """
        rows = rows[own]
        video_text = self.video_text(rows, columns)
        columns = columns[own]
        if not self.has_frames:
            return video_text, None
        if self.video_targets is not None:
            return video_text, torch.from_numpy(self.video_targets[columns].astype(np.float32))
        frame_text = np.asarray(self.store.read("frame_text", rows), dtype=np.float32)
        if frame_text.ndim == 3:
            videos = self.store.arrays["video_text"].shape[0] // frame_text.shape[1]
            frame_text = frame_text[np.arange(len(rows)), columns // videos]
        frame_text = frame_text / frame_text.sum(axis=1, keepdims=True)
        tempered = tempered_relevance(torch.from_numpy(frame_text), self.frame_temperature)
        return video_text, tempered


def _columns_of(store: RelevanceStore, columns: slice, rows: slice) -> np.ndarray:
    return store.read("video_text", rows)[:, columns]


def _tempered_frames(store: RelevanceStore, temperature: float, view: int | None, rows: slice) -> np.ndarray:
    relevance = np.asarray(store.read("frame_text", rows), dtype=np.float32)
    tempered = tempered_relevance(torch.from_numpy(relevance), temperature).numpy()
    return tempered if view is None else tempered[:, view]


class TrainingBatches(Dataset[Batch]):
    """Item number `step` is the batch of that step; a function of the seed and the step alone."""

    def __init__(
        self,
        inputs: Inputs,
        split: Split,
        sampler: BatchSampler,
        processes: Processes,
        relevances: Sequence[StoredRelevance] = (),
        extras: Mapping[str, Inputs] | None = None,
        sets: FrameSetSampler | None = None,
        joined: JoinedClips | None = None,
        more: MoreTexts | None = None,
    ) -> None:
        """`extras`: more inputs, of online teachers and swapped captions, by the prefix of their names in the batch.

        Without a prefix they join those of `inputs`: pixels beside a student on stored features. `sets`, `joined`:
        synthetic videos that every batch holds too; `more`: further texts.
        """
        self.sets, self.joined, self.more = sets, joined, more
        self._first: tuple[int, TrainingBatches] | None = None
        self.inputs, self.extras = inputs, dict(extras or {})
        self.split, self.sampler = split, sampler
        self.share = processes.index, processes.count
        self.places = Places(split, sampler.seed)
        self.relevances = list(relevances)

    def begin_with(self, batches: TrainingBatches, steps: int) -> None:
        """Take the first `steps` from other batches of the same pairs: of features, while encoders do not move."""
        self._first = steps, batches

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step: local inputs and relevance, and `rows` and `video_rows` of the global batch."""
        if self._first is not None and step < self._first[0]:
            return self._first[1][step]
        epoch = step // self.sampler.batches_per_epoch
        places = self.sampler.rows(step).copy()  # the sampler's own are read-only, which torch does not know
        own, rows = self.sampler.share(*self.share), self.places.texts(epoch, places)
        batch: Batch = {}
        for prefix, inputs in (*self.extras.items(), ("", self.inputs)):
            # videos are read once for captions side by side
            read = {**inputs.texts(rows[own]), **inputs.videos(self._local_columns(step))}
            batch.update({prefix + name: tensor for name, tensor in read.items()})
        batch["rows"] = torch.from_numpy(rows)
        batch["video_rows"] = torch.from_numpy(self.places.videos(epoch, places))
        if not self.split.is_paired:
            batch["is_pair"] = torch.from_numpy(places < self.places.pairs)
        columns = self._columns(step, places)
        for number, relevance in enumerate(self.relevances):
            batch[f"video_text.{number}"], frame_text = relevance.batch(rows, columns, own)
            if frame_text is not None:
                batch[f"frame_text.{number}"] = frame_text
        if self.sets is not None:
            batch.update(self.sets.batch(step, *self.share))
        if self.joined is not None:
            batch.update(self.joined.batch(step, *self.share))
        if self.more is not None:
            reads = [relevance.video_text for relevance in self.relevances]
            batch.update(self.more.batch(step, rows, columns, reads, *self.share))
        return batch

    def _columns(self, step: int, places: np.ndarray) -> np.ndarray:
        """Return the rows, among all views of all videos, of the videos at these places in `step`."""
        videos = self.places.videos(step // self.sampler.batches_per_epoch, places)
        return self.sampler.views_of(step, places) * len(self.split.videos) + videos

    def _local_columns(self, step: int) -> np.ndarray:
        """Return what this process encodes in `step`, as `_columns`: one for all captions of a video side by side."""
        rows = self.sampler.local(step, *self.share)[:: self.sampler.captions_together(step)]
        return self._columns(step, rows)

    def pair_ids(self, row: int) -> dict[str, str]:
        """Name a training pair for a person."""
        caption = self.split.captions[row]
        return {"video": caption.video_id, "caption": caption.id, "text": caption.text}

    def loader(self, start: int, steps: int, *, workers: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start` to `steps - 1` in order; `workers` processes or a thread load ahead.

        Frames that are decoded when they are read have processes of their own, which such workers may not start: then
        batches are put together here, of frames that those decode ahead.
        """
        sources = [*self.extras.values(), self.inputs]
        live = any(map(decodes_when_read, sources))
        if live and workers:
            log.info("frames are decoded by processes of their own: train.workers=%d is not used", workers)
        workers = 0 if live or start >= steps else workers_that_fit(workers, self[start]) if workers else 0
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, steps),  # type: ignore[arg-type]
            num_workers=workers,
            timeout=LOADING_LIMIT if workers else 0,
            multiprocessing_context=start_context() if workers else None,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )
        with contextlib.ExitStack() as stack:
            for inputs in sources:
                coming = (self._local_columns(step) for step in range(start, steps))
                stack.enter_context(prefetch(inputs, coming))
            coming_batches: Iterable[Batch] = loader
            if not live and not workers:
                coming_batches = stack.enter_context(contextlib.closing(made_ahead(loader, PREFETCHED)))
            try:
                yield from coming_batches
            except RuntimeError as error:
                if "DataLoader" not in str(error) or "Original Traceback" in str(error):
                    raise
                cause = str(error).splitlines()[0]
                raise TrainingError(
                    f"the processes that load batches cannot go on: {cause}; lower train.workers (0: none) or give "
                    f"more shared memory (docker run --shm-size), and run again"
                ) from error


def workers_that_fit(workers: int, batch: Batch, *, folder: str = "/dev/shm") -> int:
    """Return how many loading processes may run at once, at most `workers`: their batches wait in shared memory.

    Each keeps `PREFETCHED` batches the size of `batch` there; where the memory is full they would hang. Fewer ones
    than asked for are logged. All processes of this machine share the memory.
    """
    try:
        free = shutil.disk_usage(folder).free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except (OSError, ValueError):  # a system that shares memory in another way
        return workers
    size = sum(tensor.numel() * tensor.element_size() for tensor in batch.values())
    fit = min(workers, int(max(0.0, 0.9 * free / max(1, size) - 1) // PREFETCHED))
    if fit < workers:
        log.info(
            "%s has %.0f MB free and a batch takes %.1f MB: train.workers is %d in place of %d "
            "(docker run --shm-size gives more)",
            *(folder, free / 1e6, size / 1e6, fit, workers),
        )
    return fit
