"""Bring an index up to date with its folders: list, compare, hash, decode, encode, write.

Files are decoded by guarded worker processes while the student encodes. Videos are written in batches of whole ones,
so that a kill costs at most `WRITE_SECONDS` of work; `state` says in which order, and why nothing is lost or double.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachclip.console import log, one_line
from teachclip.data.video.cutting import Cutting
from teachclip.errors import BusyError, DataError
from teachclip.search.compressed import chosen_rung, rebuild
from teachclip.search.compression import UNCOMPRESSED
from teachclip.search.engines import Engine
from teachclip.search.generations import (
    Encoding,
    EngineSettings,
    Generation,
    Settings,
    current_generation,
    generation_for,
    make_current,
    model_stamps,
)
from teachclip.search.limits import Limits
from teachclip.search.provenance import student_provenance
from teachclip.search.queries import TEXT_TOWER, load_for_search, write_text_tower
from teachclip.search.scan import Changes, Listing, compare, list_files
from teachclip.search.state import FileRow, KnownFile, State
from teachclip.store.files import occupied_folder
from teachclip.store.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel


@dataclass
class Report:
    """What a run found and did; files are counted or named by their paths.

    new, changed, moved, gone, kept: files. encoded, parts: videos encoded in this run, and their parts. broken: files
    that cannot be read, of this run and earlier ones, and why. partial: files of which some parts cannot be read.
    unreadable: folders that cannot be listed, whose files are left as they were. misnamed: files whose names are not
    UTF-8, which an index cannot hold. search: how the engine searches. seconds: of the whole run.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    gone: int = 0
    kept: int = 0
    encoded: int = 0
    parts: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    search: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """What `index` was asked for; None means as in the index so far, or the default of a new one."""

    model: str | None = None
    parts: str | None = None
    window: float | None = None
    stride: float | None = None
    engine: str | None = None
    uri: str | None = None
    device: str | None = None
    precision: str | None = None
    keyframes: bool | None = None

    def settings(self, index: Path, current: Generation | None) -> tuple[Settings, StudentModel | None]:
        """Return the settings of the generation, and the student if it had to be loaded to know them."""
        old = current.settings if current else None
        model = self._model(index, old)
        cutting = old.cutting if old else Cutting()
        given = {"kind": self.parts, "window": self.window, "stride": self.stride}
        if self.window is not None and self.stride is None:
            given["stride"] = self.window / 2
        changed = {name: value for name, value in given.items() if value is not None}
        cutting = Cutting(**{**vars(cutting), **changed})
        encoding = old.encoding if old else Encoding()
        if self.precision is not None:
            encoding = replace(encoding, precision=self.precision)
        if self.keyframes is not None:
            encoding = replace(encoding, keyframes=self.keyframes)
        engine = old.engine if old else EngineSettings()
        if self.engine is not None or self.uri is not None:
            uri = self.uri if self.uri is None or "://" in self.uri else os.path.abspath(self.uri)
            engine = EngineSettings(self.engine or engine.name, uri)
        stamps = model_stamps(model)
        if old is not None and stamps and stamps == old.stamps and model == old.model:
            provenance, dim, student = old.provenance, old.dim, None
        else:
            student = load_for_search(model, self.device)
            provenance, dim = student_provenance(student), int(student.config.width)
        collection = f"teachclip_{secrets.token_hex(6)}"
        fingerprint = fingerprint_of(provenance)
        made = Settings(model, fingerprint, provenance, dim, cutting, engine, collection, stamps, encoding)
        return made, student

    def _model(self, index: Path, old: Settings | None) -> str:
        if self.model is None:
            if old is None:
                raise DataError(f"{index}: there is no index yet; say which student makes it: --model STUDENT")
            return old.model
        path = Path(os.path.expanduser(self.model))
        return str(path.absolute()) if path.exists() else self.model


def update_index(
    index: str | os.PathLike[str],
    folders: Sequence[str | os.PathLike[str]] = (),
    wanted: Wanted | None = None,
    *,
    forget: Sequence[str | os.PathLike[str]] = (),
    retry: bool = False,
    limits: Limits | None = None,
    progress: bool = True,
) -> Report:
    """Bring the index in the folder `index` up to date with its folders and `folders`; make it if there is none.

    `forget`: folders that leave the index. `retry`: try broken files again although they have not changed. With
    another student or other parts, videos are encoded anew while the index goes on answering as before.

    Raises DataError for a folder without videos and other mistakes, CheckpointError for a student that cannot be
    loaded, BusyError while another run works on the index, and StoreError if it cannot be written.
    """
    started = time.monotonic()
    place, wanted = Path(index).absolute(), wanted or Wanted()
    current = current_generation(place)
    known = current.state.folders() if current else []
    dropped = {os.path.abspath(folder) for folder in forget}
    if unknown := sorted(dropped - set(known)):
        raise DataError(f"{unknown[0]} is not a folder of {place}; its folders: {', '.join(known) or 'none'}")
    roots = sorted({*known, *(os.path.abspath(folder) for folder in folders)} - dropped)
    if not roots and not dropped:
        raise DataError(f"{place}: no folder of videos is given")
    listing = _list(roots, known)
    settings, student = wanted.settings(place, current)
    with occupied_folder(place, wait=False):
        now = current_generation(place)
        if now != current or (now.state.folders() if now else []) != known:
            raise BusyError(f"{place}: another run has changed the index meanwhile; run again")
        generation = generation_for(place, settings)
        run = _Run(generation, student, wanted.device, limits or Limits(), progress)
        report = run.update(roots, listing, retry)
        if current is not None and generation.folder != current.folder:
            # what tables say is of files, not of students
            generation.state.set_columns(current.state.columns())
        run.write_text_tower()
        _keep_rung(current, generation, progress)
        make_current(place, generation)
    report.seconds = time.monotonic() - started
    return report


def _keep_rung(current: Generation | None, generation: Generation, progress: bool) -> None:
    """Compress the vectors anew if the index is searched by a rung; another generation's was measured for others."""
    if rebuild(generation) and progress:
        log(f"the vectors are compressed anew: {chosen_rung(generation)}")
    if current is not None and current.folder != generation.folder and chosen_rung(current) != UNCOMPRESSED:
        again = f"measure again: teachclip compress --index {generation.folder.parent} --queries FILE"
        log(f"{chosen_rung(current)} was chosen for the former vectors; the new ones are not compressed; {again}")


def _list(roots: Sequence[str], known: Sequence[str]) -> Listing:
    """List the folders. One that had videos and is empty now may be a disk that is not there: it is not emptied."""
    try:
        return list_files(roots)
    except DataError as error:
        if lost := [folder for folder in known if folder in str(error)]:
            raise DataError(f"{error}; if its videos are gone for good: --forget {lost[0]}") from error
        raise


class _Run:
    """One run on one generation."""

    def __init__(
        self, generation: Generation, student: StudentModel | None, device: str | None, limits: Limits, progress: bool
    ):
        self.generation, self.limits, self.progress = generation, limits, progress
        self.state: State = generation.state
        self._student, self._device = student, device
        self._engine: Engine | None = None

    def engine(self) -> Engine:
        """Open the engine at its first use: a run without changes needs none."""
        if self._engine is None:
            self._engine = self.generation.engine()
        return self._engine

    def student(self) -> StudentModel:
        """Load the student at its first use."""
        if self._student is None:
            self._student = load_for_search(self.generation.settings.model, self._device)
            if fingerprint_of(student_provenance(self._student)) != self.generation.settings.fingerprint:
                raise DataError(f"{self.generation.settings.model}: has changed during the run; run again")
        return self._student

    def write_text_tower(self) -> None:
        """Write what queries need of the student, if this run has it in memory and it is not there yet."""
        tower = self.generation.folder / TEXT_TOWER
        if self._student is not None and not tower.exists():
            problem = write_text_tower(self._student, tower)
            if problem and self.progress:
                log(f"every search will load the student, which takes seconds: {problem}")

    def update(self, roots: Sequence[str], listing: Listing, retry: bool) -> Report:
        """Bring the generation up to date."""
        try:
            self._clean()
            self.state.set_folders(roots)
            known = self.state.files()
            changes = compare(known, listing, retry=retry)
            report = Report(len(changes.new), len(changes.changed), gone=len(changes.gone), kept=changes.kept)
            report.unreadable, report.misnamed = listing.unreadable, listing.misnamed
            self._tell(changes)
            left = {video for path in changes.gone if (video := known[path].video)}
            todo = [*changes.new, *changes.changed, *changes.again]
            sought, sure = split_moved(changes.gone, known, todo)
            self.state.remove_files(sure)
            todo.sort(key=lambda file: _likeness(file.stamp) not in sought)  # so that moves are known soon
            if todo:
                from teachclip.search.encode_files import FileEncoder  # late: it imports torch

                encoder = FileEncoder(self.generation, self.state, self.engine, self.student, self.limits)
                encoder.run(todo, progress=self.progress)
                report.encoded, report.parts = encoder.encoded, encoder.parts
                report.moved = len({row.path for row, video in encoder.renamed if video in left})
                report.new, report.gone = report.new - report.moved, max(0, report.gone - report.moved)
            self.state.remove_files(path for paths in sought.values() for path in paths)
            changed = self._drop_orphans() or report.encoded
            report.search = self.engine().tune() if changed else ""
            report.broken, report.partial = problems_of(self.state)
            return report
        finally:
            if self._engine is not None:
                with suppress(Exception):  # nothing is lost: all that counts is written
                    self._engine.close()

    def _tell(self, changes: Changes) -> None:
        if self.progress:
            counts = {"new": len(changes.new), "changed": len(changes.changed), "tried again": len(changes.again)}
            parts = [f"{number:,} {what}" for what, number in {**counts, "gone": len(changes.gone)}.items() if number]
            log(f"{', '.join(parts) or 'nothing has changed'}; {changes.kept:,} files are as they were")

    def _clean(self) -> None:
        """Delete what a run that was killed has left in the engine."""
        if videos := self.state.unsettled():
            self.engine().delete(videos)
            self.state.forget_unsettled(videos)

    def _drop_orphans(self) -> int:
        """Delete the videos that no file names any more, and return how many there were."""
        videos = self.state.drop_orphans()
        self._clean()
        return len(videos)


def split_moved(
    gone: Sequence[str], known: Mapping[str, KnownFile], found: Sequence[FileRow]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the files that are gone but may have moved, by size and time, and those that are gone for sure.

    The first stay in the index until the files of their size and time have been looked into.
    """
    likely = {_likeness(file.stamp) for file in found}
    sought: dict[str, list[str]] = {}
    sure = []
    for path in gone:
        likeness = _likeness(known[path].stamp)
        if likeness in likely:
            sought.setdefault(likeness, []).append(path)
        else:
            sure.append(path)
    return sought, sure


def _likeness(stamp: str) -> str:
    """Return what a file keeps when it moves: its size and the time of its last change."""
    return " ".join(stamp.split()[:2])


def problems_of(state: State) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files that cannot be read, and those of which some parts cannot be read, and why, by path."""
    with state.reading() as database:
        broken = database.execute("SELECT path, error FROM files WHERE error IS NOT NULL ORDER BY path").fetchall()
        partial = database.execute(
            "SELECT path, videos.error FROM files JOIN videos ON videos.id = files.video "
            "WHERE videos.error != '' ORDER BY path"
        ).fetchall()
    return dict(map(tuple, broken)), dict(map(tuple, partial))


def describe(report: Report, **more: Any) -> list[str]:
    """Return what a run did, in lines for a terminal."""
    counts = {
        "new": report.new,
        "changed": report.changed,
        "moved": report.moved,
        "gone": report.gone,
        "as they were": report.kept,
    }
    files = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
    lines = [f"files: {files or 'none'}"]
    if report.encoded:
        lines.append(f"encoded: {report.encoded:,} videos, {report.parts:,} parts; search is {report.search}")
    for what, problems in (("cannot be read", report.broken), ("are indexed in part", report.partial)):
        if problems:
            lines.append(f"{len(problems):,} files {what}:")
            lines += [f"  {_once(path, error)}" for path, error in list(problems.items())[:10]]
            lines += [f"  and {len(problems) - 10:,} more"] if len(problems) > 10 else []
    lines += [f"folder {folder} cannot be listed; what is known of it stays" for folder in report.unreadable]
    lines += [f"file {path!r} has a name that is not UTF-8; rename it" for path in report.misnamed]
    return lines


def _once(path: str, error: str) -> str:
    return one_line(error if path in error else f"{path}: {error}")
