"""Whatever is changed in a store behind its back is noticed when it is read, and named rightly by `verify`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from store_writer import PROVENANCE, rows_of

from teachclip.errors import StoreError
from teachclip.store.array_store import ArraySpec, ArrayStore, file_hash
from teachclip.store.fingerprint import seal

ARRAYS = {"scores": ArraySpec("float32", (6,)), "count": ArraySpec("int16", ())}


def write(path, provenance=PROVENANCE):
    store = ArrayStore.open_or_create(path, provenance=provenance, arrays=ARRAYS, rows=12, rows_per_shard=4)
    for shard in range(3):
        failures = {9: "cannot be read"} if shard == 2 else {}
        store.write_shard(shard, rows_of(store, shard), failures=failures)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole store, and beside it one of the same shape that holds another teacher's numbers."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "own")
    write(folder / "other", {"teacher": {"name": "xclip", "seed": 1}})
    return folder


def swap(path, *names):
    for name in names:
        one, two = (path / name.format(shard) for shard in (0, 1))
        one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
        one.write_bytes(two_bytes)
        two.write_bytes(one_bytes)


def rewrite_array(path, change, *, checksum):
    """Change the numbers of shard 1; with `checksum` in a way that a checksum does not show."""
    file, record = path / "scores-00001.npy", path / "shard-00001.json"
    array = np.load(file)
    change(array)
    np.save(file, array)
    if checksum:
        content = json.loads(record.read_text())
        content["sha256"]["scores"] = file_hash(file)
        record.write_text(json.dumps(seal(content)))


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def nan_row(array):
    array[2] = np.nan


TAMPERINGS = {
    "one flipped bit": (
        lambda path: rewrite_array(path, lambda array: array.view(np.uint32).__ixor__(1), checksum=False),
        ["scores-00001.npy is damaged (its checksum differs)", "delete shard-00001.json"],
    ),
    "zeroed relevance": (
        lambda path: rewrite_array(path, lambda array: array.fill(0), checksum=False),
        ["scores-00001.npy is damaged (its checksum differs)"],
    ),
    "a row of NaN": (
        lambda path: rewrite_array(path, nan_row, checksum=False),
        ["scores-00001.npy is damaged (its checksum differs)"],
    ),
    "swapped arrays": (
        lambda path: swap(path, "scores-0000{}.npy"),
        ["scores-00000.npy is damaged (its checksum differs)", "scores-00001.npy is damaged"],
    ),
    "swapped shards": (
        lambda path: swap(path, "scores-0000{}.npy", "count-0000{}.npy", "shard-0000{}.json"),
        ["shard-00000.json is damaged (it is the record of shard 1)", "it is the record of shard 0"],
    ),
    "a failure removed": (
        lambda path: edit(path / "shard-00002.json", lambda content: content["failures"].clear()),
        ["shard-00002.json is damaged", "its seal does not match"],
    ),
    "a failure added": (
        lambda path: edit(path / "shard-00001.json", lambda content: content["failures"].update({"5": "gone"})),
        ["shard-00001.json is damaged", "its seal does not match"],
    ),
    "a shard of another store": (
        lambda path: [
            shutil.copy(path.with_name("other") / name, path / name)
            for name in ("scores-00001.npy", "count-00001.npy", "shard-00001.json")
        ],
        ["shard-00001.json is damaged (it is of another store than manifest.json)"],
    ),
    "the manifest of another store": (
        lambda path: shutil.copy(path.with_name("other") / "manifest.json", path),
        ["manifest.json is of another store than all shards beside it"],
    ),
    "fewer rows": (
        lambda path: edit(path / "manifest.json", lambda content: content.update(rows=11)),
        ["manifest.json: it was edited or damaged"],
    ),
    "more rows in a shard": (
        lambda path: edit(path / "manifest.json", lambda content: content.update(rows_per_shard=6)),
        ["manifest.json: it was edited or damaged"],
    ),
}


def problems_of(path):
    try:
        return ArrayStore.open(path).verify()
    except StoreError as error:
        return [str(error)]


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_tampering_is_named_rightly_and_never_read(made, tmp_path, name):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    tamper, words = TAMPERINGS[name]
    assert problems_of(tmp_path / "own") == []
    tamper(tmp_path / "own")
    problems = problems_of(tmp_path / "own")
    for word in words:
        assert any(word in problem for problem in problems), problems
    assert all("\n" not in problem and str(tmp_path / "own") in problem for problem in problems)
    assert problems_of(tmp_path / "other") == []
    with pytest.raises(StoreError):
        ArrayStore.open(tmp_path / "own").read("scores", [r for r in range(11) if r != 9])


def test_numbers_that_are_not_finite_are_named_where_every_checksum_is_right(made, tmp_path):
    path = Path(shutil.copytree(made / "own", tmp_path / "own"))
    rewrite_array(path, nan_row, checksum=True)
    assert problems_of(path) == [f"{path}: rows 4 to 7: array 'scores' is not finite in 1 rows, first 6"]


def test_a_failed_row_of_another_shard_is_named(made, tmp_path):
    path = Path(shutil.copytree(made / "own", tmp_path / "own"))
    content = json.loads((path / "shard-00001.json").read_text()) | {"failures": {"9": "gone"}}
    (path / "shard-00001.json").write_text(json.dumps(seal(content)))
    assert problems_of(path) == [f"{path}: rows 4 to 7: failed row 9 is not among them"]


def test_a_file_is_hashed_once_however_often_it_is_read(made, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "teachclip.store.array_store.file_hash", lambda file: hashed.append(file.name) or file_hash(file)
    )
    monkeypatch.setattr("teachclip.store.array_store.MAPPED_FILES", 1)
    store = ArrayStore.open(made / "own")
    for rows in ([0, 5], [6, 1], [0, 7]):
        store.read("scores", rows)
    assert hashed == ["scores-00000.npy", "scores-00001.npy"]


def unsealed(name, change):
    """Change a file in a way that no seal shows, as in a store of another program."""

    def apply(path):
        content = json.loads((path / name).read_text())
        del content["seal"]
        content.pop("fingerprint", None)
        change(content)
        (path / name).write_text(json.dumps(content))

    return apply


def npy(header):
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return lambda path: (path / "scores-00001.npy").write_bytes(head)


BOMBS = {
    **{
        f"{name}: {content[:9]!r}": (lambda path, name=name, content=content: (path / name).write_bytes(content))
        for name in ("manifest.json", "shard-00001.json", "scores-00001.npy")
        for content in (b"", b"null", b"3", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"9" * 6000)
    },
    **{
        f"{key} = {str(value)[:9]}": unsealed(
            "manifest.json", lambda content, key=key, value=value: content.update({key: value})
        )
        for key in ("rows", "rows_per_shard", "version", "arrays")
        for value in (10**15, 10**400, -1, float("inf"), "x", None, [[1]])
    },
    **{
        f"shape = {str(shape)[:9]}": unsealed(
            "manifest.json", lambda content, shape=shape: content["arrays"]["scores"].update(shape=shape)
        )
        for shape in ([10**9], [10**15], [10**400], [10**6, 10**6], [1] * 100, [-1], ["x"], None)
    },
    "dtype with a line break": unsealed(
        "manifest.json", lambda content: content["arrays"]["scores"].update(dtype="float32\n")
    ),
    **{
        f"record {key} = {str(value)[:9]}": unsealed(
            "shard-00001.json", lambda content, key=key, value=value: content.update({key: value})
        )
        for key in ("shard", "sha256", "failures")
        for value in (10**30, float("inf"), "x", None, [1], {"9" * 5000: "x"})
    },
    "npy: nested": npy(b"-" * 9000),
    "npy: a large shape": npy(b"{'descr':'<f4','fortran_order':False,'shape':(1000000000000000,)}"),
    "npy: many digits": npy(b"{'descr':'<f4','fortran_order':False,'shape':(" + b"9" * 5000 + b",)}"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_store_is_refused_in_one_short_line_at_once(made, tmp_path, name):
    path = Path(shutil.copytree(made / "own", tmp_path / "own"))
    BOMBS[name](path)
    begin = time.perf_counter()
    with pytest.raises(StoreError) as error:
        ArrayStore.open(path).read("scores", [1, 5])
    assert time.perf_counter() - begin < 2
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert all("\n" not in problem for problem in problems_of(path))
