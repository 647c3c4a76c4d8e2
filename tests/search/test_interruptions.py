"""Runs that are killed, run together, or meet files, disks and folders that fail."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from indexing import update
from processes import start
from tiny_models import tiny_student
from video_files import write_video

from teachclip import VideoIndex
from teachclip.errors import BusyError, StoreError
from teachclip.search import encode_files
from teachclip.search.encoding import PartEncoder
from teachclip.search.engines.lance import LanceEngine
from teachclip.search.generations import make_current
from teachclip.search.queries import StudentQueries
from teachclip.search.state import State
from teachclip.search.update import Wanted
from teachclip.store import files as store_files

SCRIPT = Path(__file__).parents[1] / "support" / "update_index.py"


class Killed(BaseException):
    """What stands for SIGKILL where a test must stop at one step; nothing in the toolkit catches it."""


def content(index):
    """Return the vectors of an index by path and part, from the rows that queries see."""
    opened = VideoIndex.open(index)
    vectors = opened.vectors()
    found = {
        (os.path.basename(path), part.number): vectors[part.id]
        for video in opened.videos()
        for path in video.paths
        for part in opened.parts(video.id)
    }
    rows = [row for part in opened._open(engine=True)[1].read() for row in part.ids]
    opened.close()
    return found, sorted(rows)


def assert_same(index, expected):
    found, rows = content(index)
    assert set(found) == set(expected[0]) and rows == expected[1], "no row is missing, left over or double"
    for key, vector in found.items():
        assert vector == pytest.approx(expected[0][key], abs=2e-6)


def change(library):
    write_video(library / "clip2.mp4", frames=20, seed=70)
    write_video(library / "new.mp4", frames=20, seed=71)
    (library / "holiday" / "clip1.mp4").unlink()
    (library / "clip3.mp4").rename(library / "moved.mp4")


@pytest.fixture(scope="module")
def changed_library(made_library, tmp_path_factory):
    library = Path(shutil.copytree(made_library, tmp_path_factory.mktemp("changed") / "library"))
    change(library)
    return library


@pytest.fixture(scope="module")
def expected(changed_library, student_folder, tmp_path_factory):
    """What an index of the changed library holds if nothing goes wrong."""
    index = tmp_path_factory.mktemp("expected") / "index"
    update(index, [changed_library], Wanted(str(student_folder)))
    return content(index)


@pytest.fixture(scope="module")
def half_changed(made_index, made_library, changed_library, tmp_path_factory):
    """An index of the library before its changes, at the place where the changed library is now."""
    index = Path(shutil.copytree(made_index, tmp_path_factory.mktemp("half") / "index"))
    state = index / "generation-0001" / "state.sqlite"
    with sqlite3.connect(state) as database:
        for table, column in (("files", "path"), ("files", "folder"), ("folders", "path")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(made_library), str(changed_library))
            )
    database.close()
    return index


STEPS = [
    (State, "remove_files"),
    (State, "announce"),
    (LanceEngine, "add"),
    (State, "settle"),
    (State, "name_videos"),
    (State, "drop_orphans"),
    (LanceEngine, "delete"),
    (State, "forget_unsettled"),
    (LanceEngine, "tune"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=lambda value: getattr(value, "__name__", value))
def test_a_kill_at_any_step_loses_and_doubles_nothing(
    half_changed, expected, tmp_path, monkeypatch, owner, step, after
):
    index = Path(shutil.copytree(half_changed, tmp_path / "index"))
    original = getattr(owner, step)

    def killed(self, *arguments, **options):
        if after:
            original(self, *arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(Killed):
            update(index)
    seen, _ = content(index)
    unchanged = {key for key in expected[0] if key[0] in ("clip0.mp4", "film.mp4")}
    assert unchanged <= set(seen) and {name for name, _ in seen} >= {"clip2.mp4"}, "what was there is found meanwhile"
    for key in unchanged:
        assert seen[key] == pytest.approx(expected[0][key], abs=2e-6)
    update(index)
    assert_same(index, expected)


def test_kills_at_random_moments_lose_and_double_nothing(changed_library, student_folder, expected, tmp_path):
    index = tmp_path / "index"
    for _ in range(2):
        run = start(SCRIPT, index, changed_library, student_folder)
        deadline = time.monotonic() + random.uniform(0.2, 3)
        while run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.kill()
        if (index / "index.json").exists():
            content(index)  # answers at any time
    done = start(SCRIPT, index, changed_library, student_folder).finish()
    assert done.returncode == 0, done.stderr
    assert_same(index, expected)


def test_a_killed_switch_to_another_student_leaves_the_old_one_serving(index, tmp_path, monkeypatch):
    other = tmp_path / "other"
    tiny_student(seed=3).save_pretrained(other)
    before = content(index)
    with monkeypatch.context() as patch:
        patch.setattr("teachclip.search.update.make_current", None)
        with pytest.raises(TypeError):
            update(index, wanted=Wanted(str(other)))
    assert_same(index, before)
    report = update(index, wanted=Wanted(str(other)))
    assert report.encoded == 0, "the generation was complete, only the switch was missing"
    after, _ = content(index)
    assert all(np.abs(after[key] - before[0][key]).max() > 1e-3 for key in after)
    make_current(index, VideoIndex.open(index).generation)


def test_queries_are_answered_by_several_threads_while_a_run_works(index, library):
    change(library)
    opened = VideoIndex.open(index, queries=StudentQueries(tiny_student()))
    stop, counts, errors = threading.Event(), [], []

    def ask():
        try:
            while not stop.is_set():
                counts.append(len(opened.search("a red circle", filters=["length>0"])))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        report = update(index)
        update(index, wanted=Wanted(window=4.0))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors and report.encoded == 2
    assert counts and min(counts) >= 4 and max(counts) <= 5, "only what was deleted is missing meanwhile"
    assert len(opened.search("a red circle")) == 5 and opened.video("film.mp4").parts == 14


def test_two_runs_at_once_are_refused_in_one_line(index, monkeypatch):
    monkeypatch.setattr(store_files, "PATIENCE", 0.05)
    with (
        store_files.occupied_folder(index, wait=False),
        pytest.raises(BusyError, match=r"process \d+ on .* works there; wait for it to end or stop it"),
    ):
        update(index)


def test_a_run_that_ends_while_another_begins_is_not_undone(library, student_folder, tmp_path, monkeypatch):
    index, wanted = tmp_path / "index", Wanted(str(student_folder))
    settings = Wanted.settings

    def slow(self, *arguments):
        monkeypatch.undo()
        update(index, [library / "holiday"], wanted)
        return settings(self, *arguments)

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(library / "film.mp4", other)
    monkeypatch.setattr(Wanted, "settings", slow)
    with pytest.raises(BusyError, match=r"another run has changed the index meanwhile; run again$"):
        update(index, [other], wanted)
    update(index, [other], wanted)
    assert len(VideoIndex.open(index).videos()) == 3, "the folders of both runs"


def test_a_file_that_changes_while_it_is_read_is_tried_again(index, library, monkeypatch):
    write_video(library / "growing.mp4", frames=20, seed=80)
    encode = PartEncoder.encode

    def growing(self, stretches):
        with open(library / "growing.mp4", "ab") as file:
            file.write(b"more")
        return encode(self, stretches)

    with monkeypatch.context() as patch:
        patch.setattr(PartEncoder, "encode", growing)
        report = update(index)
    assert report.broken == {str(library / "growing.mp4"): "the file changed while it was read"}
    assert len(VideoIndex.open(index).videos()) == 5
    report = update(index)
    assert report.broken == {} and report.encoded == 1


def test_a_file_that_vanishes_before_it_is_read_is_no_error_for_others(index, library, monkeypatch):
    for number in range(2):
        write_video(library / f"late{number}.mp4", frames=20, seed=90 + number)
    listed = encode_files.hashed

    def vanishing(files):
        (library / "late0.mp4").unlink()
        return listed(files)

    monkeypatch.setattr(encode_files, "hashed", vanishing)
    report = update(index)
    assert report.encoded == 1 and list(report.broken) == [str(library / "late0.mp4")]
    monkeypatch.undo()
    assert update(index).broken == {}


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(index, library, monkeypatch):
    write_video(library / "new.mp4", frames=20, seed=95)
    add = LanceEngine.add

    def full(self, rows):
        class Table:
            def add(self, data):
                raise RuntimeError(
                    "lance error: LanceError(IO): No space left on device (os error 28)\nat writer.rs:1"
                )

        self.table = Table()
        add(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(LanceEngine, "add", full)
        with pytest.raises(StoreError, match=r"vectors: the disk is full; free some space and run again$"):
            update(index)
    connect = sqlite3.connect

    def small(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 1")  # at least what there is; the next page is one too many
        return database

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", small)
        with pytest.raises(StoreError, match=r"state.sqlite: cannot be written: the disk is full"):
            for number in range(50):
                State.create(index / "generation-0001" / "state.sqlite").announce(
                    [f"{number}{k:015}" for k in range(99)]
                )
    assert update(index).encoded == 1 and len(VideoIndex.open(index).videos()) == 6


def test_a_search_writes_nothing_so_an_index_may_be_read_only(made_index):
    def listing():
        return {str(path): path.stat().st_mtime_ns for path in made_index.rglob("*") if path.is_file()}

    before = listing()
    with VideoIndex.open(made_index, queries=StudentQueries(tiny_student())) as opened:
        assert opened.search("a red circle", filters=["length>=1"])
    assert listing() == before


@pytest.mark.parametrize("name", ["index.json", "generation-0001/settings.json", "generation-0001/state.sqlite"])
def test_damaged_files_of_an_index_are_named(made_index, tmp_path, name):
    index = Path(shutil.copytree(made_index, tmp_path / "index"))
    (index / name).write_bytes(b"{}" if name.endswith("json") else b"damaged, and long enough to be read" * 99)
    with pytest.raises(StoreError, match=os.path.basename(name)) as error:
        VideoIndex.open(index).videos()
    assert "\n" not in str(error.value)


def test_a_kill_within_a_transaction_leaves_an_index_that_answers(index):
    before = content(index)
    state = index / "generation-0001" / "state.sqlite"
    script = (
        "import os, signal, sqlite3, sys; database = sqlite3.connect(sys.argv[1]); "
        "database.execute('PRAGMA cache_size = 1'); database.execute('BEGIN IMMEDIATE'); "
        "database.execute('UPDATE parts SET times = randomblob(3000)'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, state]).returncode != 0
    assert state.with_name("state.sqlite-journal").stat().st_size > 0, "half a transaction is in the file"
    assert_same(index, before)
    assert update(index).kept == 5
