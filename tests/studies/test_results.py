import itertools
import math

import numpy as np
import pytest

from teachclip.evaluation.comparison import compare
from teachclip.evaluation.per_query import PerQuery
from teachclip.reports.tables import difference_cell
from teachclip.studies.certainty import gallery_hits
from teachclip.studies.results import GALLERY, Candidate, VariantRuns, choose, difference, edges, verdicts
from teachclip.studies.tables import difference_table, factors_table, frame_table, recall_table


def run(t2v: float, v2t: float = 10.0) -> dict:
    recalls = {"recall_at_1": t2v, "recall_at_5": t2v + 10, "recall_at_10": t2v + 20}
    return {"t2v": recalls, "v2t": {**recalls, "recall_at_1": v2t}, "sum_of_recalls": 3 * t2v + v2t}


def variant(name: str, values: list[float], **more) -> VariantRuns:
    return VariantRuns(name, name, [run(value) for value in values], **more)


def candidate(lr: str, factor: float, *scores: float) -> Candidate:
    return Candidate((f"optimizer.lr={lr}",), factor, scores)


def test_choice_is_the_best_mean_over_dev_seeds_not_the_best_single_seed():
    steady, lucky = candidate("1e-4", 1, 30, 30), candidate("3e-4", 1, 35, 20)
    assert choose([lucky, steady]) is steady


def test_of_equal_candidates_the_first_is_chosen():
    first, second = candidate("1e-4", 1, 30), candidate("3e-4", 1, 30)
    assert choose([first, second]) is first


def test_differences_are_paired_by_seed():
    found = difference(variant("taught", [31.0, 22.0, 43.0]), variant("alone", [30.0, 20.0, 40.0]), "R@1")
    assert found["values"] == [1.0, 2.0, 3.0]
    assert found["mean"] == pytest.approx(2.0)
    # t(0.975, 2) = 4.302653, standard deviation 1
    assert found["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-4)
    assert found["wins"] == 3 and found["touches_zero"]


def test_verdict_says_which_differences_touch_zero_and_which_are_worse():
    alone = variant("alone", [30.0, 20.0, 40.0])
    clear = difference(variant("taught", [35.0, 25.1, 45.0]), alone, "R@1")
    worse = difference(variant("bad", [25.0, 15.1, 35.0]), alone, "R@1")
    unclear = difference(variant("same", [31.0, 19.0, 40.0]), alone, "R@1")
    lines = verdicts([clear, worse, unclear])
    assert "Clear of zero: better" in lines[0]
    assert "WORSE" in lines[1]
    assert "touches zero" in lines[2]


def test_tables_hold_every_metric_and_the_wins():
    alone, taught = variant("alone", [30.0, 20.0]), variant("taught", [35.0, 27.0])
    table = recall_table("t", [alone, taught])
    assert table.header == ["model", "R@1", "R@5", "R@10", "R@1, v2t", "sum"]
    assert table.rows[0][1].startswith("25.0 ± 7.1")
    differences = [difference(taught, alone, metric) for metric in ("R@1", "R@10")]
    assert difference_table("d", differences).rows[0][1].endswith("2/2")


def test_frame_table_leaves_out_variants_that_weigh_no_frames():
    frames = [{"event": 0.5, "distractor": 0.4, "empty": 0.1}] * 2
    table = frame_table("f", [variant("alone", [1.0, 2.0]), variant("taught", [1.0, 2.0], frames=frames)])
    assert [row[0] for row in table.rows] == ["taught"]
    assert table.rows[0][1].startswith("50.0")


def test_edges_name_what_lies_at_the_end_of_a_grid():
    tried = [candidate(lr, factor, 1.0) for lr in ("1e-4", "3e-4", "1e-3") for factor in (1, 2, 4)]
    assert edges(candidate("1e-3", 2, 1.0), tried) == ["optimizer.lr=0.001"]
    assert edges(candidate("3e-4", 2, 1.0), tried) == []


def test_edges_count_the_recipes_own_value_where_a_setting_leaves_it():
    tried = [Candidate(settings, 1, (1.0,)) for settings in ((), ("optimizer.lr=1e-4",), ("optimizer.lr=3e-4",))]
    own = {"optimizer.lr": 1e-3}
    assert edges(tried[2], tried) == []  # two values alone
    assert edges(tried[2], tried, own) == []  # now it lies between 1e-4 and the recipe's 1e-3
    assert edges(tried[2], tried, least=2) == ["optimizer.lr=0.0003"]
    assert edges(tried[0], tried, own) == ["optimizer.lr=0.001"]
    assert edges(tried[1], tried, own) == ["optimizer.lr=0.0001"]
    assert edges(tried[1], tried[1:], own, least=2) == ["optimizer.lr=0.0001"]  # the recipe's own was not tried


def with_queries(name, *seeds):
    """A variant; each seed is the ranks of its queries, two per video."""
    runs = []
    for ranks in seeds:
        videos = [f"v{row // 2:02}" for row in range(len(ranks))]
        runs.append(
            {**run(100 * sum(rank <= 1 for rank in ranks) / len(ranks)), "queries": {"video": videos, "rank": ranks}}
        )
    return VariantRuns(name, name, runs)


def drawn_ranks(seed, count=60):
    return np.random.default_rng(seed).integers(1, 4, count).tolist()


def test_the_interval_over_videos_of_one_seed_is_that_of_comparing_two_models():
    one, other = with_queries("a", drawn_ranks(1)), with_queries("b", drawn_ranks(2))
    found = difference(one, other, "R@1")

    def kept(model):
        queries = model.runs[0]["queries"]
        count = len(queries["rank"])
        names = [f"{row:03}" for row in range(count)]
        both = {"direction": ["t2v"] * count + ["v2t"] * count, "query": names * 2, "video": queries["video"] * 2}
        return PerQuery(**both, text=[""] * 2 * count, rank=queries["rank"] * 2, score=[0.0] * 2 * count)

    expected = compare(kept(other), kept(one))[0]
    assert found["mean"] == pytest.approx(expected.difference)
    assert found["videos"] == pytest.approx((expected.low, expected.high))


def test_videos_of_all_seeds_are_drawn_together_or_by_themselves():
    one = with_queries("a", *(drawn_ranks(seed) for seed in (1, 2, 3)))
    other = with_queries("b", *(drawn_ranks(seed) for seed in (4, 5, 6)))
    widths = [
        high - low
        for same in (True, False)
        for low, high in [difference(one, other, "R@1", same_videos=same)["videos"]]
    ]
    alone = difference(with_queries("a", drawn_ranks(1)), with_queries("b", drawn_ranks(4)), "R@1")["videos"]
    assert all(width < alone[1] - alone[0] for width in widths)  # three seeds know more than one
    assert widths[0] == pytest.approx(widths[1], rel=0.35)  # independent gains: either way as many of them


def test_a_gain_that_one_video_carries_is_clear_over_seeds_and_not_over_videos():
    behind, ahead = [2] * 40, [1, 1, *[2] * 38]
    found = difference(with_queries("a", ahead, ahead, ahead), with_queries("b", behind, behind, behind), "R@1")
    assert found["low"] == pytest.approx(5) and found["videos"][0] == 0
    assert "Clear of zero: better. Other test videos might not show it" in verdicts([found])[0]
    assert difference_cell(found).startswith("+5.0 [+5.0, +5.0] 3/3; videos [+0.0, +")


def test_runs_on_different_queries_have_no_interval_over_videos():
    one, other = with_queries("a", drawn_ranks(1), drawn_ranks(2)), with_queries("b", drawn_ranks(3), drawn_ranks(4))
    assert difference(one, other, "R@1")["videos"] is not None
    shorter = with_queries("b", drawn_ranks(3), drawn_ranks(4, count=40))
    assert difference(one, shorter, "R@1")["videos"] is None
    both = with_queries("a", drawn_ranks(1), drawn_ranks(2, count=40))
    assert difference(both, shorter, "R@1", same_videos=False)["videos"] is not None
    assert difference(both, shorter, "R@1")["videos"] is None


def test_without_kept_ranks_there_is_no_interval_over_videos():
    found = difference(variant("a", [31.0, 22.0, 43.0]), variant("b", [30.0, 20.0, 40.0]), "R@1")
    assert found["videos"] is None


def test_factors_table_shows_every_setting_as_trained_and_at_its_best():
    tried = [candidate("1e-4", 1, 20.0), candidate("1e-4", 4, 30.0), candidate("3e-4", 1, 25.0)]
    rows = factors_table("t", {"alone": tried}).rows
    assert rows[0][2:] == ["20.0", "30.0", "4"]
    assert rows[1][2:] == ["25.0", "25.0", "1"]


def test_chance_to_be_first_in_a_gallery_is_that_over_all_galleries():
    videos, gallery = 7, 4
    others = list(range(1, videos + 1))
    for rank in others:
        drawn = list(itertools.combinations([other for other in others if other != rank], gallery - 1))
        first = sum(min(chosen) > rank for chosen in drawn) / len(drawn)
        assert gallery_hits([rank], videos, gallery)[0] == pytest.approx(first, abs=1e-12)
    assert gallery_hits(others, videos, videos).tolist() == [1.0] + [0.0] * 6  # all videos: R@1 itself
    ranks = [1, 2, 5, 1201, 1202, 1500]
    exact = [math.comb(1500 - rank, 299) / math.comb(1499, 299) for rank in ranks]
    assert gallery_hits(ranks, 1500, 300) == pytest.approx(exact) and exact[-2:] == [0, 0]


def test_recall_in_a_gallery_stands_in_the_tables_with_both_intervals():
    ranks = {
        "taught": [[1, 2, 9, 4], [1, 1, 8, 5], [1, 2, 7, 6]],
        "alone": [[3, 2, 9, 4], [2, 3, 8, 5], [4, 2, 7, 7]],
    }
    models = []
    for name, seeds in ranks.items():
        runs = [{**run(10.0), "videos": 10, "queries": {"video": list("abcd"), "rank": each}} for each in seeds]
        models.append(VariantRuns(name, name, runs, gallery=4))
    taught, alone = models
    expected = [100 * gallery_hits(each, 10, 4).mean() for each in ranks["taught"]]
    assert taught.values(GALLERY) == pytest.approx(expected)
    found = difference(taught, alone, GALLERY)
    gains = np.mean(
        [gallery_hits(ranks["taught"][i], 10, 4) - gallery_hits(ranks["alone"][i], 10, 4) for i in range(3)], 0
    )
    assert found["mean"] == pytest.approx(100 * gains.mean()) and found["wins"] == 3
    assert 0 <= found["videos"][0] < found["mean"] < found["videos"][1] <= 100 * gains.max()
    assert any(GALLERY in line for line in verdicts([found]))
    unknown = variant("ranks not kept", [5.0, 6.0, 7.0], gallery=4)
    table = recall_table("t", [taught, unknown])
    assert table.header[:3] == ["model", GALLERY, "R@1"] and table.rows[1][1] == ""
    assert table.rows[0][1].startswith(f"{np.mean(expected):.1f}")
    mixed = difference_table("d", [found, difference(taught, alone, "R@1"), difference(unknown, alone, "R@1")])
    assert mixed.header == ["difference", GALLERY, "R@1"] and mixed.rows[1][1] == ""
