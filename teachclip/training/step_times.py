"""Where the time of training steps goes, and the most memory they took."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

import psutil
import torch

DATA, FORWARD, BACKWARD, BOTH, OPTIMIZER = "data", "forward", "backward", "forward_backward", "optimizer"
"""Parts of a step: waiting for its batch, the losses, their gradients (or both, chunk by chunk), the update."""


class StepTimes:
    """Seconds of each part of the steps since the last report.

    A part ends where `mark` names it and begins where the one before ended. On a CUDA device it is timed by events in
    the device's own queue, so that nothing makes the host wait for the device; waiting for data is timed on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any]] = []
        self._steps, self._since = 0, time.perf_counter()

    def start(self) -> None:
        """Begin a step here: what was done since the last mark, such as validation, is of no part."""
        self._since = time.perf_counter()

    def mark(self, part: str) -> None:
        """End a part of the step; after `OPTIMIZER` the step is whole."""
        now = time.perf_counter()
        if part == DATA or self._device.type != "cuda":
            self._host[part] += now - self._since
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((part, event))
        self._since, self._steps = now, self._steps + (part == OPTIMIZER)

    def report(self) -> dict[str, Any]:
        """Return `steps`, `seconds` (mean of a step, by part) and `peak_mb` (see `peak_megabytes`), and begin anew.

        To be called where the host has waited for the device anyway, or it waits here.
        """
        seconds = dict(self._host)
        for (_, begin), (part, end) in zip(self._events, self._events[1:], strict=False):
            if part != DATA:
                end.synchronize()
                seconds[part] = seconds.get(part, 0.0) + begin.elapsed_time(end) / 1000
        steps = max(1, self._steps)
        found = {
            "steps": self._steps,
            "seconds": {part: round(total / steps, 6) for part, total in seconds.items()},
            "peak_mb": peak_megabytes(self._device),
        }
        self._host.clear()
        self._events.clear()
        self._steps = 0
        return found


def peak_megabytes(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process had so far, in MB: `host`, resident, and `device`, if it is CUDA.

    Of the device, what torch allocated for tensors.
    """
    peaks = {"host": _host_bytes() / 1e6}
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device) / 1e6
    return {name: round(value, 1) for name, value in peaks.items()}


def _host_bytes() -> float:
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else 1024.0 * peak  # bytes there, kibibytes elsewhere
