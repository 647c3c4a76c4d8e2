import math

import pytest

from teachclip.evaluation.intervals import paired_difference, spread, t_quantile


@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (5, 2.57058),
        (7, 2.36462),
        (30, 2.04227),
        (200, 1.97190),
    ],
)
def test_t_quantiles_equal_published_tables(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, abs=1e-5 * value)


def test_t_quantile_has_closed_forms_for_one_and_two_degrees_of_freedom():
    for p in (0.6, 0.9, 0.995):
        assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)))
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))))


def test_t_quantile_refuses_what_it_cannot_answer():
    for arguments in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="need"):
            t_quantile(*arguments)


def test_interval_of_paired_differences_in_closed_form():
    interval = paired_difference([5.0, 8.0, 14.0], [4.0, 6.0, 11.0])  # differences 1, 2, 3: sd 1
    assert interval.mean == pytest.approx(2.0)
    half = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025)) / math.sqrt(3)
    assert (interval.low, interval.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert interval.touches_zero


def test_pairing_matters():
    assert not paired_difference([10.0, 20.0, 30.1], [9.0, 19.0, 29.0]).touches_zero
    assert paired_difference([30.1, 10.0, 20.0], [9.0, 19.0, 29.0]).touches_zero


def test_single_pair_has_no_interval_and_no_spread():
    interval = paired_difference([5.0], [1.0])
    assert interval == (4.0, None, None)
    assert interval.touches_zero
    assert spread([5.0]) is None
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_interval_refuses_unpaired_runs():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([], [])
