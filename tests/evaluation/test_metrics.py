"""Metrics of ranks: closed forms and the recorded numbers of the official code."""

import numpy as np
import pytest

from teachclip.errors import DataError
from teachclip.evaluation.metrics import rank_metrics, sum_of_recalls


def test_recalls_are_percentages_of_queries_at_or_above_the_cutoff():
    metrics = rank_metrics(np.array([1, 2, 5, 6, 10, 11, 100, 1]))
    assert metrics == {
        "recall_at_1": 25.0,
        "recall_at_5": 50.0,
        "recall_at_10": 75.0,
        "median_rank": 5.5,
        "mean_rank": 17.0,
    }


def test_the_lower_median_is_the_lower_of_the_two_middle_ranks():
    ranks = np.array([9, 1, 4, 2])
    assert rank_metrics(ranks)["median_rank"] == 3
    assert rank_metrics(ranks, lower_median=True)["median_rank"] == 2
    for odd in (np.array([7]), np.array([9, 1, 4])):
        assert rank_metrics(odd) == rank_metrics(odd, lower_median=True)


def test_the_lower_median_is_that_of_torch():
    torch = pytest.importorskip("torch")
    state = np.random.RandomState(0)
    for count in range(1, 20):
        ranks = state.randint(1, 30, count)
        found = rank_metrics(ranks, lower_median=True)["median_rank"]
        assert found == torch.from_numpy(ranks).median().item()


def test_perfect_retrieval_has_rank_one_and_sum_600():
    metrics = rank_metrics(np.ones(3, dtype=np.int64))
    assert metrics["mean_rank"] == metrics["median_rank"] == 1
    assert sum_of_recalls(metrics, metrics) == 600


def test_the_sum_of_recalls_adds_both_directions():
    t2v, v2t = rank_metrics(np.array([1, 6])), rank_metrics(np.array([2, 20]))
    assert sum_of_recalls(t2v, v2t) == 50 + 50 + 100 + 0 + 50 + 50


@pytest.mark.parametrize("ranks", [[], [0, 1], [1.0, float("nan")], [[1], [2]]])
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(DataError, match="rank"):
        rank_metrics(np.array(ranks))
