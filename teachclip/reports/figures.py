"""Figures of reports, drawn with matplotlib (extra `report`)."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.store.files import write_atomic

RECALLS = {"recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10"}
PALETTE = ("#a8adb5", "#8ab8e6", "#2f6fb7", "#12813f", "#e08a1e", "#8a4fb0")
INK, SOFT = "#22252a", "#6b7079"
NO_FIGURES = "No figures: they need matplotlib. Run `pip install 'teachclip[report]'` and this command again."


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_recall(report: Mapping[str, Any], path: Path, *, direction: str = "t2v") -> None:
    """Draw recall at 1, 5 and 10 of every model as bars, with every seed as a dot, into a PNG file."""
    figure = _figure(9.0, 4.6)
    axes = figure.add_subplot()
    models = report["models"]
    width = 0.84 / len(models)
    for index, model in enumerate(models):
        places = np.arange(len(RECALLS)) + (index - (len(models) - 1) / 2) * width
        stats = [model[direction][metric] for metric in RECALLS]
        heights = [stat["mean"] for stat in stats]
        colour = PALETTE[index % len(PALETTE)]
        axes.bar(places, heights, width * 0.92, color=colour, label=model["label"], zorder=2)
        tops = list(heights)
        if model["runs"] > 1:
            axes.errorbar(
                places,
                heights,
                [stat["sd"] for stat in stats],
                fmt="none",
                ecolor=INK,
                elinewidth=1,
                capsize=3,
                zorder=3,
            )
            tops = [max(*stat["values"], stat["mean"] + stat["sd"]) for stat in stats]
            for place, stat in zip(places, stats, strict=True):
                dots = place + width * 0.25 * np.linspace(-1, 1, len(stat["values"]))
                axes.plot(dots, stat["values"], "o", ms=3, mfc="white", mec=INK, mew=0.7, zorder=4)
        for place, height, top in zip(places, heights, tops, strict=True):
            _label(axes, f"{height:.1f}", place, top)
    axes.set_xticks(range(len(RECALLS)), list(RECALLS.values()))
    axes.set_ylim(0, 106)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("queries found, %", color=SOFT)
    axes.set_title(
        f"{report['captions']} captions search {report['videos']} videos", loc="left", fontsize=11, color=INK
    )
    axes.grid(axis="y", color="#e4e6ea", zorder=0)
    _plain(axes)
    axes.tick_params(axis="x", labelsize=10)
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside upper left", labelcolor=INK)
    _save(figure, path)


def draw_frames(
    frames: np.ndarray, weights: Mapping[str, np.ndarray], path: Path, *, title: str, colours: Mapping[str, str]
) -> None:
    """Draw a strip of a video's frames and below it, per model, the weight of every frame, into a PNG file.

    `frames`: uint8 (frames, height, width, 3). `weights`: label -> (frames,), each adding up to 1.
    `colours`: colour per label, as `model_colours` gives them.
    """
    count, aspect = len(frames), frames.shape[1] / frames.shape[2]
    figure = _figure(10.5, 0.5 + 0.75 * aspect + 0.68 * len(weights))
    figure.get_layout_engine().set(h_pad=0.03, hspace=0)
    grid = figure.add_gridspec(1 + len(weights), 1, height_ratios=[0.75 * aspect, *[0.68] * len(weights)])
    strip = figure.add_subplot(grid[0])
    for place, frame in enumerate(frames):
        strip.imshow(frame, extent=(place - 0.46, place + 0.46, 0, 1), aspect="auto", interpolation="nearest")
    strip.set_xlim(-0.5, count - 0.5)
    strip.set_ylim(0, 1)
    strip.axis("off")
    strip.set_title("\n".join(textwrap.wrap(title, 100)), loc="left", fontsize=11, color=INK)
    highest = max(float(values.max()) for values in weights.values())
    for row, (label, values) in enumerate(weights.items(), start=1):
        axes = figure.add_subplot(grid[row])
        axes.bar(range(count), values, 0.92, color=colours[label], zorder=2)
        for place, value in enumerate(values):
            if value >= 0.01:
                _label(axes, f"{100 * value:.0f}%", place, value)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(0, 1.3 * highest)
        axes.set_yticks([])
        axes.set_xticks([])
        axes.set_ylabel(
            "\n".join(textwrap.wrap(label, 18)), rotation=0, ha="right", va="center", fontsize=9, color=INK
        )
        _plain(axes)
    _save(figure, path)


def draw_intervals(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str, label: str) -> None:
    """Draw one line per model: its mean, its confidence interval and every seed as a dot, into a PNG file.

    `rows`: mappings with `label`, `mean`, `low`, `high` (None: no interval) and `values`, in percent. `label`: of the
    axis.
    """
    figure = _figure(9.0, 1.2 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = PALETTE[2]
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=5, alpha=0.35, zorder=2)
        axes.plot(row["values"], [place] * len(row["values"]), "o", ms=3, mfc="white", mec=INK, mew=0.7, zorder=4)
        axes.plot([row["mean"]], [place], "D", ms=6, color=colour, zorder=3)
        _label(axes, f"{row['mean']:.1f}", row["mean"], place - 0.12)
    axes.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(row["label"], 34)) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    low, high = axes.get_xlim()
    if min(row["mean"] for row in rows) >= 0 and any(row["values"] for row in rows):  # recalls, not effects
        axes.set_xlim(max(low, 0), min(high, 100))
    axes.set_xlabel(label, color=SOFT)
    axes.set_title("\n".join(textwrap.wrap(title, 90)), loc="left", fontsize=11, color=INK)
    axes.grid(axis="x", color="#e4e6ea", zorder=0)
    _plain(axes)
    _save(figure, path)


def draw_compression(report: Mapping[str, Any], path: Path) -> None:
    """Draw what every rung finds, its bytes per row and its time per query, into a PNG file.

    `report`: of `teachclip.search.compression_measure.measure_index`. What is found is R@10 where queries name
    videos, else the agreement with exact search.
    """
    metric, label = ("recall_at_10", "R@10, %") if report["named"] else ("same", "same top 10 as exact search, %")
    rows = report["measured"]
    figure = _figure(11.0, 1.1 + 0.34 * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, key, what in zip(
        panels, (metric, "bytes_per_row", "ms"), (label, "bytes per row", "ms per query"), strict=True
    ):
        values = [row[key] for row in rows]
        axes.barh(range(len(rows)), values, 0.72, color=PALETTE[1], zorder=2)
        for place, value in enumerate(values):
            text = f"{value:.1f}" if key == metric else f"{value:.3g}"
            axes.annotate(
                text, (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.margins(x=0.16)
        axes.set_xlabel(what, color=SOFT)
        axes.grid(axis="x", color="#e4e6ea", zorder=0)
        _plain(axes)
    panels[0].set_yticks(range(len(rows)), [row["rung"] for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    title = f"{report['queries']:,} queries, {report['rows']:,} rows of {report['videos']:,} videos"
    panels[0].set_title(title, loc="left", fontsize=11, color=INK)
    _save(figure, path)


def draw_steps(sides: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw where the time of a training step goes, a bar for each way to make it, into a PNG file.

    A side has `seconds`, and `wait_share` and `optimizer_share` of them; the rest is forward and backward.
    """
    figure = _figure(9.0, 1.4 + 0.34 * len(sides))
    axes = figure.add_subplot()
    names = list(sides)[::-1]
    left = np.zeros(len(names))
    parts = {"waiting for data": "wait_share", "forward and backward": "", "optimizer": "optimizer_share"}
    for colour, (label, share) in zip(("#e08a1e", "#2f6fb7", "#12813f"), parts.items(), strict=True):
        of_all = [sides[name][share] if share else _computing(sides[name]) for name in names]
        widths = np.array([1000 * sides[name]["seconds"] * part for name, part in zip(names, of_all, strict=True)])
        axes.barh(names, widths, left=left, color=colour, label=label, height=0.7, zorder=2)
        left += widths
    for place, total in enumerate(left):
        axes.annotate(f"{total:.0f}", (total, place), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set_xlabel("ms per step", color=SOFT)
    axes.set_xlim(0, 1.1 * max(left))
    _plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _save(figure, path)


def _computing(side: Mapping[str, float]) -> float:
    return 1 - side["wait_share"] - side["optimizer_share"]


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the lines of a run's `log.jsonl` over its steps into a PNG file: losses, validation R@1, rates."""
    from matplotlib.ticker import MaxNLocator

    steps = [line for line in lines if "loss" in line]
    rates = sorted({name for line in steps for name in line if name.startswith("lr.")})
    terms = dict.fromkeys(name for line in steps for name in line if name not in {*rates, "step", *_NO_LOSSES})
    checks = [(line["step"], line["validation"]["t2v"]["recall_at_1"]) for line in lines if "validation" in line]
    figure = _figure(11.0, 3.4)
    losses, recall, rate = figure.subplots(1, 3)
    _curves(losses, steps, list(terms))
    if checks:
        recall.plot(*zip(*checks, strict=True), "o-", ms=4, lw=1.4, color=PALETTE[2])
    _curves(rate, steps, rates)
    for axes, title in ((losses, "losses"), (recall, "R@1 on the selection split, %"), (rate, "learning rates")):
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.set_xlabel("step", color=SOFT)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True))
        axes.grid(axis="y", color="#e4e6ea", zorder=0)
        _plain(axes)
    _save(figure, path)


_NO_LOSSES = ("grad_norm", "skipped")


def _curves(axes: Any, steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Draw numbers of the steps by name; on a logarithmic axis, unless one is negative."""
    values = [line[name] for line in steps for name in names if name in line]
    for index, name in enumerate(names):
        drawn = [(line["step"], line[name]) for line in steps if name in line]
        colour = PALETTE[-1 - index % len(PALETTE)]
        axes.plot(*zip(*drawn, strict=True), lw=1.4, color=colour, label=name.removeprefix("lr."))
    if values:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 3}  # or it would hide a curve
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, **below)
    if values and min(values) >= 0 and max(values) > 0:
        axes.set_yscale("log", nonpositive="mask")
        _plain_labels(axes.yaxis, max(values) / min(value for value in values if value > 0))


def _plain_labels(axis: Any, ratio: float) -> None:
    """Label a logarithmic axis with few plain numbers: setting powers of ten took half the time of a figure.

    `ratio`: of its largest value to its smallest.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,)))  # equal steps if none is in sight
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def model_colours(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of every model's label, the same in all figures."""
    return {model["label"]: PALETTE[index % len(PALETTE)] for index, model in enumerate(report["models"])}


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _label(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=INK)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c9cdd3")
    axes.tick_params(which="both", length=0, labelcolor=SOFT, labelsize=9)


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
