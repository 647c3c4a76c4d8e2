"""What an index knows of files, videos and their parts; it decides which rows of the engine are shown.

It is one SQLite file (Python's own library), because everything that must change together then changes in one
transaction, also on a power cut, and because conditions on files are plain SQL. LanceDB would make a version of the
whole table of every small change.

A video is its content: its id is the beginning of the sha256 of the bytes. A file is a name of a video. So a file
that is moved or copied changes a name and no vector, and a file with other content names another video.

The engine has transactions of its own, and a process may be killed between the two. Therefore the table `unsettled`
lists the videos of which the engine may hold rows that do not count:

1. new videos are listed in `unsettled`;
2. all rows of these videos go to the engine, in one append;
3. in one transaction they leave `unsettled`, get their parts, and the files name them: from here on they are found;
4. videos that no file names are listed in `unsettled` and lose their parts, in one transaction;
5. their rows are deleted in the engine, and they leave `unsettled`.

A kill before 3 leaves rows that no query shows, as the video has no parts here; a changed file still names its
former video, which is found until 3. A kill between 4 and 5 leaves such rows, too. The next run first deletes the
rows of all unsettled videos. No video is ever lost or double.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.errors import StoreError

FILE = "state.sqlite"

WAIT = 60.0
"""Seconds that a statement waits for another process to end its transaction."""

_PROBE = "SELECT 1 FROM sqlite_master"

_Identity = tuple[int, int] | None
"""Device and inode of the file that a connection has open."""

_TABLES = """
CREATE TABLE IF NOT EXISTS folders (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, folder TEXT NOT NULL, stamp TEXT NOT NULL, bytes INTEGER NOT NULL, date TEXT NOT NULL,
    video TEXT, error TEXT, again INTEGER NOT NULL DEFAULT 0, columns TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_of_videos ON files (video);
CREATE TABLE IF NOT EXISTS videos (
    id TEXT PRIMARY KEY, length REAL NOT NULL, error TEXT NOT NULL, columns TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    video TEXT, number INTEGER, start REAL, "end" REAL, best REAL, times BLOB, weights BLOB,
    PRIMARY KEY (video, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unsettled (video TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class KnownFile(NamedTuple):
    """A file as the last run left it: its stamp, its video or why it has none, and whether to try it again."""

    stamp: str
    video: str | None
    error: str | None
    again: bool


class FileRow(NamedTuple):
    """A file to write. `stamp` changes when the file does. bytes: its size. date: of its last change, ISO, UTC."""

    path: str
    folder: str
    stamp: str
    bytes: int
    date: str


class PartRow(NamedTuple):
    """A part of a video.

    number: from 0, in the order of time. start, end, best: seconds; `best` is when the frame with the largest weight
    is shown. times, weights: of each frame of the part, float32 (frames,); the weights are those with which the
    student pooled the frames, and sum to 1.
    """

    number: int
    start: float
    end: float
    best: float
    times: np.ndarray
    weights: np.ndarray


class VideoRow(NamedTuple):
    """A video to write. length: seconds. error: why a part of it is missing, "" if none is."""

    id: str
    length: float
    error: str
    parts: list[PartRow]


class State:
    """The state of an index, in one file. Every method is one transaction, safe to call from several threads."""

    def __init__(self, path: Path):
        self.path = path
        self._reading = threading.local()
        # by process: a connection must not be used, nor closed, by a child that was forked
        self._idle: dict[int, list[tuple[_Identity, sqlite3.Connection]]] = {}

    @classmethod
    def create(cls, path: Path) -> State:
        """Open the state for writing; make it if there is none. Raises StoreError."""
        state = cls(path)
        with state._writing() as database:
            database.executescript(_TABLES)
        return state

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that cannot write. Raises StoreError if the file is missing or damaged.

        Each statement sees the last transaction, also of another process. Connections are kept for the next reader,
        as opening one takes longer than most statements; within such a block the same thread gets the same one again.
        """
        opened: sqlite3.Connection | None = getattr(self._reading, "database", None)
        if opened is not None:
            yield opened
            return
        with self._explained("read"):
            identity, database = self._take()
            self._reading.database = database
            try:
                yield database
            except BaseException:
                database.close()  # a statement that did not end would keep writers waiting
                raise
            finally:
                self._reading.database = None
            self._idle.setdefault(os.getpid(), []).append((identity, database))

    def _take(self) -> tuple[_Identity, sqlite3.Connection]:
        """Return a connection that nobody uses and that reads the file which is at the path now."""
        try:
            status = os.stat(self.path)
            identity: _Identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = None  # sqlite says why
        idle = self._idle.setdefault(os.getpid(), [])
        while idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                known, database = idle.pop()
                if known == identity and identity is not None and _answers(database):
                    return identity, database
                database.close()
        return identity, self._reader()

    def close(self) -> None:
        """Close the connections that nobody uses. The next reader opens one again."""
        idle = self._idle.get(os.getpid(), [])
        with contextlib.suppress(IndexError):  # one by one: another thread may take one to read
            while True:
                idle.pop()[1].close()

    def _reader(self) -> sqlite3.Connection:
        """Open the file for reading.

        A process that is killed within a transaction leaves a journal, and only a connection that may write takes
        the half transaction back.
        """
        database = self._connect("ro")
        try:
            database.execute(_PROBE).fetchone()
        except sqlite3.Error as error:
            database.close()
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            with contextlib.closing(self._connect("rw")) as writer:
                writer.execute(_PROBE).fetchone()
            database = self._connect("ro")
        database.row_factory = sqlite3.Row
        return database

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT, check_same_thread=False
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._explained("written"):
            database = sqlite3.connect(self.path, timeout=WAIT)
            with contextlib.closing(database):
                database.execute("PRAGMA synchronous = FULL")
                with database:
                    yield database
                    if database.in_transaction:
                        number = database.execute("PRAGMA user_version").fetchone()[0]
                        database.execute(f"PRAGMA user_version = {int(number) + 1}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reason = "the disk is full" if "disk is full" in str(error) else str(error)
            raise StoreError(f"{self.path}: cannot be {what}: {reason}") from error

    def revision(self) -> int:
        """Return a number that grows with every change of what queries see."""
        with self.reading() as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    # Folders and files

    def folders(self) -> list[str]:
        """Return the folders whose videos are in the index."""
        with self.reading() as database:
            return [row[0] for row in database.execute("SELECT path FROM folders ORDER BY path")]

    def set_folders(self, folders: Iterable[str]) -> None:
        """Replace the folders; files of others leave the index."""
        names = [(folder,) for folder in folders]
        with self._writing() as database:
            database.execute("DELETE FROM folders")
            database.executemany("INSERT INTO folders VALUES (?)", names)
            database.execute("DELETE FROM files WHERE folder NOT IN (SELECT path FROM folders)")

    def files(self) -> dict[str, KnownFile]:
        """Return all files by path."""
        with self.reading() as database:
            rows = database.execute("SELECT path, stamp, video, error, again FROM files")
            return {path: KnownFile(stamp, video, error, bool(again)) for path, stamp, video, error, again in rows}

    def remove_files(self, paths: Iterable[str]) -> None:
        """Forget files. Their videos, with the columns of tables, stay until `drop_orphans`: files may have moved."""
        rows = [(path,) for path in paths]
        with self._writing() as database:
            database.executemany(
                "UPDATE videos SET columns = files.columns FROM files WHERE files.video = videos.id AND path = ?",
                rows,
            )
            database.executemany("DELETE FROM files WHERE path = ?", rows)

    def name_videos(self, named: Iterable[tuple[FileRow, str]]) -> None:
        """Let files name videos that are in the index already."""
        with self._writing() as database:
            _write_files(database, ((file, video, None, False) for file, video in named))

    def set_broken(self, file: FileRow, error: str, *, again: bool) -> None:
        """Note that a file cannot be read; `again`: try it in the next run although it does not change."""
        with self._writing() as database:
            _write_files(database, [(file, None, error, again)])

    def columns(self) -> dict[str, dict[str, Any]]:
        """Return the values of the columns of tables, by path, of the files that have any."""
        with self.reading() as database:
            rows = database.execute("SELECT path, columns FROM files WHERE columns != '{}'")
            return {path: json.loads(values) for path, values in rows}

    def set_columns(self, columns: Mapping[str, Mapping[str, Any]]) -> None:
        """Give files, by path, values of the columns of a table, which are text or numbers."""
        rows = [(json.dumps(values, ensure_ascii=False), path) for path, values in columns.items()]
        with self._writing() as database:
            database.executemany("UPDATE files SET columns = ? WHERE path = ?", rows)

    # Videos

    def video_ids(self, among: Sequence[str] | None = None) -> set[str]:
        """Return the ids of all videos that have parts, also of those that no file names any more; `among`: some."""
        with self.reading() as database:
            if among is None:
                return {row[0] for row in database.execute("SELECT id FROM videos")}
            asked = json.dumps(list(among))
            rows = database.execute(
                "SELECT videos.id FROM json_each(?) CROSS JOIN videos ON videos.id = value", (asked,)
            )
            return {row[0] for row in rows}

    def unsettled(self) -> list[str]:
        """Return the videos of which the engine may hold rows that do not count."""
        with self.reading() as database:
            return [row[0] for row in database.execute("SELECT video FROM unsettled")]

    def announce(self, videos: Iterable[str]) -> None:
        """Step 1: rows of these videos are about to be added."""
        with self._writing() as database:
            database.executemany("INSERT OR IGNORE INTO unsettled VALUES (?)", [(video,) for video in videos])

    def settle(self, videos: Sequence[VideoRow], files: Iterable[tuple[FileRow, str]]) -> None:
        """Step 3: the rows of these videos are in the engine; from now on they are found under their files."""
        with self._writing() as database:
            for video in videos:
                database.execute("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, NULL)", video[:3])
                rows = [
                    (video.id, *part[:4], *(np.asarray(array, "<f4").tobytes() for array in part[4:]))
                    for part in video.parts
                ]
                database.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            database.executemany("DELETE FROM unsettled WHERE video = ?", [(video.id,) for video in videos])
            _write_files(database, ((file, video, None, False) for file, video in files))

    def drop_orphans(self) -> list[str]:
        """Step 4: take away the videos that no file names, and return them."""
        with self._writing() as database:
            named = "SELECT video FROM files WHERE video IS NOT NULL"
            database.execute(f"INSERT OR IGNORE INTO unsettled SELECT id FROM videos WHERE id NOT IN ({named})")
            gone = [row[0] for row in database.execute(f"SELECT id FROM videos WHERE id NOT IN ({named})")]
            database.executemany("DELETE FROM videos WHERE id = ?", [(video,) for video in gone])
            database.executemany("DELETE FROM parts WHERE video = ?", [(video,) for video in gone])
        return gone

    def forget_unsettled(self, videos: Iterable[str]) -> None:
        """Step 5: the engine holds no rows of these videos."""
        with self._writing() as database:
            database.executemany("DELETE FROM unsettled WHERE video = ?", [(video,) for video in videos])


def _answers(database: sqlite3.Connection) -> bool:
    """Return whether a kept connection can read: not if a kill left a journal since, see `State._reader`."""
    try:
        database.execute(_PROBE).fetchone()
    except sqlite3.Error:
        return False
    return True


_REPLACED = ("folder", "stamp", "bytes", "date", "video", "error", "again")


def _write_files(database: sqlite3.Connection, files: Iterable[tuple[FileRow, str | None, str | None, bool]]) -> None:
    """Insert files or replace what is known of them, apart from the columns of a table.

    A file that is new takes the columns of its video: it may have moved, and its old name be there still.
    """
    rows = list(files)
    columns = _columns_of(database, {video for _, video, _, _ in rows if video is not None})
    update = ", ".join(f"{name} = excluded.{name}" for name in _REPLACED)
    database.executemany(
        "INSERT INTO files (path, folder, stamp, bytes, date, video, error, again, columns) "
        f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET {update}",
        [(*file, video, error, int(again), columns.get(video or "", "{}")) for file, video, error, again in rows],
    )


def _columns_of(database: sqlite3.Connection, videos: Iterable[str]) -> dict[str, str]:
    """Return what tables say of videos, as JSON: what was kept of them, or what is known of one of their files.

    Once per video, not per file: thousands of files may be the same video.
    """
    found = {}
    for video in videos:
        kept = database.execute(
            "SELECT columns FROM videos WHERE id = ? AND columns IS NOT NULL", (video,)
        ).fetchone()
        found[video] = (kept or database.execute(_OF_A_FILE, (video,)).fetchone() or ("{}",))[0]
    return found


_OF_A_FILE = "SELECT columns FROM files WHERE video = ? ORDER BY columns = '{}', path LIMIT 1"
