"""Video files: find them in a folder by name, hash them, and find files that several splits share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tqdm import tqdm

from teachclip.data.annotations.own_names import is_junk, paths_below
from teachclip.data.annotations.records import Catalog, Video
from teachclip.data.formats.problems import Problems
from teachclip.data.video.video_file import check_status
from teachclip.errors import DataError, StoreError, VideoError
from teachclip.processes import usable_cores
from teachclip.store.files import file_hash, read_json, write_atomic

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov"),
    *(".m4v", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".3gp"),
    *(".mts", ".m2ts", ".vob", ".ogv", ".ogg", ".gif"),
)
"""Of files that differ in the extension only, the one that comes first here is used."""


def locate_videos(root: Path, names: Sequence[str], *, tolerant: bool = False) -> dict[str, Path]:
    """Find a file for each name, walking the folder `root` once.

    A name is a file name or a path relative to `root`, with or without one of `EXTENSIONS`. `tolerant`: it may also
    be an absolute path, of this or another computer, and differ from its file in upper and lower case; a message of
    the log says so. Names without a file are absent from the result; several names may give one file.

    Raises DataError if `root` is not a folder or has no video, and for all names that match several files.
    """
    files = list(find_videos(root))
    index = _index(map(PurePosixPath, files), _normal)
    located: dict[str, Path] = {}
    others: list[str] = []
    problems = Problems()
    for name in names:
        with problems.collected():
            if matches := index.get(_normal(str(PurePosixPath(name)))):
                located[name] = root / _choose(root, name, matches)
            else:
                others.append(name)
    if tolerant and others:
        folded = _index(map(PurePosixPath, files), _folded)
        found = _locate_otherwise(root, others, index, folded, problems)
        located.update(found)
        _tell(root, found)
    problems.raise_all()
    return located


_Index = dict[str, list[PurePosixPath]]


def _index(files: Iterable[PurePosixPath], normal: Callable[[str], str]) -> _Index:
    """Return the files by their paths and names, with and without extension, as `normal` writes them."""
    index: _Index = {}
    for file in files:
        for key in {normal(key) for key in (str(file), str(file.with_suffix("")), file.name, file.stem)}:
            index.setdefault(key, []).append(file)
    return index


def _locate_otherwise(
    root: Path, names: Sequence[str], index: _Index, folded: _Index, problems: Problems
) -> dict[str, Path]:
    """Find files for names by other paths and in any case; names that match several files go to `problems`."""
    found: dict[str, Path] = {}
    paths = paths_below(root, names)
    for name in names:
        with problems.collected():
            for path in (name, *paths.get(name, ())):
                if matches := index.get(_normal(path)):
                    found[name] = root / _choose(root, path, matches)
                elif matches := folded.get(_folded(path)):
                    found[name] = root / _choose(root, path, matches, _folded)
                if name in found:
                    break
            else:
                if os.path.isabs(name) and os.path.isfile(name) and name.lower().endswith(EXTENSIONS):
                    found[name] = Path(name)
    return found


def _tell(root: Path, found: Mapping[str, Path]) -> None:
    """Log how many names were read in another way than they are written, and the first of them."""
    if found:
        name, path = next(iter(found.items()))
        what = "1 video has" if len(found) == 1 else f"{len(found):,} videos have"
        logger.warning(f"{what} another name or path than the file in {root}: {name!r} is taken for {path}")


def find_videos(root: Path, unreadable: list[str] | None = None) -> dict[str, Path]:
    """Return every video file below `root` by its path relative to `root`, in a fixed order.

    `unreadable` gets the folders that cannot be listed. Raises DataError if `root` is not a folder or has no video.
    """
    _check_folder(root)
    files = {str(file): root / file for file in _walk(root, unreadable)}
    if not files:
        raise DataError(f"video folder {root} has no file with the extension {', '.join(EXTENSIONS)}")
    return files


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"video folder {root} {'is a file' if root.exists() else 'does not exist'}")


def _walk(root: Path, unreadable: list[str] | None = None) -> Iterator[PurePosixPath]:
    """Yield the video files below `root`, relative to it, in a fixed order. Links are followed, loops are not."""
    seen: set[tuple[int, int]] = set()
    failed = [] if unreadable is None else unreadable
    for folder, folders, files in os.walk(
        root, followlinks=True, onerror=lambda error: failed.append(error.filename)
    ):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_junk(name))
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        videos = [name for name in sorted(files) if PurePosixPath(name).suffix.lower() in EXTENSIONS]
        yield from (below / name for name in videos if not is_junk(name))


def _choose(
    root: Path, name: str, matches: Sequence[PurePosixPath], normal: Callable[[str], str] | None = None
) -> PurePosixPath:
    """Return the matching file: the exact path, else the first extension in the one folder that has the name.

    `normal`: how names are compared if not exactly. Raises DataError for files of several folders, or if they differ
    in more than the extension.
    """
    spell = normal or _normal
    wanted = spell(str(PurePosixPath(name)))
    exact = [file for file in matches if wanted in (spell(str(file)), spell(str(file.with_suffix(""))))]
    first, *others = exact or matches
    other = next((file for file in others if file.with_suffix("") != first.with_suffix("")), None)
    if normal is not None and len({file.suffix.lower() for file in (first, *others)}) <= len(others):
        other = other or others[0]  # clip.MP4 and clip.mp4
    if other is not None and (normal is not None or other.parent != first.parent):
        places = f"{root / first} and {root / other}"
        raise DataError(f"video {name!r} matches {places}; give the path below {root} or remove one of the files")
    return min((first, *others), key=lambda file: (EXTENSIONS.index(file.suffix.lower()), file))


def _folded(name: str) -> str:
    """Return one spelling of upper and lower case, and of the separators of folders."""
    return _normal(name.replace("\\", "/")).casefold()


def _normal(name: str) -> str:
    """Return one spelling of accented characters: macOS decomposes them in file names."""
    return unicodedata.normalize("NFC", name)


Stamp = list[int]

UNREADABLE = "unreadable"
"""Replaces the hash of a file that cannot be read."""


def file_facts(
    videos: Sequence[Video], cache: Path, *, progress: bool, time_limit: float | None = None
) -> dict[str, dict[str, Any]]:
    """Return row, size in bytes and sha256 of the file of every video, by id; of a segment also its start and end.

    Threads hash in parallel, as hashlib releases the interpreter lock. `cache` keeps the hash of a file until its
    size, inode or one of its times changes, so that a second run reads no file; deleting it is safe. A file that is a
    pipe or a device, larger than any video, or cannot be read in `time_limit` seconds gets the hash `UNREADABLE`;
    decoding says why.
    """
    known = _read_cache(cache)
    paths = list(dict.fromkeys(os.path.abspath(video.path) for video in videos))  # segments of a file share its hash
    with ThreadPoolExecutor(min(8, usable_cores())) as executor:
        results = executor.map(lambda path: _hash_file(path, known, time_limit), paths)
        bar = tqdm(results, total=len(paths), desc="hash", unit="video", delay=1, disable=not progress)
        facts = dict(zip(paths, bar, strict=True))
    fresh = {path: fact for path, fact in facts.items() if fact is not None}
    if any(known.get(path) != fact for path, fact in fresh.items()):
        _write_cache(cache, {**known, **fresh})
    return {video.id: _fact(row, video, facts[os.path.abspath(video.path)]) for row, video in enumerate(videos)}


def _fact(row: int, video: Video, fact: tuple[Stamp, str] | None) -> dict[str, Any]:
    """Return the facts of one video; a whole file has neither start nor end."""
    span = {name: value for name, value in (("start", video.start), ("end", video.end)) if value is not None}
    return {"row": row, "bytes": fact[0][0] if fact else 0, "sha256": fact[1] if fact else UNREADABLE, **span}


def _hash_file(path: str, known: dict[str, tuple[Stamp, str]], time_limit: float | None) -> tuple[Stamp, str] | None:
    """Return the stamp and hash of a file, or None if it cannot be read."""
    try:
        status = os.stat(path)
        check_status(path, status)
        stamp, fact = _stamp(status), known.get(path)
        if fact and fact[0] == stamp:
            return fact
        # some files of the system have no size and wait for ever when they are read
        return stamp, file_hash(path, time_limit=time_limit) if status.st_size else hashlib.sha256().hexdigest()
    except (OSError, StoreError, VideoError):
        return None


def file_stamp(path: Path) -> Stamp | None:
    """Return what changes when a file is written or replaced, None if there is none."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _stamp(status: os.stat_result) -> Stamp:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_cache(path: Path) -> dict[str, tuple[Stamp, str]]:
    """Return the content of the cache, empty if it is damaged or absent."""
    try:
        content = read_json(path)
        return {name: (list(map(int, stamp)), str(sha256)) for name, (stamp, sha256) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}


def _write_cache(path: Path, facts: dict[str, tuple[Stamp, str]]) -> None:
    """Save the cache. It only saves time: where it cannot be written, the run continues without it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(facts).encode())


class Overlap(NamedTuple):
    """One file, or files of the same content, in several splits: the split and id of each of their videos."""

    videos: tuple[tuple[str, str], ...]
    same_file: bool

    @property
    def message(self) -> str:
        """Which videos are the same, two per split."""
        groups = []
        for split in dict.fromkeys(split for split, _ in self.videos):
            ids = [video_id for name, video_id in self.videos if name == split]
            more = f" and {len(ids) - 2} more" if len(ids) > 2 else ""
            groups.append(f"{split} {', '.join(map(repr, ids[:2]))}{more}")
        return (
            f"{' and '.join(groups)} are {'segments of one file' if self.same_file else 'files of the same content'}"
        )


def overlaps(catalog: Catalog, facts: Mapping[str, Mapping[str, Any]]) -> list[Overlap]:
    """Return the files that are in more than one split, in the order of the catalogue.

    `facts`: `sha256` of the file of each video, by video id, as `file_facts` returns them. A
    file that is absent from them or could not be read is compared by its path alone.
    """
    groups: dict[str, list[tuple[str, Video]]] = {}
    for split in catalog.splits:
        for video in split.videos:
            sha256 = facts.get(video.id, {}).get("sha256", "unreadable")
            key = str(video.path) if sha256 == "unreadable" else sha256
            groups.setdefault(key, []).append((split.name, video))
    return [
        Overlap(tuple((name, video.id) for name, video in group), len({video.path for _, video in group}) == 1)
        for group in groups.values()
        if len({name for name, _ in group}) > 1
    ]


def describe_overlaps(shared: Sequence[Overlap]) -> list[str]:
    """Return a line with the number of files in several splits and the first of them; no line without overlaps."""
    if not shared:
        return []
    count = "1 file is" if len(shared) == 1 else f"{len(shared):,} files are"
    more = "" if len(shared) == 1 else f" and {len(shared) - 1:,} more"
    return [f"{count} in more than one split: {shared[0].message}{more}"]
