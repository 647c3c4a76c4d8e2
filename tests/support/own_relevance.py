"""One step of several processes, each of which reads the relevance of its own pairs, against reading all of it.

`python own_relevance.py FOLDER`, with the stores that `test_own_relevance.py` writes. Prints how many rows a process
read, and whether losses and gradients are the same to the bit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tiny import CAPTIONS, VIDEOS, TinyPixels, tiny_split, tiny_student

from teachclip.data.batches import BatchSampler
from teachclip.store.array_store import ArrayStore
from teachclip.training import task as tasks
from teachclip.training.batches import StoredRelevance, TrainingBatches
from teachclip.training.distributed import build_accelerator, processes_of
from teachclip.training.step import prepare_step

BATCH = 8


class Views(TinyPixels):
    """Both views of a video have its frames."""

    def videos(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return super().videos(rows % VIDEOS)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    accelerator = build_accelerator()
    processes = processes_of(accelerator)
    split = tiny_split()
    first, second = (ArrayStore.open(Path(folder) / name) for name in ("float16", "float32"))
    relevances = [
        StoredRelevance.build(first, split, targets="pair", frame_temperature=2.0),
        StoredRelevance.build(first, split, targets="video"),
        StoredRelevance.build(second, split, targets="pair"),
    ]
    sampler = BatchSampler(len(split.captions), BATCH, 0, views=2)
    batches = TrainingBatches(Views.make(), split, sampler, processes, relevances)
    read: list[int] = []
    read_of_store = ArrayStore.read

    def counted(store: ArrayStore, name: str, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        read.append(len(rows))
        return read_of_store(store, name, rows, columns)

    ArrayStore.read = counted  # type: ignore[method-assign]
    batch = batches[1]
    print(processes.index, "read", *read)
    rows, columns = sampler.rows(1), batches._columns(1, sampler.rows(1))
    whole = dict(batch)
    for number, relevance in enumerate(relevances):
        whole[f"video_text.{number}"], frame_text = relevance.batch(rows, columns)
        if frame_text is not None:
            whole[f"frame_text.{number}"] = frame_text
    assert len(whole["video_text.0"]) == BATCH and len(batch["video_text.0"]) == BATCH // processes.count
    results = []
    for each, gather in ((batch, tasks.gather_rows), (whole, dict)):
        tasks.gather_rows = gather
        task = tasks.DistillationTask(
            tiny_student(), tasks.DistillationTerms(), stored_weights=(1.0, 2.0, 0.5), by_confidence=True
        )
        optimizer = torch.optim.SGD(task.parameters(), lr=0.0)
        step, _ = prepare_step(task, optimizer, accelerator, None, mark=lambda part: None)
        torch.manual_seed(0)
        losses = step(each)
        gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
        results.append({**losses, **gradients})
    one, other = results
    assert one.keys() == other.keys() and len(one) > 20
    print(processes.index, "same", all(torch.equal(one[name], other[name]) for name in one))


if __name__ == "__main__":
    assert CAPTIONS == 2
    main(sys.argv[1])
