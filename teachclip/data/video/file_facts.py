"""What is known of video files without decoding them: their size and the hash of their content."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teachclip.data.annotations.catalog import Video
from teachclip.errors import StoreError
from teachclip.processes import usable_cores
from teachclip.store.files import file_hash, write_atomic

Stamp = list[int]

UNREADABLE = "unreadable"
"""Stands in place of the hash of a file that cannot be read."""


def file_facts(videos: Sequence[Video], cache: Path, *, progress: bool) -> dict[str, dict[str, Any]]:
    """Return row, size in bytes and sha256 of the file of every video, by id; of a part also its start and end.

    Threads hash, for hashlib lets go of the interpreter. `cache` remembers the hash of a file until its size, inode
    or one of its times change, so that a second run reads no file; deleting it is safe. A file that cannot be read
    gets the hash `UNREADABLE`: decoding will say why.
    """
    known = _read_cache(cache)
    paths = list(dict.fromkeys(os.path.abspath(video.path) for video in videos))  # parts of a file share its hash
    with ThreadPoolExecutor(min(8, usable_cores())) as executor:
        results = executor.map(lambda path: _hash_file(path, known), paths)
        bar = tqdm(results, total=len(paths), desc="hash", unit="video", delay=1, disable=not progress)
        found = dict(zip(paths, bar, strict=True))
    fresh = {path: fact for path, fact in found.items() if fact is not None}
    if any(known.get(path) != fact for path, fact in fresh.items()):
        _write_cache(cache, {**known, **fresh})
    return {video.id: _fact(row, video, found[os.path.abspath(video.path)]) for row, video in enumerate(videos)}


def _fact(row: int, video: Video, fact: tuple[Stamp, str] | None) -> dict[str, Any]:
    """Return what is known of one video; a whole file has no start and no end."""
    part = {name: value for name, value in (("start", video.start), ("end", video.end)) if value is not None}
    return {"row": row, "bytes": fact[0][0] if fact else 0, "sha256": fact[1] if fact else UNREADABLE, **part}


def _hash_file(path: str, known: dict[str, tuple[Stamp, str]]) -> tuple[Stamp, str] | None:
    """Return the stamp and hash of a file, or None if it cannot be read."""
    try:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        fact = known.get(path)
        return fact if fact and fact[0] == stamp else (stamp, file_hash(path))
    except (OSError, StoreError):
        return None


def _read_cache(path: Path) -> dict[str, tuple[Stamp, str]]:
    """Return what the cache knows; nothing if it is damaged or absent."""
    try:
        content = json.loads(path.read_bytes())
        return {name: (list(map(int, stamp)), str(sha256)) for name, (stamp, sha256) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(path: Path, facts: dict[str, tuple[Stamp, str]]) -> None:
    """Save the cache. It only spares time: where it cannot be written, the run goes on without it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(facts).encode())
