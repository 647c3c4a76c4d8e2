"""What the machine can do, and what a step takes of it: products of matrices, and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SIDE, SECONDS, FEWEST = 2048, 0.5, 3
"""Rows and columns of the matrices that are multiplied; how long, and how often at least."""


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second (a multiply-add is two) of the fastest of some products of large matrices."""
    matrix = torch.randn(SIDE, SIDE, device=device).to(dtype)
    product: Tensor = matrix @ matrix  # the first one pays for what is set up
    best, begun, products = float("inf"), time.perf_counter(), 0
    while products < FEWEST or time.perf_counter() < begun + SECONDS:
        products += 1
        _wait(device)
        started = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_operations(step: Callable[[], object]) -> int:
    """Return the operations of products of matrices, convolutions and attention in `step()`, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


class PeakMemory:
    """The most bytes that were in use since `reset`: of a GPU what torch took there, else what this process holds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Forget what was in use before. Where the system has no such call, the peak stays that of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        """Return the peak."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def compiled(encoders: nn.Module, *, backend: str = "inductor") -> Iterator[None]:
    """Run both encoders as torch compiles them, until the block ends."""
    parts = [getattr(encoders, name) for name in ("text_model", "vision_model")]
    for part in parts:
        part.compile(backend=backend)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
