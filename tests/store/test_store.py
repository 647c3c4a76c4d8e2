"""The array store: what is read is what was written, whatever happens to the writer, the disk or the files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import start
from store_writer import PROVENANCE, rows_of

import teachclip.store.files
from teachclip.errors import BusyError, StoreError
from teachclip.store.array_store import ArraySpec, ArrayStore, describe_difference, file_hash, fingerprint_of
from teachclip.store.files import LOCK, locked_folder, occupied_folder
from teachclip.store.stored_items import StoredItems
from teachclip.studies.trials import only_one

ARRAYS = {"scores": ArraySpec("float32", (6,)), "count": ArraySpec("int16", ())}
WRITER = Path(__file__).parents[1] / "support" / "store_writer.py"


def make(path, *, rows=10, per_shard=4, provenance=PROVENANCE, arrays=ARRAYS):
    return ArrayStore.open_or_create(path, provenance=provenance, arrays=arrays, rows=rows, rows_per_shard=per_shard)


def fill(store):
    for shard in store.missing_shards():
        store.write_shard(shard, rows_of(store, shard))
    return store


def writer_task(path, **task):
    return {"rows": 10, "columns": 6, "per_shard": 4, **task, "path": str(path)}


def start_writer(path, **task):
    task = writer_task(path, **task)
    root = str(Path(__file__).parents[2])
    return subprocess.Popen([sys.executable, str(WRITER), json.dumps(task)], env={**os.environ, "PYTHONPATH": root})


def bytes_of(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir() if file.name != LOCK}


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# what is read


def test_rows_come_back_in_the_order_asked_for_from_any_shard(tmp_path):
    store = fill(make(tmp_path / "s", rows=103, per_shard=8))
    rows = np.random.RandomState(0).randint(0, 103, 300)
    expected = np.sin(rows[:, None] + np.arange(6.0)).astype(np.float32)
    assert np.array_equal(store.read("scores", rows), expected)
    assert np.array_equal(store.read("count", rows.tolist()), rows.astype(np.int16))
    assert np.array_equal(store.read("count", slice(5, 100, 7)), np.arange(5, 100, 7))
    assert store.read("scores", slice(None)).shape == (103, 6)


def test_reading_no_rows_gives_an_empty_array_of_the_right_shape(tmp_path):
    empty = fill(make(tmp_path / "s")).read("scores", [])
    assert empty.shape == (0, 6)
    assert empty.dtype == np.float32


def test_what_is_read_can_be_changed_without_changing_the_store(tmp_path):
    store = fill(make(tmp_path / "s"))
    store.read("scores", slice(0, 4))[:] = 9
    assert store.read("scores", [0])[0, 0] == 0
    assert store.verify() == []


@pytest.mark.parametrize("rows", [[-1], [10], [0, 99], [0.5], [True, False], 3, [[1, 2]]])
def test_rows_that_do_not_exist_are_refused(tmp_path, rows):
    store = fill(make(tmp_path / "s"))
    with pytest.raises(StoreError, match=r"rows"):
        store.read("scores", rows)


def test_an_unknown_array_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(StoreError, match="scores, count"):
        fill(make(tmp_path / "s")).read("score", [0])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_every_kind_of_number_is_kept_exactly(tmp_path, dtype):
    store = make(tmp_path / "s", rows=5, per_shard=2, arrays={"x": ArraySpec(dtype, (2, 3))})
    whole = (np.arange(30).reshape(5, 2, 3) % 2).astype(dtype)
    for shard in range(3):
        rows = store.shard_rows(shard)
        store.write_shard(shard, {"x": whole[rows.start : rows.stop]})
    found = ArrayStore.open(tmp_path / "s").read("x", slice(None))
    assert found.dtype == dtype
    assert np.array_equal(found, whole)


def test_more_files_than_may_be_mapped_at_once_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.store.array_store.MAPPED_FILES", 3)
    store = fill(make(tmp_path / "s", rows=40, per_shard=2))
    order = np.random.RandomState(1).permutation(40)
    for _ in range(2):
        assert np.array_equal(store.read("count", order), order)
    assert len(store._maps) <= 3


def test_some_columns_of_rows_are_read_alone(tmp_path):
    store = make(tmp_path / "s", rows=9, per_shard=4, arrays={"x": ArraySpec("float16", (6,))})
    whole = np.arange(54).reshape(9, 6).astype(np.float16)
    for shard in range(3):
        store.write_shard(shard, {"x": whole[list(store.shard_rows(shard))]})
    rows, columns = np.array([8, 0, 3, 0, 5]), np.array([5, 0, 0, 2])
    assert np.array_equal(store.read("x", rows, columns), whole[np.ix_(rows, columns)])
    items = StoredItems(store, np.array([8, 0, 3]), {"x": np.array([4, 3, 1])})
    assert np.array_equal(items.read("x", np.array([2, 0]), np.array([0, 2])), whole[[[3], [8]], [4, 1]])
    for columns in ([6], [-1]):
        with pytest.raises(StoreError, match="x has 6 columns, not all of those that are asked for"):
            store.read("x", rows, np.array(columns))


def test_scattered_rows_of_many_shards_are_read_fast(tmp_path):
    store = fill(make(tmp_path / "s", rows=20_000, per_shard=200))
    rows = np.random.RandomState(2).randint(0, 20_000, (20, 128))

    def best_time(forget):
        times = []
        for batch in rows:
            if forget:
                store._maps.clear()
            begin = time.perf_counter()
            store.read("scores", batch)
            times.append(time.perf_counter() - begin)
        return min(times)

    store.read("scores", slice(None))
    assert best_time(forget=False) < best_time(forget=True) / 4  # mapping 100 files anew costs about 40 times as much


def test_a_store_can_be_handed_to_another_process(tmp_path):
    store = fill(make(tmp_path / "s"))
    twin = pickle.loads(pickle.dumps(store))
    assert twin.fingerprint == store.fingerprint
    assert np.array_equal(twin.read("scores", [7, 1]), store.read("scores", [7, 1]))


def test_a_store_without_rows_is_complete(tmp_path):
    store = make(tmp_path / "s", rows=0)
    assert store.complete
    assert ArrayStore.open(tmp_path / "s").read("scores", slice(None)).shape == (0, 6)


# the format


def test_another_program_can_write_a_store_from_the_description(tmp_path):
    path = tmp_path / "s"
    path.mkdir()
    values = np.arange(12, dtype="<f4").reshape(3, 4)
    np.save(path / "video_text-00000.npy", values[:2])
    np.save(path / "video_text-00001.npy", values[2:])
    for shard in range(2):
        sums = {"video_text": file_hash(path / f"video_text-0000{shard}.npy")}
        (path / f"shard-0000{shard}.json").write_text(json.dumps({"shard": shard, "sha256": sums, "failures": {}}))
    manifest = {"format": "teachclip-store", "version": 2, "rows": 3, "rows_per_shard": 2}
    manifest |= {"arrays": {"video_text": {"dtype": "float32", "shape": [4]}}, "provenance": {"by": "hand"}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    store = ArrayStore.open(path, provenance={"by": "hand"})
    assert store.verify() == []
    assert np.array_equal(store.read("video_text", [2, 0]), values[[2, 0]])


def test_shards_are_plain_npy_files(tmp_path):
    fill(make(tmp_path / "s"))
    names = {"manifest.json", *(f"{name}-0000{i}.npy" for name in ARRAYS for i in range(3))}
    assert set(bytes_of(tmp_path / "s")) == names | {f"shard-0000{i}.json" for i in range(3)}
    last = np.load(tmp_path / "s" / "scores-00002.npy", allow_pickle=False)
    assert np.array_equal(last, np.sin(np.array([[8.0], [9.0]]) + np.arange(6)).astype(np.float32))


def test_the_fingerprint_is_the_documented_hash():
    # printf '{"a":[1,2],"é":{"b":"x y"}}' | sha256sum
    expected = "37a637ca914cf5540e10c82b7b4a9aba124884cab8db751ac921d521d2202d7d"
    assert fingerprint_of({"é": {"b": "x y"}, "a": (1, 2)}) == expected


def test_a_provenance_that_is_not_json_is_refused(tmp_path):
    for wrong in (Path("a"), float("nan"), {1, 2}, "\udc80"):
        with pytest.raises(StoreError, match="JSON"):
            make(tmp_path / "s", provenance={"a": wrong})
    assert not (tmp_path / "s").exists()


# refusals


def test_a_store_of_another_provenance_is_refused_with_the_difference_named(tmp_path):
    fill(make(tmp_path / "s"))
    other = {"teacher": {"name": "xclip", "seed": 1}}
    for refuse in (
        lambda: make(tmp_path / "s", provenance=other),
        lambda: ArrayStore.open(tmp_path / "s", provenance=other),
    ):
        with pytest.raises(StoreError) as error:
            refuse()
        text = message(error)
        assert 'teacher.name = "xpool" there, "xclip" now' in text
        assert "seed" not in text
        assert "delete the folder or choose another" in text
        assert str(tmp_path / "s") in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 11}, "rows = 10 there, 11 now"),
        ({"arrays": {**ARRAYS, "scores": ArraySpec("float16", (6,))}}, 'scores = ["float32",[6]] there'),
        ({"arrays": {"count": ARRAYS["count"]}}, "scores"),
    ],
)
def test_other_rows_or_arrays_are_refused(tmp_path, change, named):
    make(tmp_path / "s")
    with pytest.raises(StoreError) as error:
        make(tmp_path / "s", **change)
    assert named in message(error)


def test_an_existing_store_keeps_its_own_shards(tmp_path):
    make(tmp_path / "s", per_shard=4)
    again = make(tmp_path / "s", per_shard=5)
    assert again.rows_per_shard == 4


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, ""),
        ({"a": (1, 2)}, {"a": [1, 2]}, ""),
        ({"a": 1}, {"a": 1.0}, "a = 1 there, 1.0 now"),
        ({"a": 1}, {"a": True}, "a = 1 there, true now"),
        ({"a": {"b": 1}}, {"a": {}}, "a.b = 1 there, absent now"),
        ({}, {"a": {"b": None}}, 'a absent there, {"b":null} now'),
        ({"size": [224, 224]}, {"size": [336, 336]}, "size = [224,224] there, [336,336] now"),
        ({"v": list("abcdef")}, {"v": list("abXdef")}, 'v[2] = "c" there, "X" now'),
        ({"v": list(range(9))}, {"v": list(range(7))}, "v has 9 entries there, 7 now"),
        ({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {}, "a = 1 there, absent now; b = 1"),
    ],
)
def test_differences_are_named_by_dotted_key_with_both_values(old, new, words):
    found = describe_difference(old, new)
    assert found == words if not old or len(old) < 2 else found.startswith(words) and found.endswith("; and 2 more")


def test_long_values_are_cut_to_where_they_differ():
    one, two = "x" * 300 + "left" + "y" * 300, "x" * 300 + "right" + "y" * 300
    found = describe_difference({"text": one}, {"text": two})
    assert "left" in found
    assert "right" in found
    assert len(found) < 160


def test_a_manifest_of_another_format_version_is_refused(tmp_path):
    fill(make(tmp_path / "s"))
    file = tmp_path / "s" / "manifest.json"
    file.write_text(file.read_text().replace('"version": 2', '"version": 1'))
    for use in (lambda: ArrayStore.open(tmp_path / "s"), lambda: make(tmp_path / "s")):
        with pytest.raises(StoreError) as error:
            use()
        assert message(error) == (
            f"{tmp_path / 's'} has format version 1, this version of teachclip reads 2; "
            "delete the folder and run the command that made it again"
        )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "teachclip-store", "version": 2}',
        '{"format": "zarr", "version": 1}',
        "\xff\x00",
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    fill(make(tmp_path / "s"))
    (tmp_path / "s" / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match="manifest"):
        ArrayStore.open(tmp_path / "s")


def test_an_edited_manifest_is_refused(tmp_path):
    fill(make(tmp_path / "s"))
    file = tmp_path / "s" / "manifest.json"
    file.write_text(file.read_text().replace("xpool", "xclip"))
    with pytest.raises(StoreError, match="fingerprint"):
        ArrayStore.open(tmp_path / "s")


def test_shards_without_their_manifest_are_not_taken_over(tmp_path):
    fill(make(tmp_path / "s"))
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="shards but no manifest"):
        make(tmp_path / "s", provenance={"another": 1})


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="is not a store"):
        ArrayStore.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        make(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"arrays": {}}, "0 arrays"),
        ({"per_shard": 0}, "0 rows per shard"),
        ({"rows": -1}, "-1 rows"),
        ({"arrays": {"x": ArraySpec("object", ())}}, "object"),
        ({"arrays": {"x": ArraySpec(">f4", ())}}, ">f4"),
        ({"arrays": {"../x": ArraySpec("float32", ())}}, "../x"),
        ({"arrays": {"x": ArraySpec("float32", (0,))}}, "(0,)"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(StoreError) as error:
        make(tmp_path / "s", **options)
    assert named in message(error)
    assert not (tmp_path / "s").exists()


def test_an_incomplete_store_is_not_opened_to_read(tmp_path):
    store = make(tmp_path / "s")
    store.write_shard(1, rows_of(store, 1))
    with pytest.raises(StoreError, match="2 of 3 shards are missing"):
        ArrayStore.open(tmp_path / "s")
    assert ArrayStore.open(tmp_path / "s", complete=False).missing_shards() == [0, 2]
    assert store.read("count", [4, 7]).tolist() == [4, 7]
    with pytest.raises(StoreError, match="shard 0 is missing"):
        store.read("count", [0])


# what is written


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": np.zeros((4, 5), np.float32)}, "float32 (4, 6), got float32 (4, 5)"),
        ({"scores": np.zeros((3, 6), np.float32)}, "float32 (4, 6), got float32 (3, 6)"),
        ({"scores": np.zeros((4, 6), np.float64)}, "float32 (4, 6), got float64 (4, 6)"),
        ({"scores": np.array([[0.0] * 6, [0.0] * 6, [np.nan] * 6, [np.inf] * 6], np.float32)}, "2 rows, first 6"),
        ({"more": np.zeros(4)}, "scores, count, more"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, named):
    store = make(tmp_path / "s")
    with pytest.raises(StoreError) as error:
        store.write_shard(1, rows_of(store, 1) | change)
    assert named in message(error)
    assert set(bytes_of(store.path)) == {"manifest.json"}


def test_a_shard_that_is_not_in_the_store_is_refused(tmp_path):
    store = make(tmp_path / "s")
    for shard in (-1, 3):
        with pytest.raises(StoreError, match="only 0 to 2"):
            store.write_shard(shard, {})


def test_a_shard_that_exists_is_left_as_it_is(tmp_path):
    store = fill(make(tmp_path / "s"))
    before = bytes_of(store.path)
    store.write_shard(1, {name: np.zeros_like(array) for name, array in rows_of(store, 1).items()})
    assert bytes_of(store.path) == before


def test_failed_rows_are_kept_with_their_error_and_never_read(tmp_path):
    store = make(tmp_path / "s")
    arrays = rows_of(store, 1)
    arrays["scores"][2] = np.nan
    store.write_shard(1, arrays, failures={6: "cannot be\ndecoded"})
    fill(store)
    again = ArrayStore.open(tmp_path / "s")
    assert again.failures() == {6: "cannot be decoded"}
    assert again.read("count", [5, 7]).tolist() == [5, 7]
    for rows in ([6], [0, 6], slice(None)):
        with pytest.raises(StoreError, match="row 6 could not be computed: cannot be decoded"):
            again.read("scores", rows)
    with pytest.raises(StoreError, match="failed row 3 is not among them"):
        store.write_shard(2, rows_of(store, 2), failures={3: "elsewhere"})


def test_notes_are_kept_with_rows_that_can_be_read(tmp_path):
    store = make(tmp_path / "s")
    store.write_shard(1, rows_of(store, 1), failures={6: "gone"}, notes={5: "only\na part", 6: "looked at twice"})
    fill(store)
    again = ArrayStore.open(tmp_path / "s")
    assert again.notes() == {5: "only a part", 6: "looked at twice"} and again.failures() == {6: "gone"}
    assert again.read("count", [5]).tolist() == [5]
    records = [json.loads((store.path / f"shard-0000{shard}.json").read_text()) for shard in (0, 1)]
    assert "notes" not in records[0] and set(records[1]) == {*records[0], "notes"}


def test_processes_share_the_shards_whatever_is_done_already(tmp_path):
    store = make(tmp_path / "s", rows=40)
    mine = [store.missing_shards(index, 3) for index in range(3)]
    assert sorted([*mine[0], *mine[1], *mine[2]]) == list(range(10))
    store.write_shard(0, rows_of(store, 0))
    assert store.missing_shards(1, 3) == mine[1]
    assert store.missing_shards(0, 3) == mine[0][1:]


# damage


@pytest.mark.parametrize("name", ["scores-00001.npy", "count-00001.npy"])
def test_verify_names_a_truncated_shard(tmp_path, name):
    store = fill(make(tmp_path / "s"))
    for length in (0, 3, 60, 130):
        (store.path / name).write_bytes((store.path / name).read_bytes()[:length])
        (problem,) = ArrayStore.open(store.path).verify()
        assert name in problem
        assert "delete shard-00001.json" in problem
        with pytest.raises(StoreError, match=name):
            ArrayStore.open(store.path).read(name.split("-")[0], [5])


def test_verify_names_a_shard_with_one_changed_byte_anywhere(tmp_path):
    store = fill(make(tmp_path / "s"))
    file = store.path / "scores-00001.npy"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        (problem,) = ArrayStore.open(store.path).verify()
        assert "scores-00001.npy" in problem
    file.write_bytes(whole)
    assert store.verify() == []


def test_verify_names_a_damaged_commit_record_and_missing_shards(tmp_path):
    store = fill(make(tmp_path / "s"))
    (store.path / "shard-00001.json").write_text("{")
    (store.path / "count-00002.npy").unlink()
    problems = ArrayStore.open(store.path, complete=False).verify()
    assert any("1 of 3 shards are missing" in problem for problem in problems)
    assert any("shard-00001.json" in problem for problem in problems)
    assert len(problems) == 2


def test_a_shard_of_another_shape_is_not_read(tmp_path):
    store = fill(make(tmp_path / "s"))
    np.save(store.path / "scores-00000.npy", np.zeros((4, 6), np.float64))
    with pytest.raises(StoreError, match=r"scores-00000.npy is damaged \(it holds float64"):
        ArrayStore.open(store.path).read("scores", [0])


def test_a_shard_with_a_pickle_in_it_is_not_opened(tmp_path):
    store = fill(make(tmp_path / "s"))
    np.save(store.path / "scores-00000.npy", np.array([Path("a")] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"scores-00000.npy"):
        ArrayStore.open(store.path).read("scores", [0])


def test_a_damaged_shard_is_made_again_after_the_remedy_of_the_message(tmp_path):
    store = fill(make(tmp_path / "s"))
    whole = bytes_of(store.path)
    (store.path / "scores-00001.npy").write_bytes(b"")
    (store.path / "shard-00001.json").unlink()
    assert store.missing_shards() == [1]
    fill(store)
    assert bytes_of(store.path) == whole


def test_a_shard_made_again_is_read_anew(tmp_path):
    store = fill(make(tmp_path / "s"))
    assert store.read("count", [5]).tolist() == [5]
    (store.path / "shard-00001.json").unlink()
    store.write_shard(1, {name: array + 1 for name, array in rows_of(store, 1).items()}, failures={7: "gone"})
    assert store.read("count", [5]).tolist() == [6]
    assert store.failures() == {7: "gone"}


def test_the_hash_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(StoreError, match="absent"):
        file_hash(tmp_path / "absent")


# a full disk


@contextlib.contextmanager
def small_disk(folder, monkeypatch):
    """Yield a disk of 1 MB: a real one where mounting is permitted, else one whose flush says that it is full."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    with full_flush(monkeypatch, after=3):
        yield folder


@contextlib.contextmanager
def full_flush(monkeypatch, *, after, number=errno.ENOSPC):
    """Let the flushes after the first ones fail."""
    count = [0]

    def fsync(descriptor):
        count[0] += 1
        if count[0] > after:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(teachclip.store.files.os, "fsync", fsync)
        yield


def test_a_full_disk_is_one_line_and_leaves_whole_shards_only(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", monkeypatch) as disk:
        store = make(disk / "s", rows=8, arrays={"big": ArraySpec("uint8", (200_000,))}, per_shard=4)
        with pytest.raises(StoreError) as error:
            for shard in range(2):
                store.write_shard(shard, {"big": np.ones((4, 200_000), np.uint8)})
        assert message(error).startswith(f"{disk / 's'}: the disk is full, shard")
        assert "needs 0.8 MB" in message(error)
        assert not [name for name in bytes_of(store.path) if name.endswith(".tmp")]
        assert [problem for problem in store.verify() if "missing" not in problem] == []


@pytest.mark.parametrize("flushes", range(6))
def test_a_disk_that_fills_up_at_any_moment_leaves_no_temporary_file(tmp_path, monkeypatch, flushes):
    store = make(tmp_path / "s")
    store.write_shard(0, rows_of(store, 0))
    with full_flush(monkeypatch, after=flushes), contextlib.suppress(StoreError):
        store.write_shard(1, rows_of(store, 1))
    assert not [name for name in bytes_of(store.path) if name.endswith(".tmp")]
    fill(store)
    assert ArrayStore.open(store.path).verify() == []


def test_a_manifest_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    with full_flush(monkeypatch, after=0), pytest.raises(StoreError, match=r"the disk is full, manifest.json needs"):
        make(tmp_path / "s")
    assert bytes_of(tmp_path / "s") == {}


def test_another_failure_of_the_disk_is_named(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    with full_flush(monkeypatch, after=0, number=errno.EIO), pytest.raises(StoreError, match="cannot write shard 0"):
        store.write_shard(0, rows_of(store, 0))


# killed writers and several writers


def test_a_writer_killed_at_any_step_loses_only_its_shard(tmp_path):
    whole = bytes_of(fill(make(tmp_path / "whole", rows=6)).path)
    done = set()
    for call in range(1, 100):
        path = tmp_path / str(call)
        task = writer_task(path, rows=6, die_at=call)
        status = start(WRITER, json.dumps(task)).finish().returncode
        if status == 0:
            break
        assert status == -9
        if (path / "manifest.json").exists():
            store = ArrayStore.open(path, complete=False)
            done.add(len(store.missing_shards()))
            assert [problem for problem in store.verify() if "missing" not in problem] == []
            for shard in store.missing_shards():
                assert not (path / f"shard-0000{shard}.json").exists()
        again = fill(make(path, rows=6))
        assert bytes_of(path) == whole  # so no temporary file of the killed writer is left
        assert again.verify() == []
    assert status == 0
    assert done == {0, 1, 2}
    assert bytes_of(path) == whole


def test_a_writer_killed_while_it_writes_can_be_continued(tmp_path):
    path, task = tmp_path / "s", {"rows": 96, "columns": 250_000, "per_shard": 8}
    luck = random.Random(5)
    for _ in range(3):
        writer = start_writer(path, **task)
        while not (path / "manifest.json").exists():
            time.sleep(0.001)
        time.sleep(luck.uniform(0.2, 0.5))
        writer.kill()
        writer.wait()
        store = ArrayStore.open(path, complete=False)
        assert [problem for problem in store.verify() if "missing" not in problem] == []
    assert start_writer(path, **task).wait() == 0
    store = ArrayStore.open(path)
    assert store.verify() == []
    for shard in (0, 5, 11):
        rows = store.shard_rows(shard)
        assert np.array_equal(store.read("scores", rows), rows_of(store, shard)["scores"])
    assert not [file.name for file in path.iterdir() if file.name.endswith(".tmp")]


@pytest.mark.parametrize("disjoint", [True, False])
def test_several_processes_write_one_store(tmp_path, disjoint):
    path, start = tmp_path / "s", tmp_path / "start"
    task = {"rows": 200, "columns": 6, "per_shard": 4, "start": str(start)}
    places = [{"index": i, "count": 3} if disjoint else {} for i in range(3)]
    writers = [start_writer(path, **task, **place) for place in places]
    time.sleep(0.4)
    start.write_text("")
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert ArrayStore.open(path).verify() == []
    assert bytes_of(path) == bytes_of(fill(make(tmp_path / "alone", rows=200)).path)


HOLDER = """
import sys, time
from pathlib import Path
from teachclip.store.files import locked_folder, occupied_folder
folder = Path(sys.argv[1])
with HOW:
    print("locked", flush=True)
    time.sleep(60)
"""


def hold_lock(folder, how="locked_folder(folder)"):
    """Start a process that holds a folder in the given way."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("HOW", how), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_the_lock_of_a_process_that_died_is_taken_over_after_one_log_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teachclip.store.files, "PATIENCE", 0.2)
    holder = hold_lock(tmp_path)
    killer = threading.Timer(0.8, holder.kill)
    killer.start()
    begin = time.monotonic()
    with locked_folder(tmp_path):
        assert holder.wait() == -9 and time.monotonic() - begin > 0.5
    assert caplog.messages == [f"{tmp_path}: another process is writing there; waiting until it finishes"]


def test_a_run_in_a_folder_of_a_living_run_waits_or_is_refused_and_takes_over_from_a_dead_one(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(teachclip.store.files, "PATIENCE", 0.2)
    holder = hold_lock(tmp_path, "occupied_folder(folder, wait=False)")
    named = f"{tmp_path}: process {holder.pid} on {socket.gethostname()} works there; "
    try:
        with pytest.raises(BusyError) as error, occupied_folder(tmp_path, wait=False):
            pass
        assert message(error) == named + "wait for it to end or stop it"
        threading.Timer(0.8, holder.kill).start()
        with occupied_folder(tmp_path, wait=True):
            assert holder.wait() == -9
            assert (tmp_path / ".owner").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        assert caplog.messages == [named + "waiting until it finishes"]
    finally:
        holder.kill()
    assert not (tmp_path / ".owner").exists()
    with occupied_folder(tmp_path, wait=False), locked_folder(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "process 1", "process 1 on \x1b[2J", "\xff", None])
def test_an_owner_that_cannot_be_read_is_another_process(tmp_path, monkeypatch, text):
    monkeypatch.setattr(teachclip.store.files, "PATIENCE", 0.05)
    with occupied_folder(tmp_path, wait=False):
        (tmp_path / ".owner").unlink()
        if text is not None:
            (tmp_path / ".owner").write_bytes(text.encode("latin-1"))
        with pytest.raises(BusyError, match=": another process works there"), occupied_folder(tmp_path, wait=False):
            pass


def test_threads_exclude_each_other_from_a_folder(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with locked_folder(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 15 and max(most) == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), NotImplementedError()])
def test_a_folder_without_locks_is_written_all_the_same(tmp_path, monkeypatch, error):
    """filelock 3.16 to 3.20 raise NotImplementedError where flock is missing."""

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(teachclip.store.files.FileLock, "acquire", refuse)
    assert fill(make(tmp_path / "s")).verify() == []
    with occupied_folder(tmp_path / "run", wait=False), only_one(tmp_path / "study"):
        assert (tmp_path / "run").is_dir() and (tmp_path / "study").is_dir()


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.json", "scores-00001.npy"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path, name):
    store = fill(make(tmp_path / "s"))
    (store.path / name).unlink()
    os.mkfifo(store.path / name)
    with pytest.raises(StoreError, match="not a file"):
        ArrayStore.open(store.path).read("scores", [5])
    if name != "manifest.json":
        assert any("not a file" in problem for problem in ArrayStore.open(store.path).verify())
