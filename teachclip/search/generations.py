"""The folder of an index: generations, each made by one student with one way of cutting, and which one is searched.

`index.json` names the generation that answers queries. With another student or other parts, `index` makes a new
generation beside it and names that one, by an atomic rename, once all videos are in it. Until then, and after a kill,
the former one answers. A generation that was replaced is removed by the next run, so that queries that still use it
can end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from teachclip.data.video.cutting import Cutting
from teachclip.errors import DataError, StoreError
from teachclip.search.engines import Engine, open_engine
from teachclip.search.state import FILE, State
from teachclip.store.files import make_folder, read_json, write_atomic
from teachclip.store.fingerprint import check_seal, seal

INDEX_FILE, SETTINGS_FILE, VECTORS = "index.json", "settings.json", "vectors"
FORMAT = 1
_NAME = re.compile(r"generation-\d{4,}")


@dataclass(frozen=True)
class EngineSettings:
    """Which engine keeps the vectors, and the address of its server, None for a folder in the index."""

    name: str = "lance"
    uri: str | None = None


@dataclass(frozen=True)
class Encoding:
    """What may make encoding faster: what encoders compute in, and whether keyframes alone are read.

    keyframes: None: as the student was trained.
    """

    precision: str = "float32"
    keyframes: bool | None = None


@dataclass(frozen=True)
class Settings:
    """What the vectors of a generation were made by.

    model: the student's folder, file or hub id. fingerprint: of `provenance`, which is all that vectors depend on
    besides the videos and `cutting`. dim: of a vector. stamps: of the model's files, to see that they are unchanged
    without reading them. collection: the name of the table on an engine's server.
    """

    model: str
    fingerprint: str
    provenance: Mapping[str, Any]
    dim: int
    cutting: Cutting
    engine: EngineSettings
    collection: str
    stamps: Mapping[str, Any] = field(default_factory=dict)
    encoding: Encoding = Encoding()

    def makes_the_same(self, other: Settings) -> bool:
        """Return whether the vectors of both are the same and in the same place."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("fingerprint", "cutting", "engine", "encoding")
        )


@dataclass(frozen=True)
class Generation:
    """A generation of an index: its folder, its settings and its state."""

    folder: Path
    settings: Settings

    @cached_property
    def state(self) -> State:
        """What is in the generation."""
        return State(self.folder / FILE)

    def engine(self) -> Engine:
        """Open the engine that holds the vectors."""
        settings = self.settings
        return open_engine(
            settings.engine.name,
            self.folder / VECTORS,
            dim=settings.dim,
            collection=settings.collection,
            uri=settings.engine.uri,
        )


def current_generation(index: Path) -> Generation | None:
    """Return the generation that answers queries, None if there is no index. Raises StoreError, DataError."""
    name = _current_name(index)
    return None if name is None else read_generation(index / name)


def _current_name(index: Path) -> str | None:
    file = index / INDEX_FILE
    if not file.exists():
        if index.exists() and not index.is_dir():
            raise DataError(f"{index} is a file; an index is a folder")
        return None
    content = _sealed(file)
    if content.get("format") != FORMAT:
        raise StoreError(f"{file}: format is {content.get('format')!r}, this version reads {FORMAT}; index anew")
    return str(content["current"])


def _sealed(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
        check_seal(content)
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return content


def read_generation(folder: Path) -> Generation:
    """Read the settings of a generation. Raises StoreError if they are missing or damaged."""
    content = _sealed(folder / SETTINGS_FILE)
    try:
        content.setdefault("encoding", asdict(Encoding()))  # of an index from before there was a choice
        values = {name: content[name] for name in Settings.__dataclass_fields__}
        values["encoding"] = Encoding(**values["encoding"])
        values["cutting"] = Cutting(**values["cutting"])
        values["engine"] = EngineSettings(**values["engine"])
        return Generation(folder, Settings(**values))
    except (KeyError, TypeError) as error:
        raise StoreError(f"{folder / SETTINGS_FILE}: is not of this version ({error}); index anew") from error


def generation_for(index: Path, settings: Settings) -> Generation:
    """Return the generation of these settings: the current one, one that was interrupted, or a new one.

    Removes all others but the current one. The first generation of an index answers queries while it is made.
    """
    make_folder(index)
    current = _current_name(index)
    found: Generation | None = None
    folders = sorted(folder for folder in index.glob("generation-*") if _NAME.fullmatch(folder.name))
    for folder in folders:
        if not (folder / FILE).exists() and folder.name != current:
            continue  # not one of an index: it may hold videos of the user
        try:
            generation = read_generation(folder)
            same = generation.settings.makes_the_same(settings)
        except StoreError:
            same = False
            if folder.name == current:
                raise
        if same and (found is None or folder.name == current):
            found = generation
        elif folder.name != current:
            _remove(folder)
    if found is not None:
        write_settings(found.folder, settings=_updated(found.settings, settings))
        return read_generation(found.folder)
    numbers = [int(folder.name.rpartition("-")[2]) for folder in folders]
    folder = index / f"generation-{max(numbers, default=0) + 1:04d}"
    make_folder(folder)
    State.create(folder / FILE)
    write_settings(folder, settings)
    generation = read_generation(folder)
    if current is None:
        make_current(index, generation)
    return generation


def _updated(old: Settings, new: Settings) -> Settings:
    """Return the old settings, with the present place of the model."""
    values = {name: getattr(old, name) for name in Settings.__dataclass_fields__}
    return Settings(**{**values, "model": new.model, "stamps": new.stamps})


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the settings of a generation."""
    content = json.dumps(seal(asdict(settings)), indent=1, ensure_ascii=False)
    write_atomic(folder / SETTINGS_FILE, content.encode("utf-8", "surrogateescape"))


def make_current(index: Path, generation: Generation) -> None:
    """Let a generation answer queries from now on."""
    content = json.dumps(seal({"format": FORMAT, "current": generation.folder.name}))
    write_atomic(index / INDEX_FILE, content.encode())


def _remove(folder: Path) -> None:
    """Remove a generation; its settings first, so that a kill leaves nothing that looks complete, its state last."""
    with contextlib.suppress(StoreError, DataError):
        generation = read_generation(folder)
        if generation.settings.engine.name != "lance":  # its table is on a server, not in the folder
            engine = generation.engine()
            engine.delete(None)
            engine.close()
    (folder / SETTINGS_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def model_stamps(model: str) -> dict[str, Any]:
    """Return size and time of the files of a model's folder or file; empty for a hub id."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
    stamps = {}
    for file in files:
        status = os.stat(file)
        stamps[file.name] = [status.st_size, status.st_mtime_ns]
    return stamps
