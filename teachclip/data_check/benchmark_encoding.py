"""What encoding videos costs beside what bounds it: the bare tower, and bare decoding. All in turn, in one run."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from teachclip.console import log
from teachclip.data.annotations.records import Video
from teachclip.data.batches import Tokenized
from teachclip.data.frames.views import FrameViews, build_frame_views
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import Decoding
from teachclip.data_check.benchmark import machine_facts
from teachclip.data_check.synthetic import synthetic_files
from teachclip.errors import DataError, RecipeError
from teachclip.models.student import StudentModel
from teachclip.models.videos import encode_in_batches, read_videos
from teachclip.pipeline.benchmark_parts import FRAMES, SIZES
from teachclip.processes import Processes
from teachclip.registry import closest
from teachclip.scorer import PRECISIONS, encoding_in
from teachclip.scoring.inputs import PixelInputs, encode_split, pixel_values
from teachclip.scoring.token_store import store_scorer_tokens

DECODING, KEYFRAMES = "decoding alone", "decoding keyframes alone"
TIME_LIMIT, MEMORY_LIMIT = 600.0, 4.0
"""Of a decoder: seconds per file, and GB."""


@dataclass
class _Material:
    """What is encoded: files, their stored frames as inputs, and the same as pixels in memory."""

    student: StudentModel
    files: list[Path]
    inputs: PixelInputs
    pixels: list[tuple[Tensor, Tensor]]
    sampling: FrameSampling
    transform: FrameTransform
    batch_size: int
    device: torch.device
    folder: Path
    runs: int = 0


def benchmark_encoding(
    size: str = "tiny",
    *,
    files: int = 16,
    height: int = 240,
    seconds: int = 15,
    batch_size: int = 8,
    rounds: int = 5,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measure frames per second of towers, decoding, precompute, evaluation and encoding; print and return them.

    The student has random weights. `size`: of CLIP, one of `SIZES`. `files`: synthetic videos of `height` pixels
    and `seconds`; 12 frames of each are encoded. Raises RecipeError for an unknown size.
    """
    if size not in SIZES:
        raise RecipeError(f"{size!r} cannot be measured; known: {', '.join(SIZES)}{closest(size, SIZES)}")
    with tempfile.TemporaryDirectory(prefix="teachclip-bench-") as folder:
        material = _material(size, Path(folder), files, height, seconds, batch_size)
        sides = _sides(material)
        measured: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, run in sides.items():
                started = time.perf_counter()
                run()
                if number:  # the first round pays for imports, and for pages that are read from the disk
                    measured[name].append(files * FRAMES / (time.perf_counter() - started))
    result: dict[str, Any] = {
        "machine": machine_facts(),
        "threads": torch.get_num_threads(),
        "device": str(material.device),
        "size": size,
        "files": files,
        "height": height,
        "rounds": rounds,
        "frames_per_second": {
            name: {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}
            for name, rates in measured.items()
        },
    }
    result["ratios"] = ratios({name: rate["median"] for name, rate in result["frames_per_second"].items()})
    print("\n".join(table(result)), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _material(size: str, folder: Path, files: int, height: int, seconds: int, batch_size: int) -> _Material:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = CLIPModel(CLIPConfig(**SIZES[size])).eval()
    student = StudentModel.from_backbone(clip, frames=FRAMES).to(device).eval()
    side = clip.config.vision_config.image_size
    sampling, transform = FrameSampling("intervals", FRAMES), FrameTransform(side)
    paths = synthetic_files(folder, "realistic", files, height=height, seconds=seconds)
    videos = [Video(path.name, path) for path in paths]
    log("decoding them into a store")
    decoding = Decoding(sampling, transform, time_limit=TIME_LIMIT)
    frames = build_frame_views(videos, videos, decoding, path=folder / "frames", progress=False)
    if frames.failures:
        raise DataError(f"a synthetic video cannot be decoded: {next(iter(frames.failures.values()))}")
    inputs = _inputs(frames, videos, clip.config.text_config.eos_token_id)
    pixels = []
    for start in range(0, files, batch_size):
        batch = inputs.videos(np.arange(start, min(files, start + batch_size)))
        pixels.append((pixel_values(batch).to(device), batch["frame_mask"].to(device)))
    return _Material(student, paths, inputs, pixels, sampling, transform, batch_size, device, folder)


def _inputs(frames: FrameViews, videos: Sequence[Video], end: int) -> PixelInputs:
    """Return the stored frames, and one caption, as inputs."""
    caption = Tokenized(np.full((1, 4), end, dtype=np.int64), np.array([4]), end)
    half = torch.full((3,), 0.5)
    return PixelInputs(caption, frames, frames.rows_of([video.id for video in videos]), half, half)


def _sides(material: _Material) -> dict[str, Callable[[], object]]:
    """Return what is measured, in the order of the table: each encodes or decodes all videos once."""
    sides: dict[str, Callable[[], object]] = {
        DECODING: lambda: list(_decoded(material)),
        KEYFRAMES: lambda: list(_decoded(material, keyframes=True)),
    }
    ways = {"tower": _tower, "precompute": _precompute, "evaluate": _evaluate, "encode files": _encode_files}
    for precision in PRECISIONS:
        sides |= {f"{name}, {precision}": functools.partial(way, material, precision) for name, way in ways.items()}
    return sides


def _decoded(material: _Material, *, keyframes: bool = False) -> Any:
    return read_videos(
        material.files,
        replace(material.sampling, keyframes=keyframes),
        material.transform,
        on_error="raise",
        workers=0,
        time_limit=TIME_LIMIT,
        memory_limit=MEMORY_LIMIT,
    )


def _tower(material: _Material, precision: str) -> None:
    with encoding_in(precision, material.device):
        for pixels, mask in material.pixels:
            material.student.encode_videos(pixels, mask)
    if material.device.type == "cuda":
        torch.cuda.synchronize()


def _precompute(material: _Material, precision: str) -> None:
    material.runs += 1  # a store of its own: what is stored is not computed again
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars, between which a table would be hard to find
        _store_tokens(material, precision)


def _store_tokens(material: _Material, precision: str) -> None:
    store_scorer_tokens(
        material.folder / f"tokens-{material.runs}",
        material.student,
        material.inputs,
        provenance={},
        batch_size=material.batch_size,
        device=material.device,
        processes=Processes(),
        label=f"precompute, {precision}",
        precision=precision,
    )


def _evaluate(material: _Material, precision: str) -> None:
    options: dict[str, Any] = {"batch_size": material.batch_size, "device": material.device, "precision": precision}
    encode_split(material.student, material.inputs, **options)


def _encode_files(material: _Material, precision: str) -> None:
    def encode(frames: list[Tensor]) -> Tensor:
        stacked = torch.stack(frames)
        mask = torch.ones(stacked.shape[:2], dtype=torch.bool)
        half = material.inputs.mean
        pixels = pixel_values({"frames": stacked, "frame_mask": mask, "mean": half, "std": half})
        with encoding_in(precision, material.device):
            tokens = material.student.encode_videos(pixels.to(material.device), mask.to(material.device))
        return next(iter(tokens.values())).float().cpu()

    with contextlib.closing(_decoded(material)) as outcomes:
        options: dict[str, Any] = {"on_error": "raise", "batch_size": material.batch_size, "progress": False}
        encode_in_batches(outcomes, len(material.files), encode, **options)


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Return the speed of each way over what bounds it: the tower or, for files, the slower of tower and decoding."""
    found = {}
    for precision in PRECISIONS:
        tower = rates[f"tower, {precision}"]
        for name, limit in (
            ("precompute", tower),
            ("evaluate", tower),
            ("encode files", min(tower, rates[DECODING])),
        ):
            found[f"{name}, {precision}"] = rates[f"{name}, {precision}"] / limit
    return found


def table(result: dict[str, Any]) -> list[str]:
    """Return the measurements as lines of text."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"machine: {machine}",
        f"{result['size']}, {result['device']}, {result['threads']} threads, {result['files']} videos of "
        f"{result['height']} pixels, {FRAMES} frames each, medians of {result['rounds']} rounds in turn",
        f"{'':26} {'frames/s':>9} {'from':>8} {'to':>8} {'of its limit':>13}",
    ]
    for name, rate in result["frames_per_second"].items():
        ratio = f"{result['ratios'][name]:.2f}" if name in result["ratios"] else ""
        lines.append(f"{name:26} {rate['median']:9.1f} {rate['low']:8.1f} {rate['high']:8.1f} {ratio:>13}")
    lines.append("limit: the tower of that precision; for files the slower of tower and decoding")
    return lines
