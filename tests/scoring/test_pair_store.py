"""Relevance of some pairs: what is not scored, and that of all pairs it is what a dense store holds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.errors import StoreError
from teachclip.losses import frame_text_loss, video_text_loss
from teachclip.processes import Processes
from teachclip.scoring import pair_store
from teachclip.scoring.pair_store import best_columns, store_pairs
from teachclip.scoring.relevance_store import store_relevance
from teachclip.scoring.targets import teacher_confidence
from teachclip.store.array_store import ArrayStore
from teachclip.store.row_plan import row_keys
from teachclip.training.batches import StoredRelevance
from teachclip.training.task import Relevance, confidence_weights

CAPTIONS, VIDEOS, FRAMES = 18, 9, 3


class Pairs:
    """A teacher whose logits and frames are those of a table by the names of captions and videos; counts pairs."""

    def __init__(self, captions=range(CAPTIONS), videos=range(VIDEOS)):
        state = np.random.RandomState(0)
        self.table = (3 * state.standard_normal((50, 50))).astype(np.float32)
        self.first = state.standard_normal((50, 50)).astype(np.float32)
        self.frames = state.dirichlet(np.ones(FRAMES), 50).astype(np.float32)
        self.captions, self.videos = np.array(captions), np.array(videos)
        self.own = np.arange(len(self.captions)) % len(self.videos)
        self.scored = 0

    def lists(self, count):
        return lambda rows: best_columns(self.first[self.captions[rows]][:, self.videos], self.own[rows], count)

    def score(self, captions, videos):
        self.scored += len(captions)
        return self.table[self.captions[captions], self.videos[videos]]

    def frame_relevance(self, captions, videos):
        return self.frames[self.captions[captions]]

    def dense(self):
        return self.table[self.captions][:, self.videos]


def make(path, pairs, count=4, *, model=1, margin=0.0, precision="float32", frames=True, first="a"):
    return store_pairs(
        path,
        pairs.lists(count),
        pairs.score,
        captions=row_keys(pairs.captions.tolist()),
        videos=row_keys(pairs.videos.tolist()),
        own=pairs.own,
        list_provenance={"count": count, "first": first},
        provenance={"model": model},
        precision=precision,
        processes=Processes(),
        label="relevance",
        margin=margin,
        frame_relevance=pairs.frame_relevance if frames else None,
    )


def make_dense(path, pairs, precision):
    def compute(captions, videos=None, *, with_frames=True):
        columns = np.arange(len(pairs.videos)) if videos is None else videos
        values = {"video_text": pairs.dense()[captions][:, columns]}
        return {**values, "frame_text": pairs.frames[pairs.captions[captions]]} if with_frames else values

    keys = {"captions": row_keys(pairs.captions.tolist()), "videos": row_keys(pairs.videos.tolist())}
    options = {"provenance": {}, "precision": precision, "processes": Processes(), "label": "relevance"}
    return store_relevance(path, compute, **keys, **options)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pair_store, "CAPTIONS_PER_SHARD", 5)


def test_the_best_of_a_row_are_taken_and_always_its_own():
    scores = np.array([[0.0, 3, 1, 2], [5, 4, 3, 2]])
    assert best_columns(scores, np.array([0, 3]), 2).tolist() == [[0, 1], [0, 3]]
    assert best_columns(scores, np.array([0, 3]), 9).tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_a_video_that_is_not_listed_counts_as_the_lowest_of_its_text_less_the_margin(tmp_path, margin):
    pairs = Pairs()
    store = make(tmp_path, pairs, margin=margin)
    found, scored = store.read("video_text", slice(None)), store.scored(slice(None))
    assert (scored.sum(axis=1) == 4).all() and scored[np.arange(CAPTIONS), pairs.own].all()
    assert np.array_equal(found[scored], pairs.dense()[scored])
    floor = np.where(scored, pairs.dense(), np.inf).min(axis=1) - np.float32(margin)
    assert np.array_equal(found[~scored], np.broadcast_to(floor[:, None], found.shape)[~scored])
    assert store.arrays["video_text"].shape == (VIDEOS,) and store.rows == CAPTIONS and store.verify() == []
    assert pairs.scored == CAPTIONS * 4
    again = pickle.loads(pickle.dumps(store))  # as processes that load batches get it
    assert np.array_equal(again.read("video_text", [7, 2]), found[[7, 2]])


def split_of(pairs):
    videos = tuple(Video(f"{number}", f"{number}.mp4") for number in pairs.videos)
    order = np.argsort(pairs.own, kind="stable")
    return Split("train", videos, tuple(Caption(f"{row}", videos[pairs.own[row]].id, "a") for row in order)), order


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("targets", ["pair", "video"])
def test_lists_of_all_videos_teach_as_a_dense_store_does(tmp_path, precision, targets):
    pairs = Pairs()
    split, order = split_of(pairs)
    pairs.captions, pairs.own = pairs.captions[order], pairs.own[order]
    assert np.array_equal(split.caption_videos, pairs.own)
    stores = make(tmp_path / "a", pairs, VIDEOS, precision=precision), make_dense(tmp_path / "b", pairs, precision)
    found, wanted = (np.asarray(store.read("video_text", slice(None)), np.float32) for store in stores)
    assert np.array_equal(found, wanted)
    rows = np.array([3, 0, 17, 8, 9])
    batches = [
        StoredRelevance.build(store, split, targets=targets, frame_temperature=0.5, saturation=None).batch(
            rows, pairs.own[rows]
        )
        for store in stores
    ]
    generator = torch.Generator().manual_seed(0)
    logits, frame_scores = torch.randn(5, 5, generator=generator), torch.randn(5, FRAMES, generator=generator)
    for kind in ("pearson", "cross_entropy", "kl", "smooth_l1"):
        one, other = (video_text_loss(logits, batch[0], kind=kind) for batch in batches)
        assert one == other
    for kind in ("cross_entropy", "pearson"):
        one, other = (frame_text_loss(frame_scores, batch[1], kind=kind) for batch in batches)
        assert one == other
    same = torch.eye(5, dtype=torch.bool)
    one, other = (confidence_weights([Relevance(*batch), Relevance(logits, None)], same) for batch in batches)
    assert all(map(torch.equal, one, other))


def test_what_a_missing_pair_means_to_confidence_and_to_the_softmax_of_both_directions(tmp_path):
    pairs = Pairs()
    store = make(tmp_path, pairs)
    scored, dense = store.scored(slice(None)), pairs.dense()
    sure = teacher_confidence(lambda rows: store.read("video_text", rows), pairs.own)
    for row in range(CAPTIONS):  # every missing video weighs as much as the last of the list
        listed = np.exp(dense[row][scored[row]].astype(np.float64))
        total = listed.sum() + (VIDEOS - len(listed)) * listed.min()
        np.testing.assert_allclose(sure[row], np.exp(dense[row, pairs.own[row]]) / total, rtol=1e-5)
    rows = np.arange(6)
    batch = torch.from_numpy(store.read("video_text", rows)[:, pairs.own[rows]])
    missing = torch.from_numpy(~scored[rows][:, pairs.own[rows]])
    assert 0 < missing.sum() < missing.numel() - len(rows)
    for row, absent in zip(batch, missing, strict=True):  # a text: its missing videos tie, at or below the others
        assert not absent.any() or (row[absent].unique().numel() == 1 and row[absent][0] <= row.min())
    for column, absent in zip(batch.T, missing.T, strict=True):  # a video: each missing text brings its own floor
        floors = torch.from_numpy(np.where(scored, dense, np.inf).min(axis=1)[rows])
        assert torch.equal(column[absent], floors[absent])


def test_other_lists_and_videos_take_over_what_was_scored(tmp_path):
    first = Pairs()
    make(tmp_path, first)
    longer = Pairs()
    store = make(tmp_path, longer, 6)
    assert longer.scored == CAPTIONS * 2  # what is new
    assert np.array_equal(store.read("video_text", [4])[store.scored([4])], longer.dense()[[4]][store.scored([4])])
    fewer = Pairs(range(2, CAPTIONS), [8, *range(1, 7), 20])
    fewer.own = np.full(CAPTIONS - 2, 7)  # a new video
    again = make(tmp_path, fewer, 5)
    scored = again.scored(slice(None))
    assert np.array_equal(again.read("video_text", slice(None))[scored], fewer.dense()[scored])
    assert CAPTIONS - 2 <= fewer.scored < 5 * (CAPTIONS - 2)
    same = Pairs()
    assert make(tmp_path, same).path == make(tmp_path, Pairs()).path and same.scored == 0


def test_new_captions_are_scored_alone_and_the_order_of_videos_is_free(tmp_path):
    first = make(tmp_path, Pairs(range(10)))
    pairs = Pairs([3, 30, 4])
    pairs.own = np.array([3, 1, 4])
    store = make(tmp_path, pairs)
    assert pairs.scored == 4 and store.path == first.path
    turned = Pairs(range(10), range(VIDEOS)[::-1])
    turned.own = np.array([list(turned.videos).index(number % VIDEOS) for number in range(10)])
    again = make(tmp_path, turned)
    assert turned.scored == 0 and again.path == first.path
    assert np.array_equal(again.read("video_text", [5]), first.read("video_text", [5])[:, ::-1])


def test_equal_videos_have_equal_relevance(tmp_path):
    pairs = Pairs(range(6), [0, 1, 2, 3, 1])
    found = make(tmp_path, pairs, 3).read("video_text", slice(None))
    assert np.array_equal(found[:, 1], found[:, 4])


def test_another_model_is_refused_whatever_the_lists_are(tmp_path):
    make(tmp_path, Pairs())
    for count in (4, 5):
        with pytest.raises(StoreError, match=r"another provenance: model = 1 there, 2 now"):
            make(tmp_path, Pairs(), count, model=2)


def test_another_finder_makes_a_store_of_its_own(tmp_path):
    one, pairs = make(tmp_path, Pairs()), Pairs()
    pairs.first = -pairs.first
    other = make(tmp_path, pairs, first="b")
    assert one.path != other.path
    scored = other.scored(slice(None))
    assert np.array_equal(other.read("video_text", slice(None))[scored], pairs.dense()[scored])


def test_a_run_that_stops_goes_on(tmp_path, monkeypatch):
    write_shard = ArrayStore.write_shard

    def stop(self, shard, *arguments, **options):
        if shard == 1:
            raise KeyboardInterrupt
        write_shard(self, shard, *arguments, **options)

    monkeypatch.setattr(ArrayStore, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Pairs(), frames=False)
    monkeypatch.setattr(ArrayStore, "write_shard", write_shard)
    pairs = Pairs()
    store = make(tmp_path, pairs, frames=False)
    assert pairs.scored == 4 * (CAPTIONS - 5) and "frame_text" not in store.arrays
