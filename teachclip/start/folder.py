"""Whether there is such a folder. Imports neither torch nor transformers, so that a mistyped name is told at once."""

from __future__ import annotations

from pathlib import Path

from teachclip.errors import DataError
from teachclip.registry import closest


def require_folder(folder: Path) -> None:
    """Raise DataError, with the nearest name beside it, if there is no such folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"{folder} is a file, expected a folder of videos")
    parent = folder.parent
    if not parent.is_dir():
        raise DataError(f"{folder}: no such folder, nor is there {parent}")
    beside = [path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    raise DataError(f"{folder}: no such folder{closest(folder.name, beside)}")
