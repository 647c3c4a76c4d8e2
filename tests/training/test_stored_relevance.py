"""What a batch reads of a relevance store: rows and columns, views, targets of videos, temperature."""

import logging

import numpy as np
import pytest
import torch
from tiny import TinyPixels, tiny_split

from teachclip.data.batches import BatchSampler
from teachclip.processes import Processes
from teachclip.scoring.targets import teacher_confidence, tempered_relevance, video_frame_targets
from teachclip.store.array_store import ArraySpec, ArrayStore
from teachclip.training.batches import StoredRelevance, TrainingBatches

VIDEOS, CAPTIONS, FRAMES = 12, 24, 3


@pytest.fixture
def write(tmp_path):
    """Return a function that stores relevance of `views` versions of each video, and what was stored."""

    def make(views=1, *, frames=True):
        state = np.random.RandomState(views)
        shape = (CAPTIONS, FRAMES) if views == 1 else (CAPTIONS, views, FRAMES)
        arrays = {
            "video_text": state.standard_normal((CAPTIONS, VIDEOS * views)).astype(np.float32),
            "frame_text": state.dirichlet(np.ones(FRAMES), shape[:-1]).astype(np.float32) * 0.99,  # as if rounded
        }
        arrays = arrays if frames else {"video_text": arrays["video_text"]}
        specs = {name: ArraySpec("float32", array.shape[1:]) for name, array in arrays.items()}
        store = ArrayStore.open_or_create(
            tmp_path / f"{views}{frames}", provenance={"of": "test"}, arrays=specs, rows=CAPTIONS, rows_per_shard=7
        )
        for shard in store.missing_shards():
            store.write_shard(shard, {name: array[list(store.shard_rows(shard))] for name, array in arrays.items()})
        return store, arrays

    return make


ROWS = np.array([3, 0, 23])


def test_a_batch_is_rows_of_captions_and_columns_of_their_videos(write):
    store, arrays = write()
    columns = ROWS // 2
    video_text, frame_text = StoredRelevance.build(store, tiny_split(), targets="pair").batch(ROWS, columns)
    assert np.array_equal(video_text, arrays["video_text"][np.ix_(ROWS, columns)])
    np.testing.assert_allclose(frame_text, arrays["frame_text"][ROWS] / 0.99, rtol=1e-6)


def test_frame_relevance_is_tempered_when_it_is_read(write):
    store, arrays = write()
    _, found = StoredRelevance.build(store, tiny_split(), targets="pair", frame_temperature=2.0).batch(
        ROWS, ROWS // 2
    )
    roots = arrays["frame_text"][ROWS] ** 0.5
    np.testing.assert_allclose(found, roots / roots.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("targets", ["pair", "video"])
def test_a_teacher_without_frames_gives_none(write, targets):
    store, _ = write(frames=False)
    relevance = StoredRelevance.build(store, tiny_split(), targets=targets)
    assert not relevance.has_frames and relevance.batch(ROWS, ROWS // 2)[1] is None


def test_each_pair_reads_the_frames_of_the_view_that_it_sees(write):
    store, arrays = write(views=2)
    views = np.array([1, 0, 1])
    columns = views * VIDEOS + ROWS // 2
    video_text, frame_text = StoredRelevance.build(store, tiny_split(), targets="pair").batch(ROWS, columns)
    assert np.array_equal(video_text, arrays["video_text"][np.ix_(ROWS, columns)])
    np.testing.assert_allclose(frame_text, arrays["frame_text"][ROWS, views] / 0.99, rtol=1e-6)


@pytest.mark.parametrize("views", [1, 2])
def test_targets_of_a_video_come_from_all_its_captions_in_each_view(write, views):
    store, arrays = write(views)
    split = tiny_split()
    relevance = StoredRelevance.build(store, split, targets="video", frame_temperature=3.0, saturation=0.4)
    columns = np.arange(VIDEOS * views)
    _, found = relevance.batch(np.zeros(len(columns), dtype=np.int64), columns)
    for view in range(views):
        logits = arrays["video_text"][:, view * VIDEOS : (view + 1) * VIDEOS]
        frames = arrays["frame_text"] if views == 1 else arrays["frame_text"][:, view]
        tempered = tempered_relevance(torch.from_numpy(frames.copy()), 3.0).numpy()
        confidence = teacher_confidence(logits, split.caption_videos)
        expected = video_frame_targets(tempered, confidence, split.caption_videos, saturation=0.4)
        np.testing.assert_allclose(found[view * VIDEOS : (view + 1) * VIDEOS], expected, rtol=1e-5)


def test_batches_read_the_relevance_of_the_views_that_their_pairs_see(write):
    store, arrays = write(views=2)
    sampler = BatchSampler(CAPTIONS, 8, 0, views=2)

    class Views(TinyPixels):
        def videos(self, rows):
            assert rows.dtype == np.int64
            self.seen = rows
            return super().videos(rows % VIDEOS)

    inputs = Views.make()
    relevance = StoredRelevance.build(store, tiny_split(), targets="pair")
    batches = TrainingBatches(inputs, tiny_split(), sampler, Processes(), [relevance])
    for step in (0, 4):
        batch = batches[step]
        rows = sampler.rows(step)
        columns = sampler.views_of(step, rows) * VIDEOS + rows // 2
        assert len(set((columns // VIDEOS).tolist())) == 2
        assert np.array_equal(inputs.seen, columns) and np.array_equal(batch["video_rows"], rows // 2)
        assert np.array_equal(batch["video_text.0"], arrays["video_text"][np.ix_(rows, columns)])


@pytest.mark.parametrize(("live", "workers", "used", "told"), [(False, 1, 1, 0), (True, 1, 0, 1), (True, 0, 0, 0)])
def test_frames_that_are_decoded_when_read_need_no_loader_processes(
    write, monkeypatch, caplog, live, workers, used, told
):
    counts = []

    class Loader:
        def __init__(self, *_, num_workers, **__):
            counts.append(num_workers)

        def __iter__(self):
            return iter(())

    monkeypatch.setattr("teachclip.training.batches.DataLoader", Loader)
    monkeypatch.setattr("teachclip.training.batches.decodes_when_read", lambda inputs: live)
    caplog.set_level(logging.INFO)
    batches = TrainingBatches(TinyPixels.make(), tiny_split(), BatchSampler(CAPTIONS, 8, 0), Processes())
    assert list(batches.loader(0, 3, workers=workers)) == []
    assert counts == [used] and len([m for m in caplog.messages if "train.workers=1 is not used" in m]) == told
