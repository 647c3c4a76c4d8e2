"""Which texts stand for the captions of a video without any."""

import numpy as np
import pytest

from teachclip.scoring import surest
from teachclip.scoring.surest import surest_pairs


def of(logits, own, count=2):
    logits = np.asarray(logits, dtype=np.float32)
    found = surest_pairs(lambda rows: logits[rows], np.asarray(own), logits.shape[1], count=count)
    return [(int(t), int(v)) for t, v in zip(found.texts, found.videos, strict=True)], found.confidence


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_text_that_fits_all_videos_is_a_sure_text_of_none():
    logits = [[50, 50, 50], [5, 0, 0], [0, 3, 0], [0, 0, 1]]
    pairs, confidence = of(logits, [-1] * 4, count=1)
    assert pairs == [(1, 0), (2, 1), (3, 2)]
    assert confidence == pytest.approx(softmax(np.array(logits, float))[[1, 2, 3], [0, 1, 2]])


def test_captions_stand_for_their_own_video_and_all_texts_for_the_others():
    logits = [[9, 0, 8], [0, 0, 1], [0, 4, 3]]
    pairs, confidence = of(logits, [1, -1, -1], count=2)  # text 0 is a caption of video 1, however bad
    assert [pair for pair in pairs if pair[1] == 1] == [(0, 1)]
    assert {pair for pair in pairs if pair[1] == 0} == {(0, 0), (1, 0)}
    assert confidence[pairs.index((0, 1))] == pytest.approx(softmax(np.array(logits, float))[0, 1])


def test_blocks_change_nothing_and_few_texts_are_all_taken(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(23, 5))
    whole = of(logits, [-1] * 23, count=4)
    monkeypatch.setattr(surest, "BLOCK_NUMBERS", 15)
    blocks = of(logits, [-1] * 23, count=4)
    assert whole[0] == blocks[0] and whole[1] == pytest.approx(blocks[1])
    shares = softmax(logits)
    for video in range(5):
        assert {t for t, v in whole[0] if v == video} == set(np.argsort(-shares[:, video])[:4])
    assert len(of(logits[:2], [-1] * 2, count=4)[0]) == 10
