"""Batches that are loaded by processes of their own."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
import torch
from processes import SUPPORT, start
from tiny import tiny_batches

from teachclip.errors import TrainingError
from teachclip.training import batches as module
from teachclip.training.batches import workers_that_fit

BATCH = {"frames": torch.zeros(1_000_000, dtype=torch.uint8)}  # 1 MB


@pytest.mark.parametrize(("free_mb", "local", "fit"), [(64, 1, 8), (10, 1, 4), (10, 2, 1), (3, 1, 0), (0, 1, 0)])
def test_no_more_loading_processes_start_than_shared_memory_holds_batches_for(
    monkeypatch, caplog, free_mb, local, fit
):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mb * 1e6))
    assert workers_that_fit(8, BATCH) == fit
    assert (fit < 8) == (f"train.workers is {fit} in place of 8" in caplog.text)


def test_a_system_without_a_folder_of_shared_memory_keeps_its_loading_processes(tmp_path):
    assert workers_that_fit(8, BATCH, folder=str(tmp_path / "none")) == 8


def test_a_small_shared_memory_gives_the_same_batches(monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    for one, other in zip(*(tiny_batches().loader(1, 4, workers=n) for n in (0, 2)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


class StuckBatches(module.TrainingBatches):
    """Its third batch takes longer than anyone waits."""

    def __getitem__(self, step):
        if step == 2:
            time.sleep(60)
        return super().__getitem__(step)


def test_processes_start_though_a_fork_of_this_one_would_never_answer():
    done = start(SUPPORT / "load_batches.py", paths=[SUPPORT]).finish(timeout=60)
    assert (done.returncode, done.stdout) == (0, "all equal\n"), done.stderr


def test_a_batch_that_never_comes_ends_the_run_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "LOADING_LIMIT", 5)
    monkeypatch.setattr(module, "workers_that_fit", lambda workers, batch: workers)
    stuck = tiny_batches()
    stuck.__class__ = StuckBatches
    with pytest.raises(TrainingError, match=r"timed out.*lower train\.workers") as error:
        list(stuck.loader(1, 4, workers=1))
    assert "\n" not in str(error.value)
