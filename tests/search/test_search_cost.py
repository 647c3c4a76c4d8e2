"""What a search costs: it reads the rows that it needs, through connections that it keeps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import tiny_student

from teachclip import VideoIndex
from teachclip.search.queries import StudentQueries
from teachclip.search.state import FileRow, PartRow, State, VideoRow, _write_files


def video_rows(numbers, parts=4):
    times = np.zeros(4, np.float32)
    for number in numbers:
        rows = [PartRow(k, 5.0 * k, 5.0 * k + 10, 5.0 * k, times, times) for k in range(parts)]
        yield VideoRow(f"{number:016x}", 30.0, "", rows)


def add_videos(state, numbers):
    videos = list(video_rows(numbers))
    date = "2026-01-01 00:00:00"
    state.settle(videos, [(FileRow(f"/films/{one.id}.mp4", "/films", one.id, 1, date), one.id) for one in videos])


class Nearest:
    """An engine that finds some rows, to see what a search does beside it."""

    def __init__(self, rows):
        self.rows = rows

    def search(self, vector, limit, videos=None):
        return [(row, 1 - 0.001 * place) for place, row in enumerate(self.rows[:limit])]


def steps_of(path, state, engine, monkeypatch):
    """Return how many steps of SQLite's machine one search takes."""
    index = VideoIndex.open(path, queries=StudentQueries(tiny_student()))
    monkeypatch.setattr(index, "_searched", lambda: (index.generation, engine))
    steps = []
    with index.generation.state.reading() as database:
        database.set_progress_handler(lambda: steps.append(1), 10)
        found = index.nearest(np.ones(32, np.float32), limit=5)
        database.set_progress_handler(None, 0)
    index.close()
    assert [one.video.id for one in found] == [f"{number:016x}" for number in range(5)]
    return len(steps)


def test_a_search_reads_no_more_of_a_large_index_than_of_a_small_one(made_index, tmp_path, monkeypatch):
    path = shutil.copytree(made_index, tmp_path / "index")
    state = State(path / "generation-0001" / "state.sqlite")
    engine = Nearest([f"{number:016x}-{part}" for number in range(10) for part in range(4)])
    add_videos(state, range(20))
    small = steps_of(path, state, engine, monkeypatch)
    add_videos(state, range(20, 2000))
    assert steps_of(path, state, engine, monkeypatch) <= 1.2 * small


def test_readers_keep_their_connection_and_see_what_others_write(tmp_path):
    state, other = State.create(tmp_path / "state.sqlite"), State(tmp_path / "state.sqlite")
    with other.reading() as first:
        assert other.video_ids() == set()
    add_videos(state, [1])  # an idle connection makes no writer wait
    with other.reading() as second:
        assert second is first
        assert other.video_ids() == {f"{1:016x}"}
    other.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.execute("SELECT 1")
    assert other.video_ids() == {f"{1:016x}"}


def test_a_kept_connection_takes_back_what_a_kill_left_and_follows_another_file(tmp_path):
    path = tmp_path / "state.sqlite"
    state = State.create(path)
    add_videos(state, range(60))
    script = (
        "import os, signal, sqlite3, sys; database = sqlite3.connect(sys.argv[1]); "
        "database.execute('PRAGMA cache_size = 1'); database.execute('BEGIN IMMEDIATE'); "
        "database.execute('UPDATE parts SET times = randomblob(3000)'); "
        "database.execute('DELETE FROM videos'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, path]).returncode == -signal.SIGKILL
    assert path.with_name("state.sqlite-journal").stat().st_size > 0
    assert len(state.video_ids()) == 60
    add_videos(State.create(tmp_path / "new.sqlite"), [1])
    os.replace(tmp_path / "new.sqlite", path)
    assert state.video_ids() == {f"{1:016x}"}


def test_a_page_of_videos_reads_no_more_of_a_large_index_than_of_a_small_one(made_index, tmp_path):
    path = shutil.copytree(made_index, tmp_path / "index")
    state = State(path / "generation-0001" / "state.sqlite")
    taken = []
    for numbers in (range(20), range(20, 2000)):
        add_videos(state, numbers)
        steps = []
        with VideoIndex.open(path) as index, index.generation.state.reading() as database:
            database.set_progress_handler(lambda steps=steps: steps.append(1), 10)
            shown = index.videos(limit=5, offset=10)
            known = index.generation.state.video_ids([shown[0].id, "f" * 16])
            database.set_progress_handler(None, 0)
            assert shown == index.videos()[10:15] and known == {shown[0].id}
            assert index.ids(["length>=25"]) == [video.id for video in index.videos(["length>=25"])]
        taken.append(len(steps))
    assert taken[1] <= 1.2 * taken[0]


def test_a_copy_costs_no_more_where_there_are_thousands_of_it(tmp_path):
    state = State.create(tmp_path / "state.sqlite")
    add_videos(state, [1])
    video = f"{1:016x}"
    taken = []
    for start in (0, 3000):
        copies = [
            (FileRow(f"/copies/{number:06d}.mp4", "/copies", "s", 1, "2026-01-01 00:00:00"), video, None, False)
            for number in range(start, start + 300)
        ]
        steps = []
        with sqlite3.connect(state.path) as database:
            database.set_progress_handler(lambda steps=steps: steps.append(1), 10)
            _write_files(database, copies)
            database.set_progress_handler(None, 0)
        database.close()
        taken.append(len(steps))
        state.set_columns({copies[0][0].path: {"kind": "copy"}})
    assert taken[1] <= 2 * taken[0]
    with state.reading() as database:
        (kept,) = database.execute("SELECT columns FROM files WHERE path = '/copies/003299.mp4'").fetchone()
    assert json.loads(kept) == {"kind": "copy"}  # what a table says of one copy holds for the later ones
