import pytest

from teachclip.evaluation.intervals import t_quantile
from teachclip.studies.results import Candidate, VariantRuns, edges, recall_intervals
from teachclip.studies.tables import Effort, choices_table, cost_table, tried_table


def variant(*values, chosen=None, cost=None):
    runs = [{"t2v": {"recall_at_1": value}, **({"cost": cost} if cost else {})} for value in values]
    return VariantRuns("a", "variant", runs, (), chosen)


def test_interval_of_a_mean_is_students_and_absent_for_one_seed():
    found = recall_intervals([variant(10.0, 12.0, 14.0), variant(10.0)])
    half = t_quantile(0.975, 2) * 2 / 3**0.5
    assert (found[0]["low"], found[0]["high"]) == (pytest.approx(12 - half), pytest.approx(12 + half))
    assert (found[1]["mean"], found[1]["low"], found[1]["high"]) == (10, None, None)


def test_edges_are_of_numbers_alone_and_of_as_many_values_as_required():
    tried = [Candidate((f"rate={rate}", f"kind={kind}"), 1.0, (1.0,)) for rate in (1, 2) for kind in ("a", "b")]
    assert edges(tried[0], tried) == []
    assert edges(tried[0], tried, least=2) == ["rate=1"]
    more = [*tried, Candidate(("rate=3", "kind=a"), 1.0, (1.0,))]
    assert edges(more[2], more) == [] and edges(more[-1], more) == ["rate=3"]


def test_what_was_chosen_shows_the_temperature_scaling_of_every_seed_where_there_is_one():
    tried = {"a": [Candidate(("rate=1",), 1.0, (20.0, 22.0)), Candidate(("rate=2",), 1.0, (10.0, 30.0))]}
    one = variant(1.0, 2.0, chosen=tried["a"][0])
    plain = choices_table("t", [one], tried, {"a": Effort([1.0], 5)}, {})
    assert list(plain.rows[0]) == ["variant", "rate=1", "21.0", "rate=1"]
    scaled = choices_table("t", [one], tried, {"a": Effort([1.0], 5, [1.0, 16.0])}, {})
    assert (scaled.header[-1], scaled.rows[0][-1]) == ("temperature_scaling, by seed", "1, 16")
    mixed = choices_table("t", [one], tried, {"a": Effort([1.0], 5, [1.0, 16.0], [0.5, 1.0])}, {})
    assert mixed.header[-2:] == ["temperature_scaling, by seed", "wise_ft, by seed"]
    assert list(mixed.rows[0][-2:]) == ["1, 16", "0.5, 1"]


def test_what_was_chosen_shows_on_how_many_seeds_a_condition_held():
    tried = {"a": [Candidate(("rate=1",), 1.0, (20.0,))]}
    one = variant(1.0, chosen=tried["a"][0])
    table = choices_table(
        "t",
        [one],
        tried,
        {"a": Effort([1.0], 5, conditions=[{"if_late_interaction": held} for held in (True, False, True)])},
        {},
    )
    assert (table.header[-1], table.rows[0][-1]) == ("conditions that held, seeds", "if_late_interaction: 2 of 3")


def test_every_trial_is_shown_and_one_of_each_variant_is_the_chosen_one():
    tried = {"variant": [Candidate(("rate=1",), 1.0, (20.0, 22.0)), Candidate(("rate=2",), 1.0, (20.0, 24.0))]}
    assert tried_table("t", tried, [7, 8]).rows == [
        ["variant", "rate=1", "20.0", "22.0", "21.0", ""],
        ["variant", "rate=2", "20.0", "24.0", "22.0", "chosen"],
    ]


def test_cost_is_left_empty_where_it_was_not_measured():
    cost = {"bytes_per_video": 512.0, "flops_per_query": 1.5e6, "ms_per_query": 0.25, "candidates": 1000}
    efforts = {"a": Effort([10.0, 14.0], 1234)}
    table = cost_table("t", [variant(1.0, cost=cost)], efforts)
    assert table.header[-1] == "ms per query, 1,000 videos"
    assert table.rows == [["variant", "12.0 ± 2.8", "1,234", "512", "1.5M", "0.25"]]
    assert cost_table("t", [variant(1.0)], {}).rows == [["variant", "", "", "", "", ""]]


def test_the_text_adapter_has_a_column_where_some_variant_has_one():
    cost = {"bytes_per_video": 512.0, "flops_per_query": 1.5e6, "ms_per_query": 0.25, "candidates": 1000}
    adapter = {**cost, "text_adapter_flops": 262144.0, "text_adapter_ms": 0.03}
    table = cost_table("t", [variant(1.0, cost=cost), variant(1.0, cost=adapter)], {})
    assert table.header[-1] == "text adapter, once per query"
    assert [row[-1] for row in table.rows] == ["", "262k, 0.03 ms"]
