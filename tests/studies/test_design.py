import itertools

import numpy as np
import pytest

from teachclip.errors import RecipeError
from teachclip.studies.design import Design, Factor, check_told_apart, effect_names
from teachclip.studies.effects import Trainings


def factor(name, *levels):
    return Factor(name, tuple((level, (f"a.{name}={level}",)) for level in levels))


FACTORS = (factor("loss", "none", "pearson", "kl"), factor("adapters", "none", "all"), factor("rate", "low", "high"))
DESIGN = Design(FACTORS, 8)


@pytest.mark.parametrize("seed", [0, 300, 301])
def test_a_seed_trains_different_cells_in_which_levels_are_equally_frequent(seed):
    cells = DESIGN.draw(seed)
    assert len(set(cells)) == 8
    for place, varied in enumerate(FACTORS):
        counts = np.bincount([cell[place] for cell in cells], minlength=len(varied.levels))
        assert counts.max() - counts.min() <= 1
    assert cells == DESIGN.draw(seed) and cells != DESIGN.draw(seed + 1)


def test_a_cell_is_named_by_its_levels_and_has_their_overrides():
    assert DESIGN.name((2, 0, 1)) == "kl-none-high"
    assert DESIGN.overrides((2, 0, 1)) == ("a.loss=kl", "a.adapters=none", "a.rate=high")
    assert effect_names(FACTORS) == [
        ("loss", "pearson", "none"),
        ("loss", "kl", "none"),
        ("adapters", "all", "none"),
        ("rate", "high", "low"),
    ]


def test_more_cells_than_combinations_are_refused():
    with pytest.raises(RecipeError, match=r"design\.cells is 13, too many to be balanced and all different among 12"):
        Design(FACTORS, 13).draw(0)


@pytest.mark.parametrize(
    ("levels", "cells", "seeds", "message"),
    [
        ((2,) * 6, 4, (0, 1), r"8 trainings \(4 cells x 2 test seeds\) do not separate 6 effects and 2 seeds"),
        ((2, 2, 2), 4, (0,), r"4 trainings \(4 cells x 1 test seeds\) do not separate 3 effects and 1 seeds"),
    ],
)
def test_trainings_that_do_not_separate_the_effects_are_refused(levels, cells, seeds, message):
    factors = tuple(factor(f"f{place}", *"abc"[:count]) for place, count in enumerate(levels))
    with pytest.raises(RecipeError, match=message):
        check_told_apart(Design(factors, cells), seeds)


def test_trainings_that_separate_the_effects_are_taken():
    check_told_apart(DESIGN, (0, 1))
    check_told_apart(Design(FACTORS[1:], 3), (0, 1, 2))


def made_up(noise, together=0.0, seeds=5, queries=()):
    """Trainings whose values add up: -1, +2 by the losses, +3 by adapters, 0 by the rate, seeds far apart."""
    drawn = {seed: DESIGN.draw(seed) for seed in range(seeds)}
    cells = np.array(list(itertools.chain.from_iterable(drawn.values())))
    rows = np.repeat(np.arange(seeds), DESIGN.cells)
    values = 40 + 10.0 * rows + np.array([0, -1, 2])[cells[:, 0]] + 3.0 * cells[:, 1]
    values += together * ((cells[:, 0] == 2) & (cells[:, 1] == 1))
    values += noise * np.random.default_rng(0).standard_normal(len(values))
    return Trainings(FACTORS, cells, rows, queries), values


def test_effects_are_told_apart_from_each_other_and_from_the_seeds():
    trainings, values = made_up(0.0)
    assert trainings.freedom == 40 - 4 - 5
    assert np.allclose([effect.mean for effect in trainings.main_effects(values)], [-1, 2, 3, 0])


def test_intervals_are_those_of_least_squares():
    trainings, values = made_up(1.0)
    cells, rows = trainings.cells, trainings.seeds
    columns = [cells[:, 0] == 1, cells[:, 0] == 2, cells[:, 1] == 1, cells[:, 2] == 1, *(rows == k for k in range(5))]
    matrix = np.stack(columns, axis=1).astype(float)
    beta = np.linalg.solve(matrix.T @ matrix, matrix.T @ values)
    variance = np.sum((values - matrix @ beta) ** 2) / 31
    errors = np.sqrt(variance * np.diag(np.linalg.inv(matrix.T @ matrix)))[:4]
    for effect, mean, error in zip(trainings.main_effects(values), beta, errors, strict=False):
        assert effect.mean == pytest.approx(mean)
        assert effect.high - effect.mean == pytest.approx(2.0395 * error, rel=1e-4)  # t(31), from a table
        assert effect.mean - effect.low == pytest.approx(effect.high - effect.mean)


def test_nine_of_ten_intervals_hold_the_truth():
    found = 0
    trainings, exact = made_up(0.0)
    for draw in range(100):
        noisy = exact + np.random.default_rng(draw).standard_normal(len(exact))
        effect = trainings.main_effects(noisy)[2]
        found += effect.low <= 3 <= effect.high
    assert 90 <= found <= 99


def test_an_interaction_is_what_two_levels_add_beyond_each():
    trainings, values = made_up(0.0, together=5.0)
    assert trainings.interactions(values)["loss kl and adapters all"].mean == pytest.approx(5)
    trainings, values = made_up(0.1)
    assert all(abs(effect.mean) < 0.5 for effect in trainings.interactions(values).values())


def test_an_interaction_is_not_also_that_of_another_level_of_the_same_factors():
    trainings, values = made_up(0.0, together=5.0)
    effects = trainings.interactions(values)
    assert effects["loss pearson and adapters all"].mean == pytest.approx(0)
    assert list(effects) == [
        *("loss pearson and adapters all", "loss kl and adapters all"),
        *("loss pearson and rate high", "loss kl and rate high"),
        "adapters all and rate high",
    ]


def hits(trainings, videos=30):
    """Queries, three per video: the adapters find every query of the first six videos, nothing else any."""
    video = np.repeat(np.arange(videos), 3)
    return [
        {"video": [f"v{row}" for row in video], "rank": list(np.where((video < 6) & (cell[1] == 1), 1, 50))}
        for cell in trainings.cells
    ]


def test_the_interval_over_videos_is_that_of_drawing_videos():
    trainings, _ = made_up(0.0)
    trainings = Trainings(trainings.factors, trainings.cells, trainings.seeds, hits(trainings))
    values = np.array([100 * np.mean(np.array(query["rank"]) <= 1) for query in trainings.queries])
    effects = trainings.main_effects(values, 1)
    assert [round(effect.mean, 6) for effect in effects] == [0, 0, 20, 0]
    drawn = 100 * np.random.default_rng(1).binomial(30, 0.2, 100_000) / 30
    assert np.allclose(effects[2].videos, np.quantile(drawn, [0.025, 0.975]), atol=3.4)  # a video more or less
    assert np.allclose(effects[0].videos, 0)


def test_videos_of_other_seeds_are_drawn_by_themselves():
    trainings, _ = made_up(0.0)
    queries = hits(trainings)
    values = np.array([100 * np.mean(np.array(query["rank"]) <= 1) for query in queries])

    def width(same_videos):
        one = Trainings(trainings.factors, trainings.cells, trainings.seeds, queries, same_videos=same_videos)
        low, high = one.main_effects(values, 1)[2].videos
        return high - low

    assert width(False) == pytest.approx(width(True) / np.sqrt(5), rel=0.25)
