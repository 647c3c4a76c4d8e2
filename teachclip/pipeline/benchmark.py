"""What a training step costs in each way to make it: all ways in turn, in one run, so that other work slows all."""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachclip.errors import RecipeError
from teachclip.pipeline.benchmark_limits import PeakMemory, compiled, count_operations, matmul_rate
from teachclip.pipeline.benchmark_parts import SIZES, Parts, check_captions
from teachclip.registry import closest
from teachclip.reports.figures import can_draw, draw_steps
from teachclip.scoring.inputs import Batch, to_device
from teachclip.training.chunked_step import chunked_backward
from teachclip.training.optim import build_optimizer, parameter_groups

BASE, OFFICIAL = "student only", "2 online"
"""What stored teachers are compared with, and the official order of work."""


@dataclass(frozen=True)
class Side:
    """A way to make a step."""

    stored: int = 0
    online: bool = False
    captions_per_video: int = 1
    chunks: int = 1
    bfloat16: bool = False
    compiled: bool = False


SIDES = {
    BASE: Side(),
    **{f"{count} stored": Side(count) for count in range(1, 5)},
    OFFICIAL: Side(online=True),
    "2 stored with 2 captions per video": Side(2, captions_per_video=2),
    "2 stored with 4 captions per video": Side(2, captions_per_video=4),
    "2 stored with 4 chunks": Side(2, chunks=4),
    "2 stored with bfloat16": Side(2, bfloat16=True),
    "2 stored with bfloat16 and 4 captions": Side(2, captions_per_video=4, bfloat16=True),
    "2 stored, compiled": Side(2, compiled=True),
    "2 stored with bfloat16, compiled": Side(2, bfloat16=True, compiled=True),
}
DEFAULT_SIDES = tuple(name for name, side in SIDES.items() if not side.compiled)
"""What is measured if nothing else is asked for; compiling takes minutes, and a compiler of C++."""


def benchmark_steps(
    size: str = "tiny",
    *,
    sides: Sequence[str] | None = None,
    captions: int = 18_000,
    batch_size: int = 24,
    steps: int = 5,
    rounds: int = 5,
    folder: Path | None = None,
    json_file: Path | None = None,
    figure: Path | None = None,
) -> dict[str, Any]:
    """Measure training steps on random weights and made-up data; print a table and return what it shows.

    `size`: of CLIP, one of `SIZES`. `sides`: which of `SIDES`, None: `DEFAULT_SIDES`. `figure`: a PNG file that
    shows where the time of a step goes. `captions`: rows of the relevance stores,
    with a column for each 20 of them; the stores are kept in `folder` if it is given. `steps` of each side in each of
    `rounds` are measured. Raises RecipeError for an unknown size or side, fewer
    captions than a batch takes, or a figure without matplotlib.
    """
    chosen = list(sides or DEFAULT_SIDES)
    for name, known in ((size, SIZES), *((side, SIDES) for side in chosen)):
        if name not in known:
            raise RecipeError(f"{name!r} cannot be measured; known: {', '.join(known)}{closest(name, known)}")
    check_captions(captions, batch_size)
    if figure is not None and not can_draw():
        raise RecipeError(f"{figure} needs matplotlib: pip install 'teachclip[report]'")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        most = max(SIDES[name].stored for name in chosen)
        parts = Parts.make(size, where, captions=captions, teachers=most, batch_size=batch_size, device=device)
        measured, operations = _in_turn(chosen, parts, steps=steps, rounds=rounds)
    rates = {dtype: matmul_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    result: dict[str, Any] = {
        "size": size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "captions": len(parts.split.captions),
        "videos": len(parts.split.videos),
        "batch_size": batch_size,
        "steps": steps * rounds,
        "matmul_per_second": {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()},
        "sides": {
            name: _summary(
                times,
                batch_size,
                operations[name],
                rates[torch.bfloat16 if SIDES[name].bfloat16 else torch.float32],
            )
            for name, times in measured.items()
        },
    }
    print(table(result), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if figure is not None:
        draw_steps(result["sides"], figure)
    return result


def _in_turn(
    chosen: Sequence[str], parts: Parts, *, steps: int, rounds: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, int]]:
    """Measure `steps` of each side in each of `rounds`. Returns what each step took, and a step's operations."""
    optimizer = build_optimizer(
        "bert_adam", parameter_groups(parts.student, lr=1e-6, clip_lr=1e-9, attention_lr=1e-5, weight_decay=0.2)
    )
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    operations = dict.fromkeys(chosen, 0)
    for number in range(rounds):
        for name in chosen:
            first = number * (steps + 1)
            times, counted = _measure(SIDES[name], parts, optimizer, first, steps + 1, count=not number)
            measured[name] += times
            operations[name] = counted or operations[name]
    return measured, operations


def _measure(
    side: Side, parts: Parts, optimizer: torch.optim.Optimizer, start: int, steps: int, *, count: bool
) -> tuple[list[dict[str, float]], int]:
    """Make some steps; return what each took but the first, whose batch nothing was made ahead of.

    `count`: also return the operations of a forward and backward pass; else 0.
    """
    chunk_size = parts.batch_size // side.chunks if side.chunks > 1 else None
    task = parts.task(stored=side.stored, online=side.online, chunk_size=chunk_size).train()
    batches = parts.batches(stored=side.stored, captions_per_video=side.captions_per_video)
    forward_and_backward = _step(side, task, chunk_size, parts.device)
    times, operations, memory = [], 0, PeakMemory(parts.device)
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(contextlib.closing(batches.loader(start, start + steps, workers=0)))
        if side.compiled:
            stack.enter_context(compiled(parts.student.backbone))
        clock = _Clock(parts.device)
        for number in range(steps):
            batch = to_device({**next(loader), "progress": torch.tensor(0.0)}, parts.device)
            if count and not number and not side.compiled:
                operations = count_operations(functools.partial(forward_and_backward, batch))
                optimizer.zero_grad()
            memory.reset()
            wait = clock.lap()
            forward_and_backward(batch)
            compute = clock.lap()
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            task.clamp_scale()
            taken = {"wait": wait, "compute": compute, "optimizer": clock.lap(), "cpu": clock.cpu_lap()}
            times.append({**taken, "memory": memory.bytes()})
    return times[1:], operations


def _step(side: Side, task: Any, chunk_size: int | None, device: torch.device) -> Callable[[Batch], object]:
    """Return a function that adds the gradient of a batch."""

    def autocast() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=side.bfloat16)

    def backward(loss: Tensor) -> None:
        loss.backward()

    def whole(batch: Batch) -> None:
        with autocast():
            losses = task(batch)
        losses["loss"].backward()

    def chunked(batch: Batch) -> None:
        assert chunk_size is not None
        chunked_backward(task, batch, chunk_size, autocast=autocast, backward=backward)

    return whole if chunk_size is None else chunked


class _Clock:
    """Seconds since the last lap; on a GPU until its work is done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.last, self.last_cpu = device, 0.0, 0.0
        self.lap(), self.cpu_lap()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.last = self.last, time.perf_counter()
        return self.last - before

    def cpu_lap(self) -> float:
        """Return the seconds that all threads of this process computed since the last call."""
        before, self.last_cpu = self.last_cpu, time.process_time()
        return self.last_cpu - before


def _summary(
    times: Sequence[dict[str, float]], batch_size: int, operations: int, matmul_per_second: float
) -> dict[str, float]:
    """Return the median seconds of a step, its quartiles, pairs per second, the shares of its parts, and its memory.

    `matmul_share`: how fast it computes `operations`, over how fast the machine multiplies matrices; 0 if they were
    not counted.
    """
    whole = [each["wait"] + each["compute"] + each["optimizer"] for each in times]
    low, middle, high = _quartiles(whole)
    shares = {f"{part}_share": sum(each[part] for each in times) / sum(whole) for part in ("wait", "optimizer")}
    cpu_low, cpu, cpu_high = _quartiles([each["cpu"] for each in times])
    shares |= {"cpu_low": cpu_low, "cpu_high": cpu_high}
    rate = batch_size / middle
    compute = statistics.median(each["compute"] for each in times)
    shares["matmul_share"] = operations / compute / matmul_per_second
    shares["peak_bytes"] = max(each["memory"] for each in times)
    return {"seconds": middle, "low": low, "high": high, "cpu_seconds": cpu, "pairs_per_second": rate, **shares}


def _quartiles(values: Sequence[float]) -> Sequence[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3


def table(result: dict[str, Any]) -> str:
    """Return the measurements as a table, with times over the student's alone and speeds over the official order."""
    sides = result["sides"]
    head = (
        f"{result['size']}, {result['device']}, {result['threads']} threads, batch {result['batch_size']}, relevance "
        f"{result['captions']:,} x {result['videos']:,}, medians of {result['steps']} steps in turn"
    )
    lines = [
        head,
        "matrices: " + ", ".join(f"{rate / 1e9:,.0f} G/s in {name}" for name, rate in _rates(result)),
        f"{'':38} {'':>9} {'':>17} {'CPU':>8} {'':>7} {'time of':>8} {'CPU of':>8} {'speed of':>8} "
        f"{'':>6} {'':>6} {'of matr.':>8}",
        f"{'':38} {'ms/step':>9} {'quartiles':>17} {'ms/step':>8} {'pairs/s':>7} {'student':>8} {'student':>8} "
        f"{'official':>8} "
        f"{'wait':>6} {'optim.':>6} {'speed':>8} {'peak GB':>8}",
    ]
    for name, side in sides.items():
        quartiles = f"{1e3 * side['low']:.1f} to {1e3 * side['high']:.1f}"
        of_base = f"{side['seconds'] / sides[BASE]['seconds']:.2f}x" if BASE in sides else ""
        of_cpu = f"{side['cpu_seconds'] / sides[BASE]['cpu_seconds']:.2f}x" if BASE in sides else ""
        of_official = f"{sides[OFFICIAL]['seconds'] / side['seconds']:.2f}x" if OFFICIAL in sides else ""
        times = f"{1e3 * side['seconds']:9.1f} {quartiles:>17} {1e3 * side['cpu_seconds']:8.1f}"
        ratios = f"{side['pairs_per_second']:7.1f} {of_base:>8} {of_cpu:>8} {of_official:>8}"
        shares = f"{side['wait_share']:6.1%} {side['optimizer_share']:6.1%}"
        of_matrices = f"{side['matmul_share']:.1%}" if side["matmul_share"] else ""
        lines.append(f"{name:38} {times} {ratios} {shares} {of_matrices:>8} {side['peak_bytes'] / 1e9:8.2f}")
    return "\n".join(lines)


def _rates(result: dict[str, Any]) -> list[tuple[str, float]]:
    return list(result.get("matmul_per_second", {}).items())
