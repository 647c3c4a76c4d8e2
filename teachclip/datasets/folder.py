"""The folder of a data set that is made: its record, its videos and captions, and whether it is complete."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teachclip.errors import DataError
from teachclip.store.files import LOCK, explain_failed_write, locked_folder, read_json, write_atomic
from teachclip.store.fingerprint import describe_difference, fingerprint_of

MANIFEST, PARTIAL_MANIFEST = "manifest.json", "manifest.partial.json"
Mapper = Callable[..., Iterable[Any]]
"""A function as `map`."""


def check_folder(folder: Path, settings: Mapping[str, Any], name: str) -> None:
    """Raise DataError unless `folder` is empty or was begun with the same settings.

    `name`: of the data set, such as "Shapes". `settings` has `version`, the format of the folder.
    """
    for file in (MANIFEST, PARTIAL_MANIFEST):
        path = folder / file
        if not path.exists():
            continue
        recorded = read_record(path, name)["settings"]
        if recorded.get("version") != settings["version"]:
            raise DataError(
                f"{folder} has the format {recorded.get('version')} of an older teachclip, expected "
                f"{settings['version']}; delete the folder and make the dataset again"
            )
        difference = describe_difference(recorded, settings)
        if difference:
            raise DataError(
                f"{folder} holds another {name} dataset ({difference}); choose another folder or delete it"
            )
        return
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if names:
        raise DataError(f"{folder} holds {', '.join(names[:3])} and no {name} dataset; choose an empty folder")


def read_record(path: Path, name: str) -> dict[str, Any]:
    """Return a record with `settings`. Raises DataError if it cannot be read."""
    try:
        content = read_json(path)
        dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a record of a {name} dataset ({error!r}); delete its folder"
        ) from error
    return content


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """Return the manifest of a complete dataset: its settings and results. Raises DataError if it cannot be read."""
    return read_record(folder / MANIFEST, name)


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Record what is being made, and remove the manifest until it is complete."""
    write_atomic(folder / PARTIAL_MANIFEST, json.dumps({"settings": settings}, indent=1).encode())
    (folder / MANIFEST).unlink(missing_ok=True)


def complete(folder: Path, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write the manifest, which says that everything is there."""
    content = {"settings": settings, "fingerprint": fingerprint_of(settings), "results": results}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1).encode())
    (folder / PARTIAL_MANIFEST).unlink(missing_ok=True)


@contextmanager
def mapping(workers: int) -> Iterator[Mapper]:
    """Yield a function as `map`, which works in `workers` processes and keeps the order."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.map(function, *arguments, chunksize=8)


@contextmanager
def making(
    folder: Path, record: Mapping[str, Any], name: str, *, workers: int, files: Sequence[str]
) -> Iterator[Mapper | None]:
    """Hold a dataset's folder while its missing files are made; yield a `mapping`, or None if there is nothing to do.

    `record`: as `settings` of `check_folder`; `files`: the names of all of them but the manifest. Raises DataError if
    `workers` is less than 1 or the folder contains something else, and StoreError if it cannot be written.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; allowed: 1 or more")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder, record, name)  # before the lock, which leaves a file in the folder
        with locked_folder(folder), mapping(workers) as each:
            check_folder(folder, record, name)
            if all((folder / file).exists() for file in (MANIFEST, *files)):
                yield None
                return
            begin(folder, record)
            yield each
    except OSError as error:
        raise explain_failed_write(error, folder, f"the {name} dataset", 50_000_000) from error


@dataclass(frozen=True)
class SplitCounts:
    """How many videos the splits of a dataset have, and its seed. Raises DataError if a value is not allowed."""

    train_videos: int = 400
    val_videos: int = 150
    test_videos: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, {"train_videos": 1, "val_videos": 1, "test_videos": 1, "seed": 0})

    def count(self, split: str) -> int:
        """Return the number of videos of a split."""
        return int(getattr(self, f"{split}_videos"))


def files_of(settings: SplitCounts, splits: Sequence[str]) -> list[str]:
    """Return the files of a dataset of these splits but for its manifest, by their names in its folder."""
    videos = [f"videos/{video_file(split, number)}" for split in splits for number in range(settings.count(split))]
    return ["captions.csv", "clip/pretraining.json", *videos]


def video_file(split: str, number: int) -> str:
    """Return the name of the file of a video of a split."""
    return f"{split}{number}.mp4"


def check_counts(settings: Any, least: Mapping[str, int]) -> None:
    """Raise DataError if an attribute of `settings` is less than `least` says."""
    for name, allowed in least.items():
        if getattr(settings, name) < allowed:
            raise DataError(f"{name} is {getattr(settings, name)}; allowed: {allowed} or more")


def captions_table(rows: Iterable[tuple[str, str, str]]) -> bytes:
    """Return a table of the file of a video, a caption and the split, in the columns that the format `csv` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "caption", "split"])
    writer.writerows(rows)
    return text.getvalue().encode()


def write_missing(
    folder: Path,
    videos: Mapping[str, Any],
    write: Callable[..., None],
    argument: str,
    each: Mapper,
    *,
    size: int,
    progress: bool,
) -> None:
    """Write the files of `videos`, of which some may exist, by `write(path, video, argument)`.

    `videos`: what is shown, by the name of its file. `size`: bytes of a file, for the message when the disk is full.
    Raises StoreError if they cannot be written.
    """
    folder.mkdir(exist_ok=True)
    missing = {folder / name: video for name, video in videos.items() if not (folder / name).exists()}
    done = each(write, missing, missing.values(), [argument] * len(missing))
    try:
        for _ in tqdm(done, total=len(missing), desc="make videos", unit="video", disable=not progress):
            pass
    except OSError as error:
        raise explain_failed_write(error, folder, "the videos", len(missing) * size) from error
