"""Files that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import stat
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from teachclip.errors import BusyError, StoreError

log = logging.getLogger(__name__)

LOCK = ".lock"
"""The file in a folder that the processes which write there lock; its content means nothing."""

OWNER = ".owner"
"""The file in a folder that says which process works there; `.owner.lock` beside it is what that process locks."""

PATIENCE = 10.0
"""Seconds to wait for a lock before a log line says so."""


class _HashingFile:
    """A file that takes the sha256 of what is written to it, so that nothing has to be read back."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)


def check_regular(path: str | Path) -> None:
    """Raise OSError if `path` is not a regular file: reading a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file", str(path))


def file_hash(path: str | Path, *, time_limit: float | None = None) -> str:
    """Return the sha256 of a file's content, in hexadecimal.

    Raises StoreError if it cannot be read, or not in `time_limit` seconds.
    """
    digest, started = hashlib.sha256(), time.monotonic()
    try:
        check_regular(path)
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                if time_limit is not None and time.monotonic() - started > time_limit:
                    raise StoreError(f"{path} cannot be read in {time_limit:g} seconds")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, or ValueError in one line if it is not JSON in UTF-8."""
    check_regular(path)
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def open_file_limit() -> int:
    """Return how many files this process may have open; it is raised first as far as the system lets it.

    Many systems start processes with 1024, for the sake of old programs, and let each ask for far more.
    """
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses what it says is allowed
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        now = most
    return 2**20 if now == resource.RLIM_INFINITY else now


def map_npy(path: Path) -> np.ndarray:
    """Map a `.npy` file read-only. Raises ValueError, with the cause, if the file is truncated or not `.npy`."""
    try:
        check_regular(path)
        # A plain array keeps the map alive and is much faster to index than numpy.memmap.
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (
        *(OSError, ValueError, SyntaxError, TypeError, KeyError, OverflowError, tokenize.TokenError),
        *(RecursionError, MemoryError),  # of a header that is nested deeply
    ) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def write_npy(path: Path, array: np.ndarray) -> tuple[Path, str]:
    """Write an array of numbers as `.npy` to a temporary file, as `write_temporary` does: piece by piece, no copy."""
    array = np.ascontiguousarray(array)
    data = array.reshape(-1).view(np.uint8)

    def write(file: Any) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])

    return write_temporary(path, write)


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises StoreError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot create the folder: {error.strerror}") from error


def write_json(path: Path, value: Any) -> tuple[Path, str]:
    """Write a value as JSON to a temporary file, as `write_temporary` does."""
    return write_temporary(path, lambda file: file.write(json.dumps(value).encode()))


def write_temporary(path: Path, write: Callable[[Any], object]) -> tuple[Path, str]:
    """Call `write(file)` with a temporary file beside `path` and flush the file to the disk.

    Returns the temporary file, for `rename_all`, and the sha256 of its content. On any error the file is removed.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # two writers never share a temporary file
    try:
        with open(temporary, "xb") as file:
            hashing = _HashingFile(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk: name the file
            error.filename = str(path)
        raise
    return temporary, hashing.digest.hexdigest()


def rename_all(places: Mapping[Path, Path]) -> None:
    """Rename flushed temporary files to their final names in one folder; the last one once all others are on disk."""
    *others, last = places
    for temporary in others:
        os.replace(temporary, places[temporary])
    _flush_folder(last.parent)
    os.replace(last, places[last])
    _flush_folder(last.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or none; a link stays, and the file behind it is replaced. Raises OSError."""
    path = Path(os.path.realpath(path))
    temporary, _ = write_temporary(path, lambda file: file.write(data))
    try:
        rename_all({temporary: path})
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, so that one process or thread at a time writes there.

    Waits while another process holds it. The operating system releases the lock of a process that dies.
    """
    lock = FileLock(folder / LOCK)
    with contextlib.ExitStack() as stack:
        # A folder may be read-only or cannot be locked (OSError). Where flock is missing, filelock 3.16 to 3.20 raise
        # NotImplementedError; 3.24 and later lock by a file that exists. Renames are atomic all the same.
        with contextlib.suppress(OSError, NotImplementedError):
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                log.warning("%s: another process is writing there; waiting until it finishes", folder)
                lock.acquire()
            stack.callback(lock.release)
        yield


@contextlib.contextmanager
def occupied_folder(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold `folder` for as long as a run works there. `locked_folder` is for single writes, also inside of this one.

    While another process holds it, waits with one log line that names its host and process id, or, without `wait`,
    raises BusyError after `PATIENCE` seconds. The operating system releases the lock of a process that dies.
    """
    lock, owner = FileLock(folder / f"{OWNER}.lock"), folder / OWNER
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):  # as in `locked_folder`
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                if not wait:
                    raise BusyError(f"{folder}: {_named(owner)} works there; wait for it to end or stop it") from None
                log.warning("%s: %s works there; waiting until it finishes", folder, _named(owner))
                lock.acquire()
            stack.callback(lock.release)
            write_atomic(owner, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            stack.callback(owner.unlink, missing_ok=True)
        yield


def _named(owner: Path) -> str:
    """Return what an owner's file says on its first line."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        check_regular(owner)
        if match := re.match(r"process \d+ on [\w.-]+$", owner.read_text(encoding="utf-8"), re.MULTILINE):
            return match[0]
    return "another process"


def explain_failed_write(error: OSError, path: Path, what: str, size: int) -> StoreError:
    """Return the error of a failed write of `size` bytes under `path`, in one line; `what` names what was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} bytes"
        return StoreError(
            f"{path}: the disk is full, {what} needs {need}; free some space and run again, finished shards are kept"
        )
    return StoreError(f"{path}: cannot write {what}: {error.strerror or error}")


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can flush a folder; renames are atomic all the same
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
