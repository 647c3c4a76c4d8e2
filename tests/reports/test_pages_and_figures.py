from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError

from teachclip.pipeline.run_report import write_run_report
from teachclip.reports import figures
from teachclip.reports.figures import draw_intervals
from teachclip.reports.pages import render_page
from teachclip.reports.tables import Table, difference_cell, interval_cell, markdown_table, mean_cell, result_notes


def test_a_value_that_a_template_does_not_get_is_an_error():
    with pytest.raises(UndefinedError, match="subtitle"):
        render_page("results.html", title="a title")


def test_a_last_step_is_not_said_to_be_selected():
    (kept,) = result_notes([{"selected_on": "test", "selected_by": "last step"}])
    assert kept.startswith("The last step was kept, not the best: test has")
    scaled, _ = result_notes([{"selected_on": "test", "selected_by": "last step", "temperature_scaling": {}}])
    assert scaled.startswith("The pooling temperature was chosen on the TEST split")
    (chosen,) = result_notes([{"selected_on": "test"}])
    assert chosen.startswith("Checkpoints were selected on the TEST split")


def test_facts_of_a_split_are_said_once_however_many_models_are_compared():
    def result(recall, low, high):
        found = {"captions": 300, "videos": 300, "repeated_captions": 14, "t2v": {"recall_at_1": recall}}
        found |= {"chance": {"recall_at_1": 0.33}, "ceiling": {"recall_at_1": 97.7}}
        return {"selected_on": "validation", "test": {**found, "intervals": {"t2v": {"recall_at_1": (low, high)}}}}

    alone, several = result_notes([result(40, 35, 46)]), result_notes([result(40, 35, 46), result(60, 56, 64)])
    repeated = "test: 14 captions are also those of other videos: no model can have more than 97.7 R@1."
    among = "test: 300 captions among 300 videos; R@1 text to video"
    assert alone == [f"{among} 40.0 [35.0, 46.0] (95 % over videos), chance 0.3.", repeated]
    assert several == [f"{among} of one model within 5.5 or less (95 % over videos), chance 0.3.", repeated]


def test_a_run_whose_log_is_gone_has_a_page_without_curves(tmp_path):
    metrics = dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank"), 7.0)
    results = {"model": "student", "step": 3, "test": {"t2v": metrics}}
    page = write_run_report(SimpleNamespace(name="r", output=tmp_path), results).read_text()
    assert "<td>7.0</td>" in page.replace(' class="number"', "") and "no curves" in page and "base64" not in page


def test_cells_show_means_with_a_spread_and_differences_with_interval_and_wins():
    assert (mean_cell([10.0, 14.0]), mean_cell([10.0])) == ("12.0 ± 2.8", "10.0")
    item = {"mean": 2.0, "low": -0.5, "high": 4.5, "wins": 2, "values": [1.0, 2.0, 3.0]}
    assert (interval_cell(item), difference_cell(item)) == ("[-0.5, +4.5]", "+2.0 [-0.5, +4.5] 2/3")
    alone = {**item, "low": None, "high": None}
    assert (interval_cell(alone), difference_cell(alone)) == ("none", "+2.0 (2/3)")


def test_the_figure_of_intervals_is_a_png(tmp_path):
    path = tmp_path / "recall.png"
    rows = [
        {"label": "a", "mean": 11.0, "low": 9.0, "high": 13.0, "values": [10.0, 11.0, 12.0]},
        {"label": "b", "mean": 10.0, "low": None, "high": None, "values": [10.0]},
    ]
    draw_intervals(rows, path, title="A title", label="R@1")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_learning_curves_have_every_loss_rate_and_validation(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    lines = [
        {"step": n, "loss": 3.0 / n, "video_text": 1.0 / n, "grad_norm": 9.0, "lr.attention": 1e-3 * (n - 1)}
        for n in (1, 2, 3)
    ]
    lines += [{"step": 3, "validation": {"t2v": {"recall_at_1": 40.0}}}, {"step": 3, "seconds": {}, "steps": 3}]
    figures.draw_curves(lines, tmp_path / "curves.png")
    losses, recall, rates = drawn[0].axes
    assert [line.get_label() for line in losses.lines] == ["loss", "video_text"]
    assert [list(line.get_ydata()) for line in losses.lines] == [[3.0, 1.5, 1.0], [1.0, 0.5, pytest.approx(1 / 3)]]
    assert list(recall.lines[0].get_ydata()) == [40.0] and list(recall.lines[0].get_xdata()) == [3]
    assert [line.get_label() for line in rates.lines] == ["attention"] and rates.get_yscale() == "log"
    monkeypatch.undo()
    for kept in (lines, [{**lines[0], "video_text": -1.0}], []):
        figures.draw_curves(kept, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("values", [(2.1, 2.9), (0.1, 4.0), (1e-8, 3e-3), (3.0, 3.0)])
def test_a_logarithmic_axis_has_labels_whatever_its_range(tmp_path, monkeypatch, values):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.draw_curves([{"step": n, "loss": value} for n, value in enumerate(values, 1)], tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    labels = [axes.yaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(labels)) == len(labels) >= 2
    assert [float(label) for label in labels] == pytest.approx(ticks)


def test_columns_of_words_and_of_numbers_are_distinguished():
    table = Table(
        "", ["model", "R@1", "part", "interval"], [["1", "", "a gain", "[+1.0, +2.0]"], ["b", "-3.1", "", ""]]
    )
    assert table.is_numeric == [False, True, False, True]
    assert markdown_table(table).splitlines()[1] == "|-------|-----:|--------|-------------:|"
    assert markdown_table(Table("", ["a", "b"], [])) == "| a | b |\n|---|--:|"
