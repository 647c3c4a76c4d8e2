"""Find video files below a folder by the names that annotations give them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from teachclip.errors import DataError

EXTENSIONS = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov"),
    *(".m4v", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".3gp"),
)
"""Of several files that differ only in the extension, the one that comes first here is meant. A .gif is a picture."""


def locate_videos(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find a file for each name, walking through the folder `root` once.

    A name is a file name or a path relative to `root`, with or without one of `EXTENSIONS`. Names without a file are
    absent from the result; several names may mean one file. Raises DataError if `root` is no folder or holds no
    video, or if a name fits files in several folders.
    """
    _check_folder(root)
    index: dict[str, list[PurePosixPath]] = {}
    for file in _walk(root):
        for key in {str(file), str(file.with_suffix("")), file.name, file.stem}:
            index.setdefault(_normal(key), []).append(file)
    if not index:
        raise DataError(f"video folder {root} has no file with the extension {', '.join(EXTENSIONS)}")
    found: dict[str, Path] = {}
    for name in names:
        if matches := index.get(_normal(str(PurePosixPath(name)))):
            found[name] = root / _choose(root, name, matches)
    return found


def find_videos(root: Path) -> dict[str, Path]:
    """Return every video file below `root` by its path relative to it, in a fixed order.

    Raises DataError if `root` is no folder or holds no video.
    """
    _check_folder(root)
    found = {str(file): root / file for file in _walk(root)}
    if not found:
        raise DataError(f"video folder {root} has no file with the extension {', '.join(EXTENSIONS)}")
    return found


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"video folder {root} {'is a file' if root.exists() else 'does not exist'}")


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Yield the video files below `root`, relative to it, in a fixed order. Links are followed, not in circles."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (below / name for name in sorted(files) if PurePosixPath(name).suffix.lower() in EXTENSIONS)


def _choose(root: Path, name: str, matches: Sequence[PurePosixPath]) -> PurePosixPath:
    """Return the file that is meant: the exact path, else the first extension of the one folder that has the name."""
    wanted = _normal(str(PurePosixPath(name)))
    exact = [file for file in matches if wanted in (_normal(str(file)), _normal(str(file.with_suffix(""))))]
    candidates = exact or list(matches)
    if len({file.parent for file in candidates}) > 1:
        places = " and ".join(str(root / file) for file in candidates[:2])
        raise DataError(f"video {name!r} may be {places}; give the path below {root} or remove one of the files")
    return min(candidates, key=lambda file: (EXTENSIONS.index(file.suffix.lower()), file))


def _normal(name: str) -> str:
    """Return one spelling of accented letters: macOS takes them apart in file names."""
    return unicodedata.normalize("NFC", name)
