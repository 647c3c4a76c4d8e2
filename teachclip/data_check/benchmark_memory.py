"""How memory grows with captions and videos: precompute, training and evaluation of made-up data of two sizes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from teachclip.data.annotations.records import Split
from teachclip.data.batches import BatchSampler, Tokenized
from teachclip.evaluation.retrieval import retrieval_ranks
from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.models.student import StudentModel
from teachclip.pipeline.benchmark_parts import (
    CAPTIONS_PER_VIDEO,
    FRAMES,
    SIZES,
    TOKENS,
    check_captions,
    made_up_split,
)
from teachclip.pretraining.tokenizer import build_tokenizer
from teachclip.processes import Processes
from teachclip.scoring.inputs import Batch, FeatureInputs, encode_split
from teachclip.scoring.relevance import VideoTokens, relevance_rows
from teachclip.scoring.relevance_store import store_relevance
from teachclip.scoring.token_store import store_scorer_tokens
from teachclip.store.row_plan import row_keys
from teachclip.training.batches import StoredRelevance, TrainingBatches
from teachclip.training.task import DistillationTask, DistillationTerms

STEPS, BATCH, TIMES = 20, 120, 10
_M_MMAP_THRESHOLD = -3
"""The option of glibc's `mallopt` for the bytes from which memory is a mapping of its own, given back when freed."""
SAMPLED_EVERY = 0.01
"""Seconds between two looks at the memory of the process."""


@dataclass(frozen=True)
class _MadeUp:
    """Captions as token ids, and videos that share the frames of a few: what `store_scorer_tokens` reads."""

    tokenized: Tokenized
    frames: Tensor
    video_count: int

    @property
    def text_count(self) -> int:
        return len(self.tokenized)

    def text_keys(self) -> np.ndarray:
        return row_keys(b"caption %d" % row for row in range(self.text_count))

    def video_keys(self) -> np.ndarray:
        return row_keys(b"video %d" % row for row in range(self.video_count))

    def texts(self, rows: np.ndarray) -> Batch:
        ids, mask = self.tokenized.batch(rows)
        return {"input_ids": ids, "attention_mask": mask}

    def videos(self, rows: np.ndarray) -> Batch:
        half, mask = torch.full((3,), 0.5), torch.ones(len(rows), FRAMES, dtype=torch.bool)
        return {"frames": self.frames[rows % len(self.frames)], "frame_mask": mask, "mean": half, "std": half}


def benchmark_memory(*, captions: int = 10_000, json_file: Path | None = None) -> dict[str, Any]:
    """Measure the peak memory of each stage with `captions` and ten times as many; print and return it.

    20 captions a video, a tiny CLIP with random weights; nothing that is stored is kept in memory. Each size has a
    process of its own. Memory is what the system cannot take back: pages of files do not count where it tells them
    apart (Linux). Raises RecipeError for fewer captions than a batch takes.
    """
    check_captions(captions, BATCH)
    counts = [captions, TIMES * captions]
    measured = []
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            measured.append(pool.submit(peaks, count).result())
    stages = {
        name: {"peak_bytes": [small, large], "bytes_per_caption": (large - small) / (counts[1] - counts[0])}
        for (name, small), large in zip(measured[0].items(), measured[1].values(), strict=True)
    }
    result = {"captions": counts, "videos": [count // CAPTIONS_PER_VIDEO for count in counts], "stages": stages}
    print("\n".join(_table(result)), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def peaks(captions: int) -> dict[str, int]:
    """Run every stage on made-up data; return the peak memory of this process in each, bytes."""
    give_memory_back()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(**SIZES["tiny"])).eval()
    student, scorer = StudentModel.from_backbone(clip, frames=FRAMES).eval(), EncoderFeatures(clip).eval()
    stages: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="teachclip-bench-") as where:
        folder = Path(where)
        with measured_peak(stages, "start"):
            frames = torch.randint(256, (64, FRAMES, 3, 32, 32), dtype=torch.uint8)
            tokenizer = build_tokenizer(["a", "caption"], TOKENS)
        with measured_peak(stages, "records of captions and videos"):
            split = made_up_split(captions)
        with measured_peak(stages, "tokenising"):
            inputs = _MadeUp(
                Tokenized.from_captions(split.captions, tokenizer, max_tokens=TOKENS), frames, len(split.videos)
            )
        with measured_peak(stages, "precompute: tokens of teacher or frozen encoders"):
            texts, videos = store_scorer_tokens(
                folder / "tokens",
                scorer,
                inputs,  # type: ignore[arg-type]
                provenance={"made up": True},
                batch_size=32,
                device="cpu",
                processes=Processes(),
                label="tokens",
            )
        with measured_peak(stages, "precompute: relevance"):
            kept = VideoTokens(videos, "cpu", kept_bytes=0)
            relevance = store_relevance(
                folder / "relevance",
                functools.partial(relevance_rows, scorer, texts, kept, split.caption_videos, device="cpu"),  # type: ignore[arg-type]
                captions=inputs.text_keys(),
                videos=inputs.video_keys(),
                provenance={"made up": True},
                precision="float16",
                processes=Processes(),
                label="relevance",
            )
        with measured_peak(stages, f"training: {STEPS} steps"):
            _train(student, split, FeatureInputs(texts, videos, kept_bytes=0), StoredRelevance(relevance))
        with measured_peak(stages, "evaluation: vectors of texts and videos"):
            tokens = encode_split(student.eval(), inputs, batch_size=32, device="cpu", kept_bytes=0)
        with measured_peak(stages, "evaluation: ranks"):
            retrieval_ranks(student, *tokens, split.caption_videos, video_block=512)
    return stages


def _train(student: StudentModel, split: Split, inputs: FeatureInputs, relevance: StoredRelevance) -> None:
    task = DistillationTask(student, DistillationTerms(), stored_weights=(1.0,)).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-5)
    sampler = BatchSampler(len(split.captions), BATCH, 0)
    batches = TrainingBatches(inputs, split, sampler, Processes(), [relevance])
    with contextlib.closing(batches.loader(0, STEPS, workers=0)) as loader:
        for batch in loader:
            task(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


def give_memory_back() -> None:
    """Have glibc give back what is freed: what it keeps for later depends on chance, and so does not count."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**16)


@contextlib.contextmanager
def measured_peak(stages: dict[str, int], name: str) -> Iterator[None]:
    """Write the most memory of this process while the block runs to `stages[name]`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what glibc keeps of what the stage before has freed
    used, ended = _used(), threading.Event()
    most = used()

    def watch() -> None:
        nonlocal most
        while not ended.wait(SAMPLED_EVERY):
            most = max(most, used())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stages[name] = max(most, used())


def _used() -> Callable[[], int]:
    """Return a function for the bytes that this process holds, without pages of files where the system says."""
    process, status = psutil.Process(), Path("/proc/self/status")

    def anonymous() -> int:
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    with contextlib.suppress(OSError, StopIteration):
        anonymous()
        return anonymous
    return lambda: int(process.memory_info().rss)


def _table(result: dict[str, Any]) -> Iterator[str]:
    sizes = zip(result["captions"], result["videos"], strict=True)
    small, large = (f"{captions:,} / {videos:,}" for captions, videos in sizes)
    yield f"peak memory in MB, captions / videos: {small:>18} {large:>18}   bytes per caption more"
    for name, stage in result["stages"].items():
        columns = " ".join(f"{value / 1e6:18.0f}" for value in stage["peak_bytes"])
        yield f"{name:50} {columns} {stage['bytes_per_caption']:14.0f}"
