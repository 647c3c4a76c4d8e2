"""The frame store: every video decoded, resized and cropped once, kept as uint8."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from teachclip.data.annotations.catalog import SHOWN
from teachclip.data.annotations.files import UNREADABLE, file_facts
from teachclip.data.annotations.records import Video
from teachclip.data.video.video_file import CHANGED, TRANSIENT, is_transient
from teachclip.data.video.workers import Decoded, Decoding, Failure
from teachclip.errors import DataError, StoreError
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.manifest import MANIFEST

SHARD_BYTES, SHARD_ROWS = 1 << 28, 256
"""The largest shard, and so the most that a crash loses."""

NO_FRAMES = "no frame of it can be decoded"
"""Note on a failed row of a video that `on_error=use_decodable` could not save either: it is not tried again."""


class FrameStore:
    """Decoded frames of some videos; row i is `videos[i]`.

    Videos that could only be decoded in part are in `partially_decoded`, or with `on_error="skip"` in `failures`.
    """

    def __init__(self, store: ArrayStore, videos: Sequence[Video], *, on_error: str = "skip"):
        self.store = store
        self.videos = tuple(videos)
        self.on_error = on_error

    @classmethod
    def open(cls, path: str | Path, videos: Sequence[Video], *, on_error: str = "skip") -> FrameStore:
        """Open a complete store for reading; the files of `videos` are not checked for changes.

        Raises StoreError if it is incomplete or holds other videos.
        """
        store = ArrayStore.open(path)
        held = store.provenance.get("videos", {})
        if {video.id: row for row, video in enumerate(videos)} != {key: fact["row"] for key, fact in held.items()}:
            raise StoreError(f"{path} holds {len(held)} videos, not the {len(videos)} requested ones in their order")
        return cls(store, videos, on_error=on_error)

    @functools.cached_property
    def failures(self) -> dict[str, str]:
        """The errors of videos without frames, by video id."""
        return {self.videos[row].id: error for row, error in sorted(self._failed.items())}

    @functools.cached_property
    def partially_decoded(self) -> dict[str, str]:
        """The errors of videos of which only some frames could be decoded, by video id."""
        rows = sorted(self.store.notes().items())
        return {self.videos[row].id: error for row, error in rows if row not in self._failed}

    @functools.cached_property
    def _failed(self) -> dict[int, str]:
        """The errors of rows that cannot be read."""
        return {**(self.store.notes() if self.on_error == "skip" else {}), **self.store.failures()}

    def rows_of(self, video_ids: Iterable[str]) -> np.ndarray:
        """Return the rows of some videos: (videos,) int64. Raises StoreError for an unknown id."""
        try:
            return np.array([self._rows[video_id] for video_id in video_ids], dtype=np.int64)
        except KeyError as error:
            raise StoreError(f"{self.store.path} has no frames of video {error.args[0]!r}") from error

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {video.id: row for row, video in enumerate(self.videos)}

    def read(self, rows: Sequence[int] | np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Return uint8 (videos, frames, 3, size, size) and the frame mask, bool (videos, frames).

        A short video is padded with zeros and a false mask; normalise first, then multiply by the mask.
        Raises StoreError for a video that could not be decoded.
        """
        frames = torch.from_numpy(self.store.read("frames", rows))
        if self._failed:
            numbers = np.arange(len(self.videos))[rows].tolist()
            if failed := [row for row in numbers if row in self._failed]:
                raise StoreError(f"{self.store.path}: row {failed[0]} is a damaged video: {self._failed[failed[0]]}")
        counts = torch.from_numpy(self.store.read("frame_count", rows))
        return frames, torch.arange(frames.shape[1]) < counts[:, None]

    def provenance_of(self, video_ids: Iterable[str]) -> dict[str, Any]:
        """Return what the frames of some videos depend on, for fingerprints of numbers computed from them."""
        facts = self.store.provenance["videos"]
        shared = {key: value for key, value in self.store.provenance.items() if key != "videos"}
        return {**shared, "videos": {key: {**facts[key], "row": row} for row, key in enumerate(video_ids)}}


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
    retries videos that took too long or killed their process, and failed videos whose file has been replaced.
    A complete store may hold more videos: those that have been removed from the annotations since.
    Several runs at once are safe, but each does all the work.

    Raises StoreError, naming the difference, if `path` holds other videos, another sampling or size, if it holds
    frames of a file that has changed since, or if the missing frames do not fit on the disk. Raises DataError without
    videos.
    """
    videos, path = tuple(videos), Path(path)
    if not videos:
        raise DataError(f"{path}: there are no videos to decode")
    hashes = Path(hashes or path / "file-hashes.json")
    facts = file_facts(videos, hashes, progress=progress, time_limit=decoding.time_limit)
    requested = facts.keys()
    videos, facts = _with_held(path, videos, facts)
    facts = with_names(facts, videos) if view else facts
    row_bytes = bytes_per_video(decoding)
    what = f"{len(videos):,} videos x {decoding.sampling.count} frames x {decoding.transform.size}^2"
    check_space(path, what, need=row_bytes * rows_to_write(path, len(videos)), whole=row_bytes * len(videos))
    store = _open(path, videos, facts, decoding, view)
    todo = rows_to_decode(store, videos, facts, decoding.on_error, requested)
    if todo:
        rows = [row for shard in todo.values() for row in shard]
        bar = tqdm(
            total=len(videos), initial=len(videos) - len(rows), desc="decode", unit="video", disable=not progress
        )
        missing = store.missing_shards()
        outcomes = decoding.run((videos[row], view) for row in rows)
        with bar, contextlib.closing(outcomes):
            for shard, places in todo.items():
                counted = itertools.islice(_counted(outcomes, bar), len(places))
                outcomes_by_row = dict(zip(places, counted, strict=True))
                read = [videos[row] for row in places]
                now = file_facts(read, hashes, progress=False, time_limit=decoding.time_limit)
                outcomes_by_row |= {
                    row: unlike_its_hash(facts[video.id], now[video.id], outcomes_by_row[row])
                    for row, video in zip(places, read, strict=True)
                }
                changed = {videos[row].id: facts[videos[row].id] for row in places}
                store = _write_shard(
                    store, shard, outcomes_by_row, changed, on_error=decoding.on_error, redo=shard not in missing
                )
    return FrameStore(store, videos, on_error=decoding.on_error)


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


def _with_held(
    path: Path, videos: Sequence[Video], facts: dict[str, dict[str, Any]]
) -> tuple[tuple[Video, ...], dict[str, dict[str, Any]]]:
    """Return the videos and facts of the complete store at `path` if it holds all `videos`, and maybe more.

    So a video may be removed from the annotations without decoding the others again. Otherwise returns the arguments.
    """
    if not (path / MANIFEST).exists():
        return tuple(videos), facts
    store = ArrayStore.open(path, complete=False)
    held: dict[str, dict[str, Any]] = store.provenance.get("videos", {})
    span = ("start", "end")
    if not store.complete or not all(
        key in held and all(fact.get(name) == held[key].get(name) for name in span) for key, fact in facts.items()
    ):
        return tuple(videos), facts
    videos_by_id = {video.id: video for video in videos}
    order = sorted(held, key=lambda key: held[key]["row"])
    both = {key: {**facts[key], "row": held[key]["row"]} if key in facts else held[key] for key in order}
    return tuple(videos_by_id.get(key, Video(key, Path(key))) for key in order), both


def bytes_per_video(decoding: Decoding) -> int:
    """Return the bytes of a row: its frames and their number."""
    return math.prod(decoding.shape) + 2


def _open(path: Path, videos: Sequence[Video], facts: Mapping[str, Any], decoding: Decoding, view: int) -> ArrayStore:
    """Open or create the store. Only changed files are accepted here; any other difference raises StoreError."""
    held: Mapping[str, Any] = {}
    if (path / MANIFEST).exists():
        held = ArrayStore.open(path, complete=False).provenance.get("videos", {})
    content = ("bytes", "sha256")
    as_held = {key: fact | {name: held.get(key, fact)[name] for name in content} for key, fact in facts.items()}
    return ArrayStore.open_or_create(
        path,
        provenance={
            **decoding.provenance(augmented=view > 0),
            **({"view": view} if view else {}),
            "videos": as_held,
        },
        arrays={"frames": ArraySpec("uint8", decoding.shape), "frame_count": ArraySpec("int16", ())},
        rows=len(videos),
        rows_per_shard=min(SHARD_ROWS, max(1, SHARD_BYTES // math.prod(decoding.shape))),
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
    facts: Mapping[str, Any],
    *,
    on_error: str,
    redo: bool,
) -> ArrayStore:
    """Write the `outcomes` by row of one shard; `redo` replaces an existing shard and keeps its other rows.

    `facts`: of the files of these videos, by video id; they enter the provenance of the store, which is returned. A
    crash here loses this shard only.
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
    held = store.provenance["videos"]
    if any(held[key] != fact for key, fact in facts.items()):
        store = store.with_provenance({**store.provenance, "videos": {**held, **facts}})
    store.write_shard(shard, arrays, failures=failures, notes=notes)
    return store


def rows_to_decode(
    store: ArrayStore, videos: Sequence[Video], facts: Mapping[str, Any], on_error: str, requested: Collection[str]
) -> dict[int, list[int]]:
    """Return the rows to decode by shard: missing ones, and failed `requested` videos that are worth a retry.

    Raises StoreError if files have changed whose frames are in the store, naming them.
    """
    held = store.provenance["videos"]
    changed = {fact["row"] for key, fact in facts.items() if fact != held[key]}
    missing, failures, notes = store.missing_shards(), store.failures(), store.notes()
    stale = [
        row for row in sorted(changed) if row // store.rows_per_shard not in missing and row not in failures | notes
    ]
    if stale:
        raise _stale(store, [videos[row] for row in stale], facts)
    retried = {row for row in failures | notes if row in changed}
    retried |= {row for row, error in failures.items() if is_transient(error)}
    if on_error == "use_decodable":
        retried |= failures.keys() - notes.keys()
    retried &= {fact["row"] for key, fact in facts.items() if key in requested}
    todo = {shard: list(store.shard_rows(shard)) for shard in missing}
    for row in sorted(retried):
        todo.setdefault(row // store.rows_per_shard, []).append(row)
    return dict(sorted(todo.items()))


def _stale(store: ArrayStore, videos: Sequence[Video], facts: Mapping[str, Any]) -> StoreError:
    """Return the error for stored frames whose files have changed since they were decoded."""

    def described(video: Video) -> str:
        held, now = store.provenance["videos"][video.id], facts[video.id]
        if now["sha256"] == UNREADABLE:
            return f"{video.id} ({video.path} cannot be read now)"
        if held["bytes"] != now["bytes"]:
            return f"{video.id} ({video.path}: {held['bytes']:,} bytes then, {now['bytes']:,} now)"
        return f"{video.id} ({video.path}: other content of the same size)"

    more = f" and {len(videos) - SHOWN} more" if len(videos) > SHOWN else ""
    return StoreError(
        f"{store.path} holds frames of {len(videos)} videos whose files have changed since they were decoded: "
        f"{', '.join(map(described, videos[:SHOWN]))}{more}; restore the files, delete {store.path} to "
        "decode all again, or choose another folder (stores)"
    )


log = logging.getLogger(__name__)


def rows_to_write(path: Path, rows: int) -> int:
    """Return how many of the `rows` of a store are still to be written. Raises StoreError for a damaged manifest."""
    if not (path / MANIFEST).exists():
        return rows
    store = ArrayStore.open(path, complete=False)
    return sum(len(store.shard_rows(shard)) for shard in store.missing_shards())


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
