import html
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from html_pages import HOSTILE, check_hostile_page, checked_page
from made_up import made_up_cost, made_up_run

from teachclip.demo.report import (
    ModelResults,
    build_report,
    report_markdown,
    report_page,
    report_tables,
    terminal_text,
    verdicts,
)
from teachclip.reports.figures import draw_frames, draw_recall, model_colours

SEEDS = [1, 2, 3]


def a_report(distilled=(25.0, 26.0, 30.0), seeds=SEEDS, **head):
    base = [19.0, 21.0, 23.0][: len(seeds)]
    models = [
        ModelResults("zero_shot", "zero-shot", [made_up_run(6.1)], made_up_cost(512)),
        ModelResults("undistilled", "undistilled", [made_up_run(value) for value in base], made_up_cost(513)),
        ModelResults(
            "distilled", "distilled <b>&", [made_up_run(v, shift=0.2, **head) for v in distilled], made_up_cost(514)
        ),
        ModelResults("teacher", "teacher", [made_up_run(58.4)], made_up_cost(6156)),
    ]
    return build_report(
        models,
        comparisons=[("distilled", "undistilled")],
        seeds=seeds,
        title="a title",
        commands={"distilled": "python tools/distill.py 'teachers=[]'"},
        files={"student": "runs/demo/distilled-1/student"},
        machine={"cores": 2, "python": "3.11"},
        seconds={"Shapes dataset": 61.23},
    )


def model(report, name):
    return next(model for model in report["models"] if model["name"] == name)


def test_report_holds_mean_and_sample_deviation_of_the_seeds():
    value = model(a_report(), "distilled")["t2v"]["recall_at_1"]
    assert value["mean"] == pytest.approx(27.0)
    assert value["sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert value["values"] == [25.0, 26.0, 30.0]
    assert model(a_report(), "teacher")["t2v"]["recall_at_1"]["sd"] is None


def test_report_holds_the_paired_difference_of_the_named_models():
    difference, *others = a_report()["differences"]
    assert [other["metric"] for other in others] == ["recall_at_10", "mean_rank"]
    assert difference["values"] == [6.0, 5.0, 7.0]
    half = 4.302653 / math.sqrt(3)
    assert (difference["mean"], difference["low"], difference["high"]) == pytest.approx((6.0, 6 - half, 6 + half))
    assert difference["touches_zero"] is False


def test_verdict_says_in_words_whether_the_interval_touches_zero():
    better, unclear = a_report(), a_report(distilled=(25.0, 21.0, 23.0))
    worse, single = a_report(distilled=(9.0, 11.0, 13.5)), a_report(distilled=(25.0,), seeds=[1])
    assert "R@1, and the interval is clear of zero: better" in verdicts(better)[0]
    assert "touches zero" in verdicts(unclear)[0]
    assert "R@1, and the interval is clear of zero: WORSE" in verdicts(worse)[0]
    assert "single seed" in verdicts(single)[0]
    assert [len(verdicts(report)) for report in (better, unclear, worse, single)] == [
        5,
        3,
        5,
        3,
    ]


def test_verdict_knows_that_a_lower_rank_is_better():
    assert "-1.2 MeanR, and the interval is clear of zero: better" in verdicts(a_report())[2]
    assert (
        "+2.0 MeanR, and the interval is clear of zero: WORSE" in verdicts(a_report(distilled=(9.0, 11.0, 13.5)))[2]
    )


def test_remark_on_the_test_set_uses_the_binomial_error():
    share = 0.584
    assert f"{100 * math.sqrt(share * (1 - share) / 320):.1f} points" in verdicts(a_report())[-2]


def test_selection_on_test_left_out_videos_and_overlaps_are_stamped_on_every_form():
    overlap = "2 files are in more than one split: train 'a' and test 'b' are segments of one file and 1 more"
    partial, damaged = {"train": "8,973 of 9,000", "test": "9 of 10"}, {"a": "cut off", "b": "cut off"}
    report = a_report(selected_on="test", partial=partial, overlaps=[overlap], partially_decoded=damaged)
    for text in (terminal_text(report), report_markdown(report, []), report_page(report, [])):
        assert "selected on the TEST split" in text
        assert "Partially decoded: 2 videos; the rest of them is damaged." in text
        assert "Partial: 8,973 of 9,000 train videos, 9 of 10 test videos; the others are missing" in text
        assert html.unescape(text).count(f"Overlap: {overlap}.") == 1


def numbers_of(report):
    """Every measured number as it must be printed."""
    found = []
    for one in report["models"]:
        for direction in ("t2v", "v2t"):
            for value in one[direction].values():
                found.append(f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else ""))
        found += [f"{one['cost']['bytes_per_video']:,.0f}", f"{one['cost']['ms_per_query']:.3g}"]
    for difference in report["differences"]:
        found += [f"{difference['mean']:+.1f}", f"[{difference['low']:+.1f}, {difference['high']:+.1f}]"]
        found += [f"{value:+.1f}" for value in difference["values"]]
    return found


def test_markdown_terminal_and_html_contain_every_number():
    report = a_report()
    numbers = numbers_of(report)
    assert len(set(numbers)) > 40
    for text in (report_markdown(report, []), terminal_text(report), text_of(report_page(report, []))):
        assert [number for number in numbers if number not in text] == []


def text_of(page):
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    return "\n".join("".join(cell.itertext()) for cell in tree.iter("td"))


def test_markdown_tables_are_rectangular():
    blocks = [block.splitlines() for block in report_markdown(a_report(), []).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 8
    for block in blocks:
        assert len(block) > 2
        assert len({(len(line), line.count("|")) for line in block}) == 1


def test_page_is_well_formed_and_needs_nothing_from_elsewhere(tmp_path):
    report = a_report()
    draw_recall(report, tmp_path / "recall.png")
    page = report_page(report, [(tmp_path / "recall.png", 'a "caption" <here>')])
    tree = checked_page(page, images=1)
    assert len(tree.findall(".//table")) == len(report_tables(report)) + 4
    assert "distilled <b>&" in "".join(tree.itertext())


def test_page_shows_hostile_texts_as_text(tmp_path):
    report = {**a_report(), "title": HOSTILE, "notes": [HOSTILE], "commands": {HOSTILE: HOSTILE}}
    draw_recall(report, tmp_path / "recall.png")
    check_hostile_page(report_page(report, [(tmp_path / "recall.png", HOSTILE)]), images=1)


def test_report_without_figures_says_how_to_get_them():
    for text in (report_markdown(a_report(), []), report_page(a_report(), [])):
        assert "matplotlib" in text
        assert "teachclip[report]" in text
    assert "matplotlib" not in report_markdown(a_report(), [("recall.png", "recall")])


def test_report_is_json():
    report = a_report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_figures_are_whole_png_files_and_the_same_for_the_same_numbers(tmp_path):
    report = a_report()
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    weights = {"teacher": np.full(5, 0.2), "undistilled": np.array([0.0, 0.9, 0.1, 0.0, 0.0])}
    for name in ("a.png", "b.png"):
        draw_frames(frames, weights, tmp_path / name, title="a title", colours=model_colours(report))
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    assert data == (tmp_path / "b.png").read_bytes()
    weights["teacher"] = np.array([0.4, 0.0, 0.2, 0.2, 0.2])
    draw_frames(frames, weights, tmp_path / "c.png", title="a title", colours=model_colours(report))
    assert data != (tmp_path / "c.png").read_bytes()
