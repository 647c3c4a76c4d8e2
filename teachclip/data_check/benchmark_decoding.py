"""What decoding costs by the height of videos, and whether it gets faster with processes: all ways in turn."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.workers import decode_file
from teachclip.data_check.benchmark import machine_facts
from teachclip.data_check.synthetic import synthetic_files

FRAMES, SIZE = 12, 224
_EXACT = FrameSampling("intervals", FRAMES)
WAYS = {
    "frames as sampled": _EXACT,
    f"decoded_size={SIZE}": replace(_EXACT, decoded_size=SIZE),
    "keyframes": replace(_EXACT, keyframes=True),
    f"keyframes, decoded_size={SIZE}": replace(_EXACT, keyframes=True, decoded_size=SIZE),
}
"""Ways to decode, as recipes have them."""


def benchmark_decoding(
    *,
    heights: Sequence[int] = (240, 720, 1080, 2160),
    processes: Sequence[int] = (1, 2),
    files: int = 2,
    seconds: int = 10,
    rounds: int = 5,
    folder: Path | None = None,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measure frames per second of decoding 12 frames of each video to 224 pixels; print and return them.

    Each of some numbers of `processes` decodes `files` synthetic videos of `seconds` per process and round, 4:3 and
    30 frames a second, with a keyframe every 250 frames. Files are kept in `folder` if it is given.
    """
    rates: dict[int, dict[str, dict[int, list[float]]]] = {}
    with contextlib.ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="teachclip-bench-")))
        paths = {height: _files_of(where / f"{height}-{seconds}", height, files, seconds) for height in heights}
        spawn = multiprocessing.get_context("spawn")
        pools = {count: stack.enter_context(ProcessPoolExecutor(count, spawn)) for count in processes}
        for count, pool in pools.items():  # processes have started and imported what they need
            list(pool.map(decode_file, *_items(paths[heights[0]], _EXACT, 4 * count)))
        for height in heights:
            rates[height] = {way: {count: [] for count in processes} for way in WAYS}
            for _ in range(rounds):
                for way, sampling in WAYS.items():
                    for count, pool in pools.items():
                        items = _items(paths[height], sampling, files * count)
                        started = time.perf_counter()
                        done = sum(len(frames) for frames in pool.map(decode_file, *items))
                        rates[height][way][count].append(done / (time.perf_counter() - started))
    result: dict[str, Any] = {
        "machine": machine_facts(),
        "files": files,
        "seconds": seconds,
        "rounds": rounds,
        "processes": list(processes),
        "frames_per_second": {
            str(height): {
                way: {
                    str(n): {"median": statistics.median(r), "low": min(r), "high": max(r)} for n, r in counts.items()
                }
                for way, counts in ways.items()
            }
            for height, ways in rates.items()
        },
    }
    print("\n".join(table(result)), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _files_of(folder: Path, height: int, files: int, seconds: int) -> list[Path]:
    paths = sorted(folder.glob("[0-9]*.mp4"))
    if len(paths) >= files:
        return paths[:files]
    folder.mkdir(parents=True, exist_ok=True)
    log(f"{height} pixels, {seconds} s:")
    return synthetic_files(folder, "realistic", files, height=height, seconds=seconds)


def _items(paths: Sequence[Path], sampling: FrameSampling, count: int) -> tuple[list[Any], ...]:
    """Return the arguments of `decode_file` for `count` files, each in a list."""
    chosen = [str(paths[number % len(paths)]) for number in range(count)]
    return chosen, [sampling] * count, [FrameTransform(SIZE)] * count


def table(result: dict[str, Any]) -> list[str]:
    """Return the measurements as lines of text, a table in Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    first = str(result["processes"][0])
    heads = [f"{count} process{'es' if count > 1 else ''}" for count in result["processes"]]
    scales = [f"{count} over {first}" for count in result["processes"][1:]]
    lines = [
        f"machine: {machine}",
        f"{FRAMES} frames of each video of {result['seconds']} s, frames per second, medians of {result['rounds']} "
        "rounds in turn (lowest - highest)",
        f"| height | way | {' | '.join(heads + scales)} |",
        f"|---:|---|{'---:|' * len(heads + scales)}",
    ]
    for height, ways in result["frames_per_second"].items():
        for way, speeds in ways.items():
            rates = [f"{each['median']:.0f} ({each['low']:.0f} - {each['high']:.0f})" for each in speeds.values()]
            ratios = [f"{speeds[str(n)]['median'] / speeds[first]['median']:.2f}" for n in result["processes"][1:]]
            lines.append(f"| {height} | {way} | {' | '.join(rates + ratios)} |")
    return lines
