"""Reranking: between the student's ranking and the teacher's, and the same as sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachclip.errors import DataError
from teachclip.evaluation.reranking import Reranking, again_by_tokens, reranked
from teachclip.evaluation.retrieval import retrieval_ranks

CAPTIONS, VIDEOS = 24, 9
OWNERS = np.arange(CAPTIONS) % VIDEOS


class Dot:
    """A scorer whose score is a dot product."""

    def score(self, texts, videos):
        return texts["x"] @ videos["x"].T


def tokens(seed, levels=None):
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(count, 4, generator=generator) for count in (CAPTIONS, VIDEOS)]
    if levels:
        pair = [(part * levels).round() for part in pair]  # many equal scores
    return [{"x": part} for part in pair]


def ranks_of(student, teacher, depths):
    found = {}

    def keep(ranks):
        found[len(found)] = ranks.copy()
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachclip.evaluation.reranking.rank_metrics", keep)
        results = reranked(Dot(), *student, depths, again_by_tokens(Dot(), *teacher), OWNERS)
    return {result["k"]: found[number] for number, result in enumerate(results)}


@pytest.mark.parametrize("levels", [None, 0.7])
def test_it_is_what_sorting_by_hand_gives(levels):
    student, teacher = tokens(0, levels), tokens(1, levels)
    first, second = (np.asarray(t["x"] @ v["x"].T) for t, v in (student, teacher))
    for depth, ranks in ranks_of(student, teacher, [1, 3, 5]).items():
        for row, own in enumerate(OWNERS):
            rank = (first[row] >= first[row, own]).sum()
            if rank <= depth:
                best = np.argsort(-first[row], kind="stable")[:depth] if levels is None else None
                if best is not None:
                    rank = (second[row, best] >= second[row, own]).sum()
                    assert ranks[row] == rank
                assert ranks[row] <= depth
            else:
                assert ranks[row] == rank


def test_all_videos_reranked_are_the_teachers_ranking_and_one_is_the_students():
    student, teacher = tokens(0), tokens(1)
    ranks = ranks_of(student, teacher, [1, 100, 50])
    assert list(ranks) == [1, VIDEOS]  # there are no more
    assert np.array_equal(ranks[1], retrieval_ranks(Dot(), *student, OWNERS).t2v)
    assert np.array_equal(ranks[VIDEOS], retrieval_ranks(Dot(), *teacher, OWNERS).t2v)


def test_a_tie_with_the_last_that_is_recalled_adds_no_hit():
    student = [{"x": torch.ones(CAPTIONS, 1)}, {"x": torch.ones(VIDEOS, 1)}]
    ranks = ranks_of(student, tokens(1), [3])
    assert (ranks[3] == VIDEOS).all()


def test_cost_grows_with_the_depth():
    student = tokens(0)
    results = reranked(Dot(), *student, (2, 4), again_by_tokens(Dot(), *student), OWNERS)
    assert [item["flops_per_query"] for item in results] == [2 * 4 * 2, 2 * 4 * 4]
    assert all(item["ms_per_query"] > 0 and 0 <= item["t2v"]["recall_at_1"] <= 100 for item in results)


def test_depths_below_one_are_refused():
    with pytest.raises(DataError, match=r"videos to rerank: \[0\]; allowed: whole numbers from 1"):
        Reranking("t", Dot(), None, [0])
