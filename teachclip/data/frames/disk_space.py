"""The room that frames take on a disk: said before they are decoded, and refused if it is not there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from teachclip.errors import StoreError
from teachclip.store.array_store import ArrayStore
from teachclip.store.manifest import MANIFEST

log = logging.getLogger(__name__)


def rows_to_write(path: Path, rows: int) -> int:
    """Return how many of the `rows` of a store are not there yet. Raises StoreError if its manifest is damaged."""
    if not (path / MANIFEST).exists():
        return rows
    store = ArrayStore.open(path, complete=False)
    return sum(len(store.shard_rows(shard)) for shard in store.missing_shards())


def check_space(path: Path, what: str, *, need: int, whole: int) -> None:
    """Say how much is written to the store at `path`; nothing if nothing is.

    `what` tells the content, `whole` is the size in bytes of all of it, `need` of what is still missing. Raises
    StoreError, naming the ways out, if that is not free.
    """
    free = free_bytes(path)
    if not need or free is None:
        return
    if need > free:
        more = " more" if need < whole else ""
        raise StoreError(
            f"{path}: frames of {what} need {size_text(need)}{more}, but {size_text(free)} are free there; make "
            "room, choose fewer or smaller frames (frames.count, frames.size) or another folder (stores), or decode "
            "them whenever they are read (frames.store=none)"
        )
    rest = f" ({size_text(need)} of it still to write)" if need < whole else ""
    log.info("frame store: %s: %s%s, %s free at %s", what, size_text(whole), rest, size_text(free), path)


def free_bytes(path: Path) -> int | None:
    """Return the bytes that may be written at `path`, which need not exist yet; None where that cannot be told."""
    there = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def size_text(size: int) -> str:
    """Return a number of bytes for a person: 18.1 GB, 512 GB, 160 kB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.0f} {name}" if size >= 100 * unit else f"{size / unit:.1f} {name}"
