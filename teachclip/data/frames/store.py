"""The frame store: every video decoded, resized and cropped once, kept as uint8."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.data.annotations.files import UNREADABLE, file_facts
from teachclip.data.annotations.records import Video
from teachclip.data.video.video_file import CHANGED, TRANSIENT, is_transient
from teachclip.data.video.workers import Decoded, Decoding, Failure
from teachclip.errors import DataError, StoreError
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.manifest import MANIFEST
from teachclip.store.row_plan import as_bytes, row_keys

SHARD_BYTES, SHARD_ROWS = 1 << 28, 256
"""The largest shard, and so the most that a crash loses."""

log = logging.getLogger(__name__)

NO_FRAMES = "no frame of it can be decoded"
"""Note on a failed row of a video that `on_error=use_decodable` could not save either: it is not tried again."""


class FrameStore:
    """Decoded frames of some videos. The store may hold more rows: of videos that left the data, or came since.

    Videos that could only be decoded in part are in `partially_decoded`, or with `on_error="skip"` in `failures`.
    """

    def __init__(
        self, store: ArrayStore, videos: Sequence[Video], facts: Mapping[str, Any], keys: np.ndarray, *, on_error: str
    ):
        """`facts`: of the files of these videos, by id. `keys`: of their rows, as `video_keys` returns them."""
        self.store = store
        self.videos = tuple(videos)
        self.facts = facts
        self.on_error = on_error
        self._rows = dict(zip((video.id for video in videos), store.rows_of(keys).tolist(), strict=True))

    @functools.cached_property
    def failures(self) -> dict[str, str]:
        """The errors of videos without frames, by video id."""
        return {key: self._failed[row] for key, row in self._rows.items() if row in self._failed}

    @functools.cached_property
    def partially_decoded(self) -> dict[str, str]:
        """The errors of videos of which only some frames could be decoded, by video id."""
        notes = self.store.notes()
        return {key: notes[row] for key, row in self._rows.items() if row in notes and row not in self._failed}

    @functools.cached_property
    def _failed(self) -> dict[int, str]:
        """The errors of rows that cannot be read."""
        return {**(self.store.notes() if self.on_error == "skip" else {}), **self.store.failures()}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a video: (frames, 3, size, size)."""
        return self.store.arrays["frames"].shape

    def rows_of(self, video_ids: Iterable[str]) -> np.ndarray:
        """Return the rows of some videos: (videos,) int64. Raises StoreError for an unknown id."""
        try:
            return np.array([self._rows[video_id] for video_id in video_ids], dtype=np.int64)
        except KeyError as error:
            raise StoreError(f"{self.store.path} has no frames of video {error.args[0]!r}") from error

    def read(self, rows: Sequence[int] | np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Return uint8 (videos, frames, 3, size, size) and the frame mask, bool (videos, frames).

        A short video is padded with zeros and a false mask; normalise first, then multiply by the mask.
        Raises StoreError for a video that could not be decoded.
        """
        frames = torch.from_numpy(self.store.read("frames", rows))
        if self._failed:
            numbers = np.arange(self.store.rows)[rows].tolist()
            if failed := [row for row in numbers if row in self._failed]:
                raise StoreError(f"{self.store.path}: row {failed[0]} is a damaged video: {self._failed[failed[0]]}")
        counts = torch.from_numpy(self.store.read("frame_count", rows))
        return frames, torch.arange(frames.shape[1]) < counts[:, None]

    def provenance_of(self, video_ids: Iterable[str]) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""
        facts = with_names(self.facts, self.videos) if "view" in self.store.provenance else self.facts
        shared = self.store.provenance
        return {**shared, "videos": {key: {**facts[key], "row": row} for row, key in enumerate(video_ids)}}

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Return what tells the content of these rows from any other: uint8 (rows, 16)."""
        return self.store.keys_of(rows)


def build_frame_store(
    videos: Sequence[Video],
    decoding: Decoding,
    *,
    path: str | Path,
    view: int = 0,
    hashes: str | Path | None = None,
    progress: bool = True,
) -> FrameStore:
    """Decode the videos that are not in the store at `path` yet and return the store.

    `view`: 0 for the frame sampling itself, above 0 for an augmented view (see `choose_frames`). `hashes`: the file
    that caches the hashes of the videos, which stores of the same videos share; by default it is in `path`.

    A file that cannot be read, takes too long or kills its process is in `FrameStore.failures`; it never stops the
    run. Finished shards are kept, so that a second run continues where the first one stopped. A second run also
    retries videos that took too long or killed their process. Rows are keyed by content: a video that is new, or
    whose file was replaced, is decoded alone, one that left the data keeps its row, which is not used. Several runs
    at once are safe, but each does all the work.

    Raises StoreError, naming the difference, if `path` holds frames of another sampling or size, or if the missing
    frames do not fit on the disk. Raises DataError without videos.
    """
    videos, path = tuple(videos), Path(path)
    if not videos:
        raise DataError(f"{path}: there are no videos to decode")
    hashes = Path(hashes or path / "file-hashes.json")
    facts = file_facts(videos, hashes, progress=progress, time_limit=decoding.time_limit)
    keys = video_keys(videos, facts, view)
    row_bytes = bytes_per_video(decoding)
    what = f"{len(videos):,} videos x {decoding.sampling.count} frames x {decoding.transform.size}^2"
    check_space(path, what, need=row_bytes * rows_to_write(path, keys), whole=row_bytes * len(videos))
    store = _open(path, keys, decoding, view)
    if todo := rows_to_decode(store, keys, decoding.on_error):
        by_key = dict(zip(as_bytes(keys), videos, strict=True))
        shards = {shard: [by_key[key] for key in as_bytes(store.keys_of(rows))] for shard, rows in todo.items()}
        count = sum(map(len, shards.values()))
        bar = tqdm(
            total=len(videos), initial=max(0, len(videos) - count), desc="decode", unit="video", disable=not progress
        )
        missing = store.missing_shards()
        outcomes = decoding.run((video, view) for of_shard in shards.values() for video in of_shard)
        with bar, contextlib.closing(outcomes):
            for shard, of_shard in shards.items():
                decoded = list(itertools.islice(_counted(outcomes, bar), len(of_shard)))
                now = file_facts(of_shard, hashes, progress=False, time_limit=decoding.time_limit)
                checked = [
                    unlike_its_hash(facts[video.id], now[video.id], outcome)
                    for video, outcome in zip(of_shard, decoded, strict=True)
                ]
                outcomes_by_row = dict(zip(todo[shard], checked, strict=True))
                _write_shard(store, shard, outcomes_by_row, on_error=decoding.on_error, redo=shard not in missing)
    return FrameStore(store, videos, facts, keys, on_error=decoding.on_error)


def video_keys(videos: Iterable[Video], facts: Mapping[str, Any], view: int = 0) -> np.ndarray:
    """Return the keys of the rows of some videos, uint8 (videos, 16): of the content of the file, and the segment.

    `facts`: of their files, by id. Videos of equal content have one key, but a file that cannot be read has none to
    compare, so its id tells it from others. An augmented `view` depends on the name of the file too.
    """

    def content(video: Video) -> dict[str, Any]:
        known = {name: value for name, value in facts[video.id].items() if name != "row"}
        augmented = {"name": video.path.name, "view": view} if view else {}
        return known | augmented | ({"id": video.id} if known["sha256"] == UNREADABLE else {})

    return row_keys(map(content, videos))


def unlike_its_hash(
    before: Mapping[str, Any], now: Mapping[str, Any], outcome: Decoded | Failure
) -> Decoded | Failure:
    """Return the frames of a video, or a failure if they need not be those of the file with the known hash.

    `before`, `now`: the facts of the file before and after it was decoded.
    """
    if isinstance(outcome, Failure):
        return outcome
    if before["sha256"] != now["sha256"]:
        return Failure(f"{CHANGED} it was decoded; run the command again when nothing writes it")
    if before["sha256"] == UNREADABLE:
        return Failure(f"{TRANSIENT[0]} frames.time_limit to hash")
    return outcome


def with_names(facts: Mapping[str, Any], videos: Iterable[Video]) -> dict[str, Any]:
    """Return facts of files together with their names, on which augmented views depend."""
    return {video.id: {"name": video.path.name, **facts[video.id]} for video in videos}


def bytes_per_video(decoding: Decoding) -> int:
    """Return the bytes of a row: its frames and their number."""
    return math.prod(decoding.shape) + 2


def _open(path: Path, keys: np.ndarray, decoding: Decoding, view: int) -> ArrayStore:
    """Open or create the store, with a row for each of `keys`. Raises StoreError for one of other provenance."""
    return ArrayStore.open_or_create(
        path,
        provenance={**decoding.provenance(augmented=view > 0), **({"view": view} if view else {})},
        arrays={"frames": ArraySpec("uint8", decoding.shape), "frame_count": ArraySpec("int16", ())},
        keys=keys,
        rows_per_shard=min(SHARD_ROWS, max(1, SHARD_BYTES // math.prod(decoding.shape))),
        what="videos",
    )


def _counted(outcomes: Iterable[Any], bar: Any) -> Iterator[Any]:
    """Advance the progress bar with every outcome."""
    for outcome in outcomes:
        bar.update()
        yield outcome


def _write_shard(
    store: ArrayStore,
    shard: int,
    outcomes: Mapping[int, Decoded | Failure],
    *,
    on_error: str,
    redo: bool,
) -> None:
    """Write the `outcomes` by row of one shard; `redo` replaces an existing shard and keeps its other rows.

    A crash here loses this shard only.
    """
    rows = store.shard_rows(shard)
    arrays = {name: np.zeros((len(rows), *spec.shape), spec.dtype) for name, spec in store.arrays.items()}
    failures: dict[int, str] = {}
    notes: dict[int, str] = {}
    if redo:
        others = [row for row in rows if row not in outcomes]
        failures = {row: error for row, error in store.failures().items() if row in others}
        notes = {row: note for row, note in store.notes().items() if row in others}
        kept = [row for row in others if row not in failures]
        for name, array in arrays.items():
            array[np.array(kept, dtype=np.int64) - rows.start] = store.read(name, kept)
    for row, outcome in outcomes.items():
        if isinstance(outcome, Failure):
            failures[row] = outcome.error
            if on_error == "use_decodable":
                notes[row] = NO_FRAMES
            continue
        arrays["frames"][row - rows.start, : len(outcome.frames)] = outcome.frames
        arrays["frame_count"][row - rows.start] = len(outcome.frames)
        if outcome.error:
            notes[row] = outcome.error
    if redo:
        store.discard(shard)
    store.write_shard(shard, arrays, failures=failures, notes=notes)


def rows_to_decode(store: ArrayStore, keys: np.ndarray, on_error: str) -> dict[int, list[int]]:
    """Return the rows to decode by shard: missing ones, and failed ones of `keys` that are worth a retry."""
    failures, notes = store.failures(), store.notes()
    retried = {row for row, error in failures.items() if is_transient(error)}
    if on_error == "use_decodable":
        retried |= failures.keys() - notes.keys()
    retried &= set(store.rows_of(keys).tolist())
    todo = {shard: list(store.shard_rows(shard)) for shard in store.missing_shards()}
    for row in sorted(retried):
        todo.setdefault(store.shard_of(row), []).append(row)
    return dict(sorted(todo.items()))


def rows_to_write(path: Path, keys: np.ndarray) -> int:
    """Return how many rows the store at `path` lacks of `keys`, (videos, 16). Raises StoreError if it is damaged."""
    wanted = np.unique(keys, axis=0)
    if not (path / MANIFEST).exists():
        return len(wanted)
    return int((~ArrayStore.open(path, complete=False).holds(wanted)).sum())


def check_space(path: Path, what: str, *, need: int, whole: int) -> None:
    """Log how much is going to be written to the store at `path`, if anything is.

    `what` describes the content, `whole` is its size in bytes, `need` the size that is still to be written. Raises
    StoreError, with what to do about it, if the disk has less free space.
    """
    free = free_bytes(path)
    if not need or free is None:
        return
    if need > free:
        more = " more" if need < whole else ""
        raise StoreError(
            f"{path}: frames of {what} need {size_text(need)}{more}, but {size_text(free)} are free there; free "
            "some space, choose fewer or smaller frames (frames.count, frames.size) or another folder (stores), or "
            "decode them whenever they are read (frames.store=none)"
        )
    rest = f" ({size_text(need)} of it still to write)" if need < whole else ""
    log.info("frame store: %s: %s%s, %s free at %s", what, size_text(whole), rest, size_text(free), path)


def free_bytes(path: Path) -> int | None:
    """Return the free bytes at `path`, which need not exist yet; None where the system does not say."""
    existing = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    try:
        return None if existing is None else shutil.disk_usage(existing).free
    except OSError:
        return None


def size_text(size: int) -> str:
    """Return a number of bytes as text: 18.1 GB, 512 GB, 160 kB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.0f} {name}" if size >= 100 * unit else f"{size / unit:.1f} {name}"
