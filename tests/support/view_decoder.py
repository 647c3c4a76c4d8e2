"""Decoders that stand in for the real one, in the processes that decode."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.workers import decode_file
from teachclip.errors import VideoError


def augmented(path, sampling, size, start, end, on_error, view):
    """View 0 is the plain sampling, others every second frame of a twice as fine one; view 2 lacks one."""
    log(path, view)
    if view == 0:
        return decode_file(path, sampling, size)
    fine = decode_file(path, FrameSampling("intervals", 2 * sampling.count), size)
    return fine[(view + 1) % 2 :: 2][: sampling.count - (view == 2)]


def failing(path, sampling, size, start, end, on_error, view):
    """Some videos cannot be decoded, or only on the second attempt."""
    name, tries = Path(path).stem, log(path, view)
    if name == "bad" or (name == "half" and on_error == "skip"):
        raise VideoError(f"{path}: is not a video")
    if name == "dies" or (name == "once" and tries == 1):
        os._exit(3)
    if name == "slow":
        time.sleep(100)
    return np.full((1 if name == "half" else sampling.count, 3, size.size, size.size), 7, np.uint8)


def log(path, view):
    """Log a line for every decoded view; return how many lines this view has."""
    file = Path(path).parent / "decoded.txt"
    with open(file, "a") as out:
        out.write(f"{Path(path).stem} {view}\n")
    return file.read_text().splitlines().count(f"{Path(path).stem} {view}")


def decoded(folder):
    """Return the lines since the last call, sorted."""
    file = folder / "decoded.txt"
    lines = sorted(file.read_text().splitlines()) if file.exists() else []
    file.unlink(missing_ok=True)
    return lines
