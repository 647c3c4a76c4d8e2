"""What is in the folders of an index now, and what has changed since its last run."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from teachclip.data.annotations.files import file_stamp, find_videos
from teachclip.data.video.video_file import (
    TRANSIENT,
    check_status,
    is_of_the_machine,
    machine_error,
)
from teachclip.errors import StoreError, VideoError
from teachclip.search.state import FileRow, KnownFile
from teachclip.store.files import file_hash

ID_LENGTH = 16
"""Hexadecimal digits of a video's id: among a million videos two share it with a chance of 3 in 100 million."""

SLOWEST_DISK = 5e6
"""Bytes per second at which a file may be read before it counts as one that hangs."""

HASHED_AHEAD = 4
"""Files hashed while others are decoded."""


class Listing(NamedTuple):
    """The video files below some folders, by path; the folders below them that cannot be read; unusable names."""

    files: dict[str, FileRow]
    unreadable: list[str]
    misnamed: list[str]


def list_files(folders: Sequence[str]) -> Listing:
    """List the video files below `folders`. Raises DataError if one does not exist or has no video at all."""
    listing = Listing({}, [], [])
    for folder in folders:
        for path in map(str, find_videos(Path(folder), listing.unreadable).values()):
            if path in listing.files:
                continue
            if not _is_text(path):
                listing.misnamed.append(path)
            elif (row := file_row(path, folder)) is not None:
                listing.files[path] = row
    return listing


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_row(path: str, folder: str) -> FileRow | None:
    """Return a file as it is now, None if it has vanished."""
    stamp = file_stamp(Path(path))
    if stamp is None and not os.path.lexists(path):
        return None
    size, modified = (stamp[0], stamp[1]) if stamp else (0, 0)
    date = date_of(modified)
    return FileRow(path, folder, " ".join(map(str, stamp)) if stamp else "broken link", size, date)


class Changes(NamedTuple):
    """The files that differ from what the last run left.

    new, changed: to look into. again: broken ones that are tried again. gone: paths. kept: how many are as they were.
    """

    new: list[FileRow]
    changed: list[FileRow]
    again: list[FileRow]
    gone: list[str]
    kept: int


def compare(known: Mapping[str, KnownFile], listing: Listing, *, retry: bool = False) -> Changes:
    """Compare files by size, times and inode. `retry`: try all broken files again.

    Files below folders that cannot be read are neither gone nor changed.
    """
    changes = Changes([], [], [], [], 0)
    kept = 0
    for path, row in listing.files.items():
        before = known.get(path)
        if before is None:
            changes.new.append(row)
        elif before.stamp != row.stamp:
            changes.changed.append(row)
        elif before.error is not None and (before.again or retry):
            changes.again.append(row)
        else:
            kept += 1
    hidden = tuple(f"{folder}{os.sep}" for folder in listing.unreadable)
    for path in known:
        if path not in listing.files and path not in listing.misnamed:
            if path.startswith(hidden) and hidden:
                kept += 1
            else:
                changes.gone.append(path)
    return changes._replace(kept=kept)


def hashed(files: Sequence[FileRow]) -> Generator[tuple[FileRow, str, str], None, None]:
    """Yield each file as it is now with the id of its video, or "" and the error. Threads hash some files ahead."""
    with ThreadPoolExecutor(2, thread_name_prefix="hash") as executor:
        waiting = iter(files)
        running = [executor.submit(_identify, file) for file in islice(waiting, HASHED_AHEAD)]
        try:
            while running:
                yield running.pop(0).result()
                running += [executor.submit(_identify, file) for file in islice(waiting, 1)]
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _identify(file: FileRow) -> tuple[FileRow, str, str]:
    try:
        row = file_row(file.path, file.folder) or file
        check_status(file.path, os.stat(file.path))
        digest = file_hash(file.path, time_limit=60 + row.bytes / SLOWEST_DISK)
        return row, digest[:ID_LENGTH], ""
    except OSError as error:
        return file, "", _unreadable(file.path, error)
    except StoreError as error:
        if isinstance(error.__cause__, OSError):
            return file, "", _unreadable(file.path, error.__cause__)
        return file, "", f"{TRANSIENT[0]} {60 + file.bytes / SLOWEST_DISK:.0f} seconds to read {file.path}"
    except VideoError as error:
        return file, "", str(error)


def _unreadable(path: str, error: OSError) -> str:
    """Return the error of a file that cannot be read, which `is_transient` understands."""
    if is_of_the_machine(error):
        return str(machine_error(path, error))
    return f"{path}: cannot be read ({error.strerror or error})"


def date_of(modified: int) -> str:
    """Return a time of change, nanoseconds, as an index keeps it: ISO, UTC."""
    return datetime.fromtimestamp(max(modified, 0) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
