"""Batches by memory: what does not fit is halved, and nothing is lost."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import TinyPixels, tiny_student

from teachclip.processes import Processes
from teachclip.scoring import fitting, token_store
from teachclip.scoring.fitting import FittingEncoder, batch_size_for
from teachclip.scoring.token_store import store_scorer_tokens
from teachclip.store.row_plan import row_keys

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def batch_of(count):
    return {"frames": torch.arange(count), "frame_mask": torch.ones(count, 2), "mean": torch.zeros(3)}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_ERROR)])
def test_parts_that_do_not_fit_are_halved_and_nothing_is_lost(error, caplog):
    sizes = []

    def encode(batch):
        assert len(batch["frames"]) == len(batch["frame_mask"]) and batch["mean"].shape == (3,)
        sizes.append(len(batch["frames"]))
        if sizes[-1] > 3:
            raise error
        return {"x": batch["frames"] * 2}

    encoder = FittingEncoder(encode, "videos")
    with caplog.at_level(logging.INFO):
        assert encoder(batch_of(14))["x"].tolist() == list(range(0, 28, 2))
    assert sizes == [14, 7, 3, 3, 3, 3, 2] and encoder.size == 3
    assert caplog.messages[-1] == "7 videos at a time do not fit into memory: 3 from here on"
    assert encoder(batch_of(4))["x"].tolist() == [0, 2, 4, 6] and sizes[7:] == [3, 1]


def test_one_that_does_not_fit_and_other_errors_are_raised():
    def fails(error):
        def encode(batch):
            raise error

        return FittingEncoder(encode, "videos")

    with pytest.raises(torch.OutOfMemoryError):
        fails(torch.OutOfMemoryError("CUDA out of memory."))(batch_of(4))
    with pytest.raises(RuntimeError, match="shapes"):
        fails(RuntimeError("shapes"))(batch_of(4))


def test_a_cpu_takes_what_its_memory_bears_and_a_gpu_begins_with_a_shard(monkeypatch):
    inputs = SimpleNamespace(frames=SimpleNamespace(shape=(4, 3, 16, 16)))  # no video is read for it
    numbers = 4 * 3 * 16 * 16
    assert batch_size_for(7, inputs, "cpu") == 7
    for room, expected in ((0, 1), (5, 5), (1000, 32)):
        memory = type("Memory", (), {"available": room * numbers * fitting.PER_PIXEL * fitting.SHARE})
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert batch_size_for("auto", inputs, "cpu") == expected
    assert batch_size_for("auto", inputs, "cuda") == 128
    monkeypatch.setattr(fitting, "READ_BYTES", 3 * numbers)
    assert batch_size_for("auto", inputs, "cuda") == 3


def test_tokens_that_are_stored_by_memory_are_those_of_a_fixed_size(tmp_path, monkeypatch):
    """An encoder that bears two videos and five texts, as a small GPU would."""

    class Keyed(TinyPixels):
        def text_keys(self):
            return row_keys(range(self.text_count))

        def video_keys(self):
            return row_keys(range(self.video_count))

    student, pixels = tiny_student().eval(), Keyed.make()
    options = {"provenance": {"a": 1}, "device": "cpu", "processes": Processes(), "label": "tokens"}
    fixed = store_scorer_tokens(tmp_path / "fixed", student, pixels, batch_size=2, **options)
    most = []

    def small(encode, bears):
        def encoded(*tensors):
            if len(tensors[0]) > bears:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            most.append(len(tensors[0]))
            return encode(*tensors)

        return encoded

    monkeypatch.setattr(student, "encode_videos", small(student.encode_videos, 2))
    monkeypatch.setattr(student, "encode_texts", small(student.encode_texts, 5))
    with pytest.raises(torch.OutOfMemoryError):
        store_scorer_tokens(tmp_path / "told", student, pixels, batch_size=32, **options)
    found = store_scorer_tokens(tmp_path / "auto", student, pixels, batch_size="auto", **options)
    for one, other in zip(fixed, found, strict=True):
        assert one.rows == other.rows > 2
        for name in one.arrays:
            left, right = (torch.from_numpy(store.read(name, slice(None))) for store in (one, other))
            torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    assert set(most) == {1, 3}  # 12 videos and 24 texts, halved
    monkeypatch.setattr(token_store, "batch_size_for", None)  # what is stored is not asked for again
    store_scorer_tokens(tmp_path / "auto", student, pixels, batch_size="auto", **options)
