"""Stores of tokens that several runs want at once."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest
import torch

from teachclip.errors import StoreError
from teachclip.processes import Processes
from teachclip.scoring import token_store
from teachclip.scoring.token_store import ItemsOfShards, store_tokens
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.store.row_plan import row_keys


def test_a_second_run_waits_for_the_store_that_another_makes_and_computes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("teachclip.store.files.PATIENCE", 0.05)
    started, go_on = threading.Event(), threading.Event()
    encoded = {"first": [], "second": []}

    def make(who):
        def encode(rows):
            encoded[who] += rows.tolist()
            started.set()
            assert go_on.wait(20)
            return {"pooled": torch.from_numpy(rows).float()[:, None]}

        return store_tokens(
            tmp_path / "s",
            keys=row_keys(range(6)),
            encode=encode,
            provenance={"model": 1},
            batch_size=2,
            rows_per_shard=4,
            processes=Processes(),
            label="tokens",
            what="videos",
        )

    first = threading.Thread(target=make, args=("first",))
    first.start()
    assert started.wait(20)
    threading.Timer(0.3, go_on.set).start()
    store = make("second")
    first.join()
    assert store.read("pooled", [5, 0]).tolist() == [[5.0], [0.0]]
    assert encoded == {"first": [0, 1, 2, 3, 4, 5], "second": []}
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    assert caplog.messages == [f"{tmp_path / 's'}: {owner} works there; waiting until it finishes"]


def test_another_run_may_add_items_as_soon_as_this_one_is_done(tmp_path, monkeypatch):
    held, path = token_store.occupied_folder, tmp_path / "s"

    @contextlib.contextmanager
    def another_waits(folder, *, wait):
        with held(folder, wait=wait):
            yield
        store = ArrayStore.open(path)
        ArrayStore.open_or_create(
            path, provenance=store.provenance, arrays=store.arrays, keys=row_keys(range(9)), rows_per_shard=4
        )

    monkeypatch.setattr(token_store, "occupied_folder", another_waits)
    store = store_tokens(
        path,
        keys=row_keys(range(6)),
        encode=lambda rows: {"pooled": torch.from_numpy(rows).float()[:, None]},
        provenance={"model": 1},
        batch_size=2,
        rows_per_shard=4,
        processes=Processes(),
        label="tokens",
        what="videos",
    )
    assert store.read("pooled", [5, 0]).tolist() == [[5.0], [0.0]] and store.verify() == []
    assert not ArrayStore.open(path, complete=False).complete


def test_a_row_of_none_of_the_items_is_refused(tmp_path):
    keys, arrays = row_keys(range(6)), {"pooled": ArraySpec("float32", (1,))}
    store = ArrayStore.open_or_create(
        tmp_path / "s", provenance={"model": 1}, arrays=arrays, keys=keys, rows_per_shard=4
    )
    assert {shard: ItemsOfShards(store, keys)[shard].tolist() for shard in (0, 1)} == {
        0: [0, 1, 2, 3],
        1: [4, 5],
    }
    with pytest.raises(StoreError, match=r"shard 1 has rows of none of the items"):
        list(ItemsOfShards(store, keys[:5]).batches([0, 1], 8))
    with pytest.raises(StoreError, match=r"shard 0 has rows of none of the items"):
        list(ItemsOfShards(store, keys[:0]).batches([0, 1], 8))
