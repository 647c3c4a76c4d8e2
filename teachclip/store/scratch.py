"""Numbers of all items in temporary files, whose pages the system may take back: memory does not grow with items.

They are where `TMPDIR` says, which should not be a folder in memory (tmpfs). A file goes when its array does, or when
the process ends, however it ends.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from teachclip.errors import StoreError

IN_MEMORY = 2**18
"""Bytes up to which an array stays in memory: a file would gain nothing."""

AT_ONCE = 2**14
"""Items that are worked on at a time, so that what is computed in between does not grow with them."""


def blocks(count: int, size: int = AT_ONCE) -> Iterator[slice]:
    """Yield slices of at most `size` items that cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def scratch_array(shape: tuple[int, ...] | int, dtype: Any, *, kept_bytes: int | None = None) -> np.ndarray:
    """Return an array of zeros to be filled; one that takes more than `kept_bytes` lies in a temporary file.

    `kept_bytes`: None for `IN_MEMORY`. Raises StoreError where there is no space for the file.
    """
    kept_bytes = IN_MEMORY if kept_bytes is None else kept_bytes
    shape = (shape,) if isinstance(shape, int) else shape
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= kept_bytes or not size:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="teachclip-") as file:
            _reserve(file.fileno(), size)
            # A plain array keeps the map alive and is much faster to index than numpy.memmap.
            return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=shape))
    except OSError as error:
        raise _no_space(error, size) from error


class Growing:
    """Rows of one type and shape that come block by block; those that take more than `IN_MEMORY` are in a file."""

    def __init__(self, dtype: Any, *shape: int) -> None:
        self._dtype, self._shape = np.dtype(dtype), shape
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="teachclip-")  # noqa: SIM115 `array` closes it

    def append(self, rows: Any) -> None:
        """Add rows, (rows, *shape). Raises StoreError where there is no space for them."""
        data = np.ascontiguousarray(rows, self._dtype)
        if data.shape[1:] != self._shape:
            raise ValueError(f"rows are of shape {data.shape[1:]}, not {self._shape}")
        try:
            self._file.write(data.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise _no_space(error, self._file.tell() + data.nbytes) from error

    def array(self) -> np.ndarray:
        """Return all rows, (rows, *shape); no more can be added."""
        with self._file as file:
            size = file.seek(0, os.SEEK_END)
            shape = (size // max(1, self._dtype.itemsize * math.prod(self._shape)), *self._shape)
            if size <= IN_MEMORY:
                file.seek(0)
                return np.frombuffer(bytearray(file.read()), self._dtype).reshape(shape)
            try:
                file.flush()
                return np.asarray(np.memmap(file, dtype=self._dtype, mode="r+", shape=shape))  # type: ignore[call-overload]
            except OSError as error:
                raise _no_space(error, size) from error


def _no_space(error: OSError, size: int) -> StoreError:
    try:
        folder = tempfile.gettempdir()
    except OSError:  # none that can be written to
        folder = "TMPDIR"
    return StoreError(
        f"{folder}: no temporary file of {max(1, size / 1e6):,.0f} MB or more: {error.strerror or error}; set TMPDIR "
        "to a folder on a disk with space for it"
    )


def _reserve(file: int, size: int) -> None:
    """Take the space of a file at once: a page that is mapped and finds the disk full would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(1 << 20)  # macOS and Windows
    for start in range(0, size, len(zeros)):
        os.write(file, zeros[: size - start])
