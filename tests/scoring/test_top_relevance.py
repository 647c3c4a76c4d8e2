"""Dense relevance of which the best videos of each text are kept: as a store of shortlists reads it."""

from __future__ import annotations

import numpy as np
import pytest

from teachclip.scoring.top_relevance import TopRelevance

CAPTIONS, VIDEOS = 12, 7
SCORES = np.random.default_rng(0).standard_normal((CAPTIONS, VIDEOS)).astype(np.float16)
OWN = np.arange(CAPTIONS) % VIDEOS


class Dense:
    """A store of dense relevance."""

    path = "store"

    def read(self, name, items, columns=None):
        values = SCORES[items] if name == "video_text" else np.full((len(SCORES[items]), 3), 1 / 3)
        return values if columns is None else values[:, columns]


def test_all_videos_are_the_dense_relevance():
    top = TopRelevance.of(Dense(), OWN, VIDEOS)
    rows, columns = np.array([3, 0, 11]), np.array([6, 2, 2])
    assert np.array_equal(top.read("video_text", rows, columns), SCORES[rows][:, columns].astype(np.float32))
    assert np.array_equal(top.read("video_text", slice(None)), SCORES.astype(np.float32))
    assert np.array_equal(top.read("frame_text", rows), np.full((3, 3), 1 / 3))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_not_kept_is_the_lowest_that_is(count):
    read = TopRelevance.of(Dense(), OWN, count).read("video_text", slice(None))
    for row, (values, own) in enumerate(zip(read, OWN, strict=True)):
        others = np.argsort(-SCORES[row].astype(np.float32))
        kept = [own, *[column for column in others if column != own][: count - 1]]
        floor = min(SCORES[row, kept].astype(np.float32))
        expected = [SCORES[row, column] if column in kept else floor for column in range(VIDEOS)]
        assert values == pytest.approx(np.array(expected, dtype=np.float32))
