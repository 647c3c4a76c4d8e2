"""Benchmark of reading data: decoding videos, against bare decord, and reading stored frames."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.console import log
from teachclip.data.annotations.files import EXTENSIONS
from teachclip.data.annotations.records import Video
from teachclip.data.frames.store import build_frame_store
from teachclip.data.video.decode import decode_frames
from teachclip.data.video.sampling import FrameSampling, sample_indices
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding, Failure, guarded_map, resident_memory
from teachclip.data.video.writing import encode_mp4
from teachclip.errors import DataError
from teachclip.processes import usable_cores
from teachclip.shapes.rendering import write_video

DISTINCT = 8
"""Different synthetic videos of a kind; further files are copies of these under other names."""

REALISTIC = {"preset": "medium", "crf": "23", "g": "250", "threads": "2"}

STORE_SECONDS = 3.0
GOALS = {"decode": 0.9, "store": 20.0}
"""Speed of decoding as a share of bare decord's, and of reading stored frames as a multiple of decoding."""


@dataclass(frozen=True)
class Timing:
    """One file in one worker process: seconds of each step, and bytes of resident memory afterwards."""

    process: int
    frames: int
    bare: float
    decode: float
    whole: float
    memory: int


def benchmark(
    *, files: int, processes: int, videos: Path | None, kind: str, frames: int, json_file: Path | None
) -> None:
    """Print frames per second of bare decord, of `decode_frames` and of a frame store, their ratios and memory.

    `videos`: folder of files to decode; None: synthetic ones of a `kind`, realistic or small. Raises DataError if
    nothing can be decoded.
    """
    with tempfile.TemporaryDirectory(prefix="teachclip-bench-") as folder:
        paths = _files_of(videos, files) if videos else _synthetic_files(Path(folder), kind, files)
        log(f"decoding {len(paths)} files in {processes} processes, each with both decoders in turn")
        timings, failures = time_files(paths, frames=frames, processes=processes)
        if not timings:
            raise DataError(f"no file could be decoded: {failures[0] if failures else 'there is none'}")
        read = time_store(paths, Path(folder) / "store", frames=frames, processes=processes)
    report = {"machine": _machine(), **summarise(timings, read), "failures": failures}
    print("\n".join(_lines(report)))
    if json_file:
        json_file.write_text(json.dumps({**report, "files": [asdict(timing) for timing in timings]}, indent=1))


def time_files(files: Sequence[Path], *, frames: int, processes: int) -> tuple[list[Timing], list[str]]:
    """Decode every file with both decoders. Returns the timings, and the errors of files without one."""
    items = ((str(path), frames, number % 2 == 0) for number, path in enumerate(files))
    timings, failures = [], []
    with contextlib.closing(guarded_map(time_file, items, workers=processes, time_limit=300)) as outcomes:
        for path, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failures.append(f"{path}: {outcome.error}")
            else:
                timings.append(outcome)
    return timings, failures


_warm: set[int] = set()


def time_file(path: str, frames: int, bare_first: bool) -> Timing:
    """Time one file in this process. The file is read first, so that neither decoder waits for the disk."""
    sampling, transform = FrameSampling("per_second", frames), FrameTransform(224)
    Path(path).read_bytes()
    if os.getpid() not in _warm:  # the first file pays for imports
        _warm.add(os.getpid())
        _bare_decord(path, sampling)
        transform(decode_frames(path, sampling))
    seconds = {}
    for decoder in ("bare", "decode") if bare_first else ("decode", "bare"):
        started = time.perf_counter()
        if decoder == "bare":
            _bare_decord(path, sampling)
        else:
            decoded = decode_frames(path, sampling)
        seconds[decoder] = time.perf_counter() - started
    started = time.perf_counter()
    transform(decoded)
    whole = seconds["decode"] + time.perf_counter() - started
    memory = resident_memory() or 0
    return Timing(os.getpid(), len(decoded), seconds["bare"], seconds["decode"], whole, memory)


def _bare_decord(path: str, sampling: FrameSampling) -> np.ndarray:
    """Decode the sampled frames as a script with decord does: open the file and get the frames, nothing else."""
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DataError("decord is not installed, so there is nothing to compare with") from error
    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(sample_indices(sampling, len(reader), reader.get_avg_fps())).asnumpy()


def time_store(files: Sequence[Path], store: Path, *, frames: int, processes: int) -> float:
    """Return how many frames per second one process reads from a store of (at most 256 of) the files' frames."""
    videos = [Video(str(number), path) for number, path in enumerate(files[:256])]
    decoding = Decoding(FrameSampling("per_second", frames), FrameTransform(224), workers=processes)
    frame_store = build_frame_store(videos, decoding, path=store, progress=False)
    readable = frame_store.rows_of(video.id for video in videos if video.id not in frame_store.failures)
    order, count = np.random.default_rng(0), 0
    frame_store.read(readable[:1])
    started = time.perf_counter()
    while time.perf_counter() - started < STORE_SECONDS:
        _, mask = frame_store.read(order.choice(readable, size=32))
        count += int(mask.sum())
    return count / (time.perf_counter() - started)


def summarise(timings: Sequence[Timing], store_rate: float) -> dict[str, Any]:
    """Return frames per second of one process, ratios, and the memory of the worker that decoded most files."""
    frames = sum(timing.frames for timing in timings)
    rates = {name: frames / sum(getattr(timing, name) for timing in timings) for name in ("bare", "decode", "whole")}
    ratios = np.array([timing.bare / timing.decode for timing in timings])
    workers = defaultdict(list)
    for timing in timings:
        workers[timing.process].append(timing.memory / 1e6)
    longest = max(workers.values(), key=len)
    tenths = [max(part) for part in np.array_split(longest, 10) if len(part)]
    return {
        "frames_per_second": {**rates, "store": store_rate},
        "decode_ratio": rates["decode"] / rates["bare"],
        "decode_ratio_quartiles": np.quantile(ratios, [0.25, 0.5, 0.75]).tolist(),
        "store_ratio": store_rate / rates["whole"],
        "memory_mb": {"files": len(longest), "tenths": tenths, "peak": max(map(max, workers.values()))},
        "count": len(timings),
    }


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the results as lines of text."""
    rates, memory = report["frames_per_second"], report["memory_mb"]
    low, middle, high = report["decode_ratio_quartiles"]
    yield "machine: " + ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    yield f"files: {report['count']} decoded, {len(report['failures'])} failed"
    yield from report["failures"][:5]
    yield "frames per second of one process:"
    yield f"  bare decord {rates['bare']:.0f}, decode_frames {rates['decode']:.0f}"
    yield f"  decoded and resized {rates['whole']:.0f}, stored frames {rates['store']:.0f} (from the page cache)"
    met = "met" if report["decode_ratio"] >= GOALS["decode"] else "NOT met"
    yield (
        f"decode_frames against bare decord: {report['decode_ratio']:.3f} (goal {GOALS['decode']:g}: {met}); "
        f"of single files {low:.3f}, {middle:.3f}, {high:.3f} (quartiles)"
    )
    met = "met" if report["store_ratio"] >= GOALS["store"] else "NOT met"
    yield f"stored frames against decoding and resizing: {report['store_ratio']:.1f} (goal {GOALS['store']:g}: {met})"
    yield (
        f"peak memory of the worker that decoded most files ({memory['files']}), in each tenth of them, MB: "
        + " ".join(f"{value:.0f}" for value in memory["tenths"])
        + f"; of all workers {memory['peak']:.0f}"
    )


def _machine() -> dict[str, Any]:
    """Return the facts about the machine that speed depends on."""
    facts: dict[str, Any] = {"processor": platform.machine(), "cores": usable_cores()}
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts["processor"] = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    for name in ("decord", "av", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
    return facts


def _files_of(folder: Path, count: int) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"{folder} contains no video ({', '.join(EXTENSIONS)})")
    return [files[number % len(files)] for number in range(count)]


def _synthetic_files(folder: Path, kind: str, count: int) -> list[Path]:
    """Write synthetic videos: "realistic", 15 s of 320 x 240 with long groups of pictures, or "small", of Shapes."""
    log(f"writing {min(count, DISTINCT)} {kind} videos")
    sources = []
    for number in range(min(count, DISTINCT)):
        sources.append(folder / f"source-{number}.mp4")
        if kind == "small":
            write_video(sources[-1], 0, number)
        else:
            encode_mp4(_panned_image(number), sources[-1], rate=30, options=REALISTIC)
    files = [folder / f"{number}.mp4" for number in range(count)]
    for number, path in enumerate(files):
        path.write_bytes(sources[number % len(sources)].read_bytes())
    return files


def _panned_image(seed: int) -> np.ndarray:
    """Return 15 seconds of a shaky camera that pans over a detailed image: uint8 (450, 240, 320, 3)."""
    random = np.random.default_rng(seed)
    image = np.zeros((480, 640, 3))
    for cell in (4, 16, 64):  # detail at several sizes
        squares = random.normal(0, cell**0.7, (480 // cell + 1, 640 // cell, 3))
        image += np.kron(squares, np.ones((cell, cell, 1)))[:480]
    image = 128 + 50 * image / image.std()
    tops = 120 + np.cumsum(random.normal(0, 1.5, 450)).astype(int) % 120
    lefts = 160 + (np.cumsum(random.normal(0.7, 1.5, 450))).astype(int) % 160
    shown = np.stack([image[top : top + 240, left : left + 320] for top, left in zip(tops, lefts, strict=True)])
    noise = random.normal(0, 2, (16, 240, 320, 1))
    return np.clip(shown + noise[np.arange(450) % 16], 0, 255).astype(np.uint8)
