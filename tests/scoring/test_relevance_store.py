"""Stores of relevance that follow their data: what both data have is taken over, the rest alone is computed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from teachclip.errors import StoreError
from teachclip.processes import Processes
from teachclip.scoring import relevance_store, token_store
from teachclip.scoring.relevance_store import store_relevance
from teachclip.store.array_store import ArrayStore
from teachclip.store.row_plan import row_keys


class Scores:
    """A teacher whose score of two numbers tells both, and which counts the pairs it is asked for."""

    def __init__(self, captions, videos):
        self.captions, self.videos, self.pairs, self.frames = np.array(captions), np.array(videos), 0, 0

    def __call__(self, captions, videos=None, *, with_frames=True):
        columns = self.videos if videos is None else self.videos[videos]
        self.pairs += len(captions) * len(columns)
        relevance = {"video_text": self.captions[captions][:, None] + columns / 1000}
        if with_frames:
            self.frames += len(captions)
            relevance["frame_text"] = np.repeat(self.captions[captions][:, None], 3, axis=1)
        return {name: array.astype(np.float32) for name, array in relevance.items()}


def make(path, captions, videos, **options):
    compute = Scores(captions, videos)
    store = store_relevance(
        path,
        compute,
        captions=row_keys(captions),
        videos=row_keys(videos),
        provenance={"model": options.pop("model", 1)},
        precision="float32",
        processes=Processes(),
        label="relevance",
        **options,
    )
    expected = Scores(captions, videos)(np.arange(len(captions)))
    for name in ("video_text", "frame_text"):
        assert np.array_equal(store.read(name, slice(None)), expected[name])
    assert store.arrays["video_text"].shape == (len(videos),) and store.verify() == []
    return store, compute


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(relevance_store, "ROWS_PER_SHARD", 4)


def test_new_captions_are_scored_alone(tmp_path, caplog):
    first, _ = make(tmp_path, range(10), range(5))
    with caplog.at_level("INFO"):
        store, compute = make(tmp_path, [3, 20, 4, 21, 22], range(5))
    assert (compute.pairs, compute.frames) == (3 * 5, 3) and store.path == first.path
    assert caplog.messages == [f"{store.path}: 3 captions are new, 8 left, 2 kept"]


def test_fewer_captions_and_videos_in_any_order_are_read_from_the_store_that_is_there(tmp_path):
    first, _ = make(tmp_path, range(10), range(5))
    store, compute = make(tmp_path, [9, 0, 5], [4, 0])
    assert compute.pairs == 0 and store.path == first.path


def test_new_videos_are_scored_alone(tmp_path, caplog):
    first, _ = make(tmp_path, range(10), range(5))
    with caplog.at_level("INFO"):
        store, compute = make(tmp_path, [*range(2, 10), 30], [1, 7, 2, 3, 4, 8])
    sample = 6  # the first caption is scored to learn the shapes
    assert compute.pairs == sample + 8 * 2 + 1 * 6 and compute.frames == 1 + 1
    assert store.path != first.path
    assert caplog.messages == [
        f"{store.path}: 2 videos are new, 1 left, 4 kept",
        f"{first.path}: not needed for these videos any more; you may delete it",
    ]
    again, compute = make(tmp_path, range(10), range(5))  # it is still there
    assert compute.pairs == 0 and again.path == first.path


def test_an_incomplete_store_gives_what_it_has(tmp_path):
    first, _ = make(tmp_path, range(10), range(5))
    first.store.discard(0)
    _, compute = make(tmp_path, range(10), range(6))
    assert compute.pairs == 6 + 6 * 1 + 4 * 6


def test_the_store_with_most_of_the_videos_gives(tmp_path):
    make(tmp_path, range(4), [0])
    make(tmp_path, range(4), [5, 6, 7, 8])
    _, compute = make(tmp_path, range(4), [0, 5, 6, 7])
    assert compute.pairs == 4 + 4 * 1


def test_another_model_is_refused_whatever_the_videos_are(tmp_path):
    make(tmp_path, range(4), range(5))
    for videos in (range(5), range(9)):
        with pytest.raises(StoreError, match=r"another provenance: model = 1 there, 2 now"):
            make(tmp_path, range(4), videos, model=2)


def test_damage_in_the_store_that_gives_is_found(tmp_path):
    first, _ = make(tmp_path, range(4), range(5))
    path = next(first.path.glob("video_text-*.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    with pytest.raises(StoreError, match="its checksum differs"):
        make(tmp_path, range(4), range(6))


def test_a_run_that_stops_while_it_takes_over_goes_on(tmp_path, monkeypatch):
    make(tmp_path, range(10), range(5))
    write_shard = ArrayStore.write_shard

    def stop(self, shard, *arguments, **options):
        if shard == 1:
            raise KeyboardInterrupt
        write_shard(self, shard, *arguments, **options)

    monkeypatch.setattr(ArrayStore, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, range(10), range(6))
    monkeypatch.setattr(ArrayStore, "write_shard", write_shard)
    _, compute = make(tmp_path, range(10), range(6))
    assert compute.pairs == 6 * 1  # of the first shard nothing, of the rest the new video


def test_another_run_may_add_captions_as_soon_as_this_one_is_done(tmp_path, monkeypatch):
    held = token_store.occupied_folder

    @contextlib.contextmanager
    def another_waits(folder, *, wait):
        with held(folder, wait=wait):
            yield
        (manifest,) = folder.glob("*/manifest.json")
        store = ArrayStore.open(manifest.parent)
        ArrayStore.open_or_create(
            store.path, provenance=store.provenance, arrays=store.arrays, keys=row_keys(range(20)), rows_per_shard=4
        )

    monkeypatch.setattr(token_store, "occupied_folder", another_waits)
    store, _ = make(tmp_path, range(10), range(5))
    assert store.rows == 10 and not ArrayStore.open(store.path, complete=False).complete
