"""Tokens of all items, filled batch by batch, in memory or in a temporary file."""

import contextlib
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TinyPixels, tiny_student

from teachclip.errors import StoreError
from teachclip.processes import Processes
from teachclip.scoring.inputs import encode_split
from teachclip.scoring.token_room import TokenRoom

MAPS = Path("/proc/self/maps")


def batches():
    state = np.random.RandomState(0)
    for size in (4, 4, 3):
        yield {
            "words": torch.from_numpy(state.standard_normal((size, 5, 7)).astype(np.float32)),
            "mask": torch.from_numpy(state.rand(size, 5) > 0.5),
        }


@pytest.mark.parametrize("kept_bytes", [2**31, 0])
def test_tokens_are_those_of_the_batches_in_their_order(kept_bytes):
    room = TokenRoom(11, kept_bytes=kept_bytes)
    for batch in batches():
        room.add(batch)
    for name, tensor in room.tokens.items():
        assert torch.equal(tensor, torch.cat([batch[name] for batch in batches()]))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc, which lists what is mapped")
def test_much_lies_in_a_file_without_a_name_that_goes_with_the_tensor():
    def files():
        return sum(line.endswith("(deleted)") and "/dev/" not in line for line in MAPS.read_text().splitlines())

    before = files()
    room = TokenRoom(3, kept_bytes=10)
    room.add({"words": torch.ones(3, 50_000)})
    assert files() == before + 1 and room.tokens["words"].sum() == 150_000
    del room
    assert files() == before


def test_the_file_has_its_space_before_it_is_written(monkeypatch):
    made, held = tempfile.TemporaryFile, []

    def watched(**options):
        held.append(os.dup((file := made(**options)).fileno()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    room = TokenRoom(1000, kept_bytes=10)
    room.add({"words": torch.ones(1, 5000)})
    (file,) = held
    found = os.fstat(file)
    os.close(file)
    assert found.st_size == 1000 * 5000 * 4 <= 512 * found.st_blocks


def test_a_disk_without_the_space_is_said_in_a_line():
    """A limit on the size of files stands for a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StoreError, match=r"no temporary file of 2,000 MB or more: .*; set TMPDIR to a folder"):
            TokenRoom(100_000, kept_bytes=10).add({"words": torch.ones(1, 5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_split_is_encoded_to_the_same_tokens_in_memory_and_in_a_file():
    student, pixels = tiny_student().eval(), TinyPixels.make()
    kept = encode_split(student, pixels, batch_size=5, device="cpu")
    spilled = encode_split(student, pixels, batch_size=5, device="cpu", kept_bytes=0)
    for side, expected in zip(spilled, kept, strict=True):
        assert side.keys() == expected.keys()
        assert all(torch.equal(side[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kept_bytes", [2**31, 0])
def test_processes_send_each_other_small_parts_of_their_tokens(monkeypatch, kept_bytes):
    monkeypatch.setattr("teachclip.scoring.token_room.SENT_AT_ONCE", 2, raising=False)
    student, pixels = tiny_student().eval(), TinyPixels.make()
    meeting, sent, sizes = threading.Barrier(2, timeout=30), [{}, {}], []

    def encode(index):
        def gather(part):
            sent[index] = part
            sizes.extend(len(tensor) for tensor in part.values())
            meeting.wait()
            found = list(sent)
            meeting.wait()
            return found

        processes = Processes(index, 2, gather=gather)
        return encode_split(student, pixels, batch_size=2, device="cpu", processes=processes, kept_bytes=kept_bytes)

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(encode, range(2)))
    expected = encode_split(student, pixels, batch_size=2, device="cpu")
    for result in results:
        for side, whole in zip(result, expected, strict=True):
            assert side.keys() == whole.keys()
            assert all(torch.allclose(side[name], whole[name], atol=1e-6) for name in whole)
    assert 0 < max(sizes) <= 2


def test_room_is_made_for_tokens_that_are_still_on_a_device():
    tokens = {"words": torch.empty(4, 32, 8, device="meta")}  # as on a GPU: it has no numpy array
    room = TokenRoom(4, kept_bytes=0)
    with contextlib.suppress(NotImplementedError):  # nothing can be copied from there
        room.add(tokens)
    assert room.tokens["words"].shape == (4, 32, 8) and room.tokens["words"].device.type == "cpu"
