"""Agreement with a teacher where there are no captions."""

import numpy as np
import pytest
import torch

from teachclip.evaluation.agreement import Agreement, mean_agreement

TEACHER = np.array([[3, 2, 1], [1, 2, 3], [9, 1, 8], [0, 5, 1]], dtype=np.float32)


def test_the_same_order_is_full_agreement_whatever_the_scale():
    found = Agreement("t", TEACHER).of(torch.from_numpy(TEACHER * 0.01 - 3))
    assert found["t2v"]["recall_at_1"] == 100.0 and found["t2v"]["mean_rank"] == 1.0
    assert found["rank_correlation"] == pytest.approx(1.0)


def test_the_rank_is_that_of_the_teachers_first_video():
    found = Agreement("t", TEACHER).of(torch.from_numpy(-TEACHER))
    assert found["t2v"]["recall_at_1"] == 0.0 and found["t2v"]["mean_rank"] == 3.0
    assert found["rank_correlation"] == pytest.approx(-1.0)
    half = TEACHER.copy()
    half[2:] *= -1
    assert Agreement("t", TEACHER).of(torch.from_numpy(half))["t2v"]["recall_at_1"] == 50.0


def test_one_video_has_no_order():
    assert Agreement("t", TEACHER[:, :1]).of(torch.zeros(4, 1))["rank_correlation"] == 0.0


def test_teachers_count_by_their_weights():
    teachers = [Agreement("a", TEACHER, 3.0), Agreement("b", -TEACHER, 1.0)]
    scores = torch.from_numpy(TEACHER)
    found = mean_agreement({teacher.label: teacher.of(scores) for teacher in teachers}, teachers)
    assert found["t2v"]["recall_at_1"] == 75.0 and found["rank_correlation"] == pytest.approx(0.5)
    assert found["agreement_with"] == ["a", "b"]
