"""Folders that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from teachclip.errors import CheckpointError


def check_replaceable(folder: Path, own_files: Collection[str], is_ours: Callable[[Path], bool]) -> None:
    """Raise CheckpointError unless `folder` is new, empty, or an export of ours with nothing else in it.

    `own_files`: all that an export may hold. `is_ours`: whether a folder with nothing else is one.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()}
    if others := names - set(own_files):
        other = ", ".join(sorted(others)[:3])
        raise CheckpointError(f"{folder} holds {other}, which is no export of ours; choose another folder")
    if names and not is_ours(folder):
        raise CheckpointError(f"{folder} holds another model; choose another folder")


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which takes the place of `folder` when the block ends without an error.

    Otherwise `folder` stays as it was. Everybody may read what was written. Raises OSError.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (temporary, *temporary.rglob("*")):  # some writers make files that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            os.replace(folder, before)
        os.replace(temporary, folder)
    except BaseException:
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
