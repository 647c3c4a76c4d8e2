"""Arrays of all items in temporary files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from teachclip.errors import StoreError
from teachclip.store.files import write_npy
from teachclip.store.scratch import IN_MEMORY, Growing, blocks, scratch_array

MAPS = Path("/proc/self/maps")


def mapped_files():
    return sum(line.endswith("(deleted)") and "/dev/" not in line for line in MAPS.read_text().splitlines())


def test_blocks_cover_every_item_once():
    assert [list(range(7)[rows]) for rows in blocks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(blocks(0)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc, which lists what is mapped")
@pytest.mark.parametrize(("rows", "files"), [(IN_MEMORY // 16, 0), (IN_MEMORY // 16 + 1, 1)])
def test_much_lies_in_a_file_that_goes_with_the_array(rows, files):
    before, values = mapped_files(), np.arange(rows * 2, dtype=np.int64).reshape(rows, 2)
    array, growing = scratch_array(values.shape, np.int64), Growing(np.int64, 2)
    assert not array.any() and mapped_files() == before + files
    array[:] = values
    for some in blocks(rows, 1000):
        growing.append(values[some])
    grown = growing.array()
    assert mapped_files() == before + 2 * files
    assert np.array_equal(array, values) and np.array_equal(grown, values) and grown.flags.writeable
    del array, grown, growing
    assert mapped_files() == before


def test_no_rows_are_an_array_too():
    assert Growing(np.uint8, 16).array().shape == (0, 16) and scratch_array((0, 3), np.float32).shape == (0, 3)


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"rows are of shape \(3,\), not \(2,\)"):
        Growing(np.int64, 2).append(np.zeros((4, 3)))


def test_a_disk_without_the_space_is_said_in_a_line():
    """A limit on the size of files stands for a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * IN_MEMORY, before[1]))
    try:
        with pytest.raises(StoreError, match=r"no temporary file of 100 MB or more: .*; set TMPDIR to a folder"):
            scratch_array(10**8, np.uint8)
        growing = Growing(np.uint8)
        with pytest.raises(StoreError, match=r"no temporary file of .*; set TMPDIR to a folder"):
            for _ in range(4):
                growing.append(np.zeros(IN_MEMORY, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shape", [(0, 3), (700_000,), (5, 7, 3)])
def test_a_written_array_is_the_file_that_numpy_writes(tmp_path, shape):
    array = np.random.default_rng(0).random(shape)
    np.save(tmp_path / "numpy.npy", array)
    for values in (array, np.asfortranarray(array)):
        assert write_npy(tmp_path / "own.npy", values)[0].read_bytes() == (tmp_path / "numpy.npy").read_bytes()
