"""Records kept as bytes: what is read is what was given."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from teachclip.data.annotations import packed
from teachclip.data.annotations.records import Caption, Split, Video, hash_of
from teachclip.data.batches import BatchSampler
from teachclip.errors import DataError
from teachclip.store import scratch

VIDEOS = [Video("a", Path("x/a.mp4")), Video("b\udcff", Path("b.mp4"), 1, 2.5), Video("ü/c", Path("c"), None, 0.1)]
CAPTIONS = [Caption(f"{video.id}:{k}", video.id, f"текст {k} 🐈" * k + ".") for video in VIDEOS for k in range(5)]


@pytest.fixture(params=[0, 2**18], ids=["files", "memory"])
def split(request, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", request.param)
    monkeypatch.setattr(packed, "AT_ONCE", 4)
    return Split("train", iter(VIDEOS), iter(CAPTIONS))


def test_records_are_those_that_were_given(split):
    assert list(split.videos) == VIDEOS and list(split.captions) == CAPTIONS
    assert split.captions == tuple(CAPTIONS) and split.captions != CAPTIONS[1:] and split.videos != 3
    assert [repr(video.start) for video in split.videos] == ["None", "1", "None"]  # whole seconds stay whole
    for rows in (slice(None), slice(3, 9), slice(-2, None), slice(9, 3), slice(None, None, -2), slice(20, 30)):
        assert split.captions[rows] == tuple(CAPTIONS[rows])
    assert (split.captions[-1], split.captions[np.int64(7)]) == (CAPTIONS[-1], CAPTIONS[7])
    for row in (15, -16):
        with pytest.raises(IndexError, match=f"there is no record {row} of 15"):
            split.captions[row]
    assert split.caption_videos.tolist() == [0] * 5 + [1] * 5 + [2] * 5 and split.is_paired
    copy = pickle.loads(pickle.dumps(split))
    assert copy == split and list(copy.captions) == CAPTIONS


def test_duplicates_are_named(split):
    with pytest.raises(DataError, match="caption id 'a:1' is duplicated"):
        Split("train", split.videos, [*CAPTIONS[:5], CAPTIONS[1]])
    with pytest.raises(DataError, match="captions must be grouped by video"):
        Split("train", VIDEOS, CAPTIONS[5:] + CAPTIONS[:5])


@pytest.mark.parametrize("values", [[], ["ü", "b\udcff"], [["a", "b"], ["c", 'd"']], [1, None, {"a": [2]}]])
def test_a_hash_of_values_is_that_of_their_list(values):
    whole = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert hash_of(iter(values)) == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("kept", [0, 2**18])
def test_batches_are_shuffled_as_a_permutation(monkeypatch, kept):
    monkeypatch.setattr(scratch, "IN_MEMORY", kept)
    sampler = BatchSampler(1000 + kept % 7, 50, -3)
    state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([3, 1, 2])))
    order = state.permutation(sampler.pairs)
    rows = [sampler.rows(2 * sampler.batches_per_epoch + step) for step in range(sampler.batches_per_epoch)]
    assert np.array_equal(np.concatenate(rows), order[: len(rows) * 50])
