"""How fast an index is made and asked, against its parts: decoding, the video tower, the engine, the text tower.

All sides are timed in turn, several times in one run, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachclip.data.video.cutting import Cutting
from teachclip.data.video.parts import PartFrames, decode_stretch, open_parts
from teachclip.data.video.transform import normalize
from teachclip.data.video.workers import Failure
from teachclip.errors import DataError
from teachclip.models import backbone as encoders
from teachclip.models.modeling import StudentModel, evaluating
from teachclip.search.index import VideoIndex
from teachclip.search.limits import Limits
from teachclip.search.queries import load_for_search
from teachclip.search.scan import list_files
from teachclip.search.update import Wanted, update_index

TOWER_FRAMES = 960
"""Frames that the tower alone is timed on."""


def measure_indexing(folder: Path, model: str, *, rounds: int = 3) -> dict[str, float]:
    """Index the films below `folder` and time decoding and the video tower alone.

    What an index needs once, whatever its size, is timed apart: its first film is indexed before, with loading the
    student and the export of its text tower. Returns medians: `frames` that the films give, `decode`, `tower` and
    `index` in frames per second, `ratio`, of the index to the slower of the two others, and `first_s`, seconds of the
    first film. Raises DataError if no film can be read.
    """
    student, limits = load_for_search(model), Limits()
    paths = list(list_files([str(folder)]).files)
    times: dict[str, list[float]] = {"decode": [], "tower": [], "index": []}
    first: list[float] = []
    stretches: list[PartFrames] = []
    for _ in range(rounds):
        with _timed(times["decode"]):
            stretches = _decode(paths, student, limits)
        frames = sum(len(stretch.frames) for stretch in stretches)
        if not frames:
            raise DataError(f"{folder}: none of its {len(paths)} films can be read")
        pictures = np.concatenate([stretch.frames for stretch in stretches])[:TOWER_FRAMES]
        with _timed(times["tower"]):
            _encode(pictures, student, limits.batch_size)
        times["tower"][-1] *= frames / len(pictures)
        with tempfile.TemporaryDirectory() as place:
            index, begun = Path(place) / "index", Path(place) / "first"
            begun.mkdir()
            shutil.copy(paths[0], begun)
            with open(begun / Path(paths[0]).name, "ab") as copy:
                copy.write(b"\0\0\0\x08free")  # another content, or the film would be known; an empty box of an mp4
            with _timed(first):
                update_index(index, [begun], Wanted(model), progress=False)
            with _timed(times["index"]):
                update_index(index, [folder], progress=False)
    rates = {name: frames / statistics.median(seconds) for name, seconds in times.items()}
    ratio = rates["index"] / min(rates["decode"], rates["tower"])
    return {"frames": frames, **rates, "ratio": ratio, "first_s": statistics.median(first)}


def measure_queries(index: VideoIndex, texts: Sequence[str], *, rounds: int = 5) -> dict[str, float]:
    """Search for each text and time the text tower and the engine alone.

    Returns medians in milliseconds per query: `text`, `engine` and `search`; `ratio`, of the search to their sum.
    """
    generation, engine = index._open(engine=True)
    queries = index.queries()
    times: dict[str, list[float]] = {"text": [], "engine": [], "search": []}
    for _ in range(rounds):
        for text in texts:
            with _timed(times["text"]):
                vector = queries.texts([text])[0]
            with _timed(times["engine"]):
                engine.search(vector, 50, None)
            with _timed(times["search"]):
                index.search(text)
    assert generation is not None
    found = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    return {**found, "ratio": found["search"] / (found["text"] + found["engine"])}


class _timed:
    """Appends the seconds of a block to a list."""

    def __init__(self, times: list[float]):
        self.times = times

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.times.append(time.perf_counter() - self.started)


def _decode(paths: Sequence[str], student: StudentModel, limits: Limits) -> list[PartFrames]:
    """Decode the parts of files as an index does, and nothing else."""
    processor: Any = student.processor
    how = processor.sampling, processor.transform
    found, rest = [], []
    for opened in limits.map(open_parts, iter([(path, *how, Cutting()) for path in paths]), len(paths)):
        if not isinstance(opened, Failure):
            found.append(opened.first)
            rest += [(opened.source, *how, parts) for parts in opened.rest]
    outcomes = limits.map(decode_stretch, iter(rest), len(rest)) if rest else ()
    return found + [stretch for stretch in outcomes if not isinstance(stretch, Failure)]


@torch.no_grad()
def _encode(frames: np.ndarray, student: StudentModel, batch_size: int) -> None:
    """Run the vision encoder over frames, and nothing else."""
    processor: Any = student.processor
    encode: Callable[..., Any] = encoders.frame_features
    with evaluating(student):
        for start in range(0, len(frames), batch_size):
            pixels = torch.from_numpy(frames[start : start + batch_size]).to(student.device)
            encode(student.backbone, normalize(pixels, processor.mean, processor.std).unsqueeze(0))
