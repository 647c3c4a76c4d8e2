"""Intervals, chance and ceilings, against values that are known otherwise."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from teachclip.evaluation import certainty
from teachclip.evaluation.certainty import chance_recalls, recall_intervals, repeated_captions, text_ceiling
from teachclip.evaluation.metrics import rank_metrics


def test_of_independent_queries_the_interval_is_the_binomial_one() -> None:
    ranks = np.where(np.arange(400) % 4 == 0, 1, 20)
    low, high = recall_intervals(ranks, np.arange(400))["recall_at_1"]
    half = 100 * 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((25 - half, 25 + half), abs=0.5)


def test_five_captions_that_agree_tell_no_more_than_one() -> None:
    ranks = np.where(np.arange(400) % 4 == 0, 1, 20)
    once = recall_intervals(ranks, np.arange(400))
    five = recall_intervals(np.repeat(ranks, 5), np.repeat(np.arange(400), 5))
    assert five["recall_at_1"] == pytest.approx(once["recall_at_1"])
    low, high = recall_intervals(np.repeat(ranks, 5), np.arange(2000))["recall_at_1"]
    assert high - low < 0.6 * (once["recall_at_1"][1] - once["recall_at_1"][0])


def test_blocks_of_draws_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = np.arange(1, 31)
    whole = recall_intervals(ranks, np.arange(30))
    monkeypatch.setattr(certainty, "_AT_ONCE", 30 * 7)
    assert recall_intervals(ranks, np.arange(30)) == whole


def test_chance_is_the_mean_over_all_orders() -> None:
    ranks = np.array([order.index(0) + 1 for order in permutations(range(6))])
    expected = {name: value for name, value in rank_metrics(ranks).items() if name.startswith("recall")}
    assert chance_recalls(6) == pytest.approx(expected)
    assert chance_recalls(3)["recall_at_5"] == 100


def test_the_ceiling_is_that_of_the_best_order_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certainty, "CUTOFFS", (1, 2))
    texts = ["a", "a", "b", "a", "c", "a", "b"]
    videos = np.array([0, 0, 0, 1, 1, 2, 3])
    best = {}
    for cutoff in (1, 2):
        hits = 0
        for text in set(texts):
            own = [video for video, other in zip(videos, texts, strict=True) if other == text]
            hits += max(sum(video in order[:cutoff] for video in own) for order in permutations(range(4)))
        best[f"recall_at_{cutoff}"] = 100 * hits / len(texts)
    assert text_ceiling(texts, videos) == pytest.approx(best)
    assert repeated_captions(texts, videos) == 6  # all but c
