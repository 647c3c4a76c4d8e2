"""One study on several data sets: differences over the data sets, from the reports that it wrote on each."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachclip.console import log, one_line
from teachclip.errors import DataError
from teachclip.reports.tables import Table, code_text, difference_cell, markdown_table
from teachclip.store.files import make_folder, read_json, write_atomic
from teachclip.studies.results import GALLERY, MIN_TEST_SEEDS, VariantRuns, paired

METRICS = ("R@1", "R@5", "R@10", "sum")

Means = Mapping[str, Mapping[str, float]]
"""Name of a variant -> metric -> mean over its students."""


@dataclass(frozen=True)
class Measured:
    """What the report of a study on one data set says."""

    title: str
    study: str
    gallery: int | None
    labels: Mapping[str, str]
    """Name of a variant -> its label."""
    pairs: tuple[tuple[str, str], ...]
    """Names of (variant, other) that are compared."""
    means: Means
    warnings: tuple[str, ...]
    results: str
    """All of them as text, to know a copy by."""


def combine(folders: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Return what one study says over several data sets, and print it.

    `folders`: two or more, each with the `report.json` that `teachclip study` wrote on one data set. `out`: folder
    for `report.json` and `report.md`; None: neither is written. A value of a data set is the mean of its students; a
    difference is paired by data set, with the 95 % t interval over the data sets if there are three or more.

    Raises DataError if there are fewer than two folders, if a report is damaged, of a quick run, of a design, or of
    pooling factors, if it is a copy of another or has not the study, variants, pairs and gallery of the first, and if
    `out` holds another report.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 or len({os.path.realpath(path) for path in paths}) < len(paths):
        raise DataError(f"--combine: {' '.join(map(str, paths))}; give two or more folders, each once")
    _check_out(out)
    sets = [_read(path) for path in paths]
    for row, path in enumerate(paths):
        _check_alike(path, sets[row], paths[0], sets[0])
        for other, known in zip(paths[:row], sets[:row], strict=True):
            if known.results == sets[row].results:
                raise DataError(f"{path}: the same results as those of {other}; give another data set's")
    first, means = sets[0], [one.means for one in sets]
    metrics = list(next(iter(first.means.values())))
    differences = [
        *(_difference(means, one, [other] * len(sets), metric) for one, other in first.pairs for metric in metrics),
        *_from_the_best(means, first, metrics),
    ]
    result = {
        "title": first.title,
        "study": first.study,
        "folders": [str(path) for path in paths],
        "gallery": first.gallery,
        "warnings": list(dict.fromkeys(warning for one in sets for warning in one.warnings)),
        "values": {
            name: {metric: [one[name][metric] for one in means] for metric in metrics} for name in first.means
        },
        "differences": [{**item, "label": _label(item, first)} for item in differences],
    }
    text = _markdown(result, first)
    print(text, flush=True)
    if out is not None:
        files = {"report.json": json.dumps(result, indent=1).encode(), "report.md": f"{text}\n".encode()}
        make_folder(Path(out))
        for name, content in files.items():
            write_atomic(Path(out) / name, content)
        log(f"report: {', '.join(str(Path(out) / name) for name in files)}")
    return result


def _check_out(out: str | Path | None) -> None:
    """Raise DataError if the folder has a report that is not of `combine`: it would be lost."""
    path = None if out is None else Path(out) / "report.json"
    if path is None or not os.path.lexists(path):
        return
    try:
        ours = "folders" in read_json(path)
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise DataError(f"{path} is another report, which would be lost; give --out a folder of its own")


def _read(folder: Path) -> Measured:
    """Return what the report of a study with variants says."""
    path = folder / "report.json"
    try:
        report = read_json(path)
        section = report["results"][-1]
        variants = section["variants"]
        trials = {name: list(variant["runs"]) for name, variant in variants.items()}
        if any("factors" in trial for runs in trials.values() for trial in runs):
            raise DataError(f"{path}: of a study with pooling_factors; allowed: one without")
        if report.get("quick"):
            raise DataError(f"{path}: of a quick run, whose numbers mean nothing")
        gallery = None if section.get("gallery") is None else int(section["gallery"]["videos"])
        pairs = [(item["variant"], item["baseline"]) for item in section["differences"]]
        models = [
            VariantRuns(name, str(variants[name]["label"]), [trial["test"] for trial in runs], gallery=gallery)
            for name, runs in trials.items()
        ]
        metrics = [GALLERY, *METRICS] if gallery and all(model.has_gallery for model in models) else METRICS
        return Measured(
            title=one_line(str(report["title"])),
            study=str(report["study"]),
            gallery=gallery if GALLERY in metrics else None,
            labels={model.name: model.label for model in models},
            pairs=tuple(dict.fromkeys(pair for pair in pairs if {*pair} <= {*variants})),
            means={model.name: {metric: _mean(model, metric) for metric in metrics} for model in models},
            # the other warning counts students, which are no data sets
            warnings=tuple(str(warning) for warning in report["warnings"] if "test split" in str(warning)),
            results=json.dumps(trials, sort_keys=True),
        )
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a folder that `teachclip study` wrote") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"{path}: not the report of a study with variants, or damaged: {type(error).__name__}: {error}"
        ) from error


def _mean(model: VariantRuns, metric: str) -> float:
    """Return the mean of a metric over the students. Raises ValueError for what no evaluation holds."""
    for run in model.runs if metric == GALLERY else ():
        if run["videos"] != model.runs[0]["videos"]:
            raise ValueError(f"{model.name}: students tested on {model.runs[0]['videos']} and {run['videos']} videos")
        if not all(isinstance(rank, int) and 1 <= rank <= run["videos"] for rank in run["queries"]["rank"]):
            raise ValueError(f"{model.name}: a rank that is not one of 1 to {run['videos']}")
    values = model.values(metric)
    if not values or not all(math.isfinite(value) and 0 <= value <= 600 for value in values):
        raise ValueError(f"{model.name}: {metric} is {values}")
    return statistics.fmean(values)


def _check_alike(path: Path, one: Measured, first_path: Path, first: Measured) -> None:
    """Raise DataError if a report is not of the same study as the first."""
    parts = {
        "study": (one.study, first.study),
        "gallery": (one.gallery, first.gallery),
        "variants": (sorted(one.labels.items()), sorted(first.labels.items())),
        "pairs": (sorted(one.pairs), sorted(first.pairs)),
    }
    for what, (found, expected) in parts.items():
        if found != expected:
            shown = f": {found} and {expected}" if what in ("study", "gallery") else ""
            raise DataError(f"{path}: another {what} than {first_path}{shown}; give reports of one study")


def _difference(means: Sequence[Means], name: str, others: Sequence[str], metric: str) -> dict[str, Any]:
    """Return the difference of a variant and, data set by data set, one of the others."""
    baseline = [one[other][metric] for one, other in zip(means, others, strict=True)]
    found = paired([one[name][metric] for one in means], baseline, interval=len(means) >= MIN_TEST_SEEDS)
    return {"variant": name, "baseline": list(others), "best_of": None, "metric": metric, **found}


def _from_the_best(means: Sequence[Means], first: Measured, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the differences of each variant that is compared with several, from the best one of them.

    The best by the first metric: in the mean over the data sets, and anew on each data set.
    """
    differences = []
    for name in dict.fromkeys(name for name, _ in first.pairs):
        others = [other for one, other in first.pairs if one == name]
        if len(others) < 2:
            continue
        best = max(others, key=lambda other: sum(one[other][metrics[0]] for one in means))
        each = [max(others, key=lambda other: one[other][metrics[0]]) for one in means]
        for chosen, which in (([best] * len(means), "by the mean"), (each, "on each data set")):
            differences += [
                {**_difference(means, name, chosen, metric), "best_of": [len(others), which]} for metric in metrics
            ]
    return differences


def _label(item: Mapping[str, Any], first: Measured) -> str:
    """Return what a table calls a difference."""
    one, other = first.labels[item["variant"]], first.labels[item["baseline"][0]]
    if item["best_of"] is None:
        return f"{one} - {other}"
    count, which = item["best_of"]
    return f"{one} - the best of {count} {which}" + (f", {other}" if which == "by the mean" else "")


def _markdown(result: Mapping[str, Any], first: Measured) -> str:
    """Return the result as Markdown."""
    metrics = list(next(iter(result["values"].values())))
    folders = [f"{row}: {code_text(folder)}" for row, folder in enumerate(result["folders"], start=1)]
    shown = {first.labels[name]: values[metrics[0]] for name, values in result["values"].items()}
    rows = [[label, *(f"{value:.1f}" for value in [*each, statistics.fmean(each)])] for label, each in shown.items()]
    numbers = [str(row) for row in range(1, len(folders) + 1)]
    cells: dict[str, list[str]] = {}
    for item in result["differences"]:
        cells.setdefault(item["label"], []).append(difference_cell(item))
    gallery = f" `{GALLERY}` is of {result['gallery']:,} videos." if result["gallery"] else ""
    interval = "mean [95% t interval] wins" if len(folders) >= MIN_TEST_SEEDS else "mean (wins)"
    tables = [
        Table(f"{metrics[0]} by data set, mean over the students", ["model", *numbers, "mean"], rows),
        Table(
            f"Paired differences over the data sets, {interval}",
            ["difference", *metrics],
            [[label, *row] for label, row in cells.items()],
        ),
    ]
    blocks = [
        f"# {result['title']}: {len(folders)} data sets",
        f"Data sets: {'; '.join(folders)}. Each interval is for one comparison: another data set of this kind, with "
        f"its students.{gallery} The best of several is picked by these very results, which favours it.",
        *(f"**Warning: {one_line(line)}.**" for line in result["warnings"]),
        *(f"## {table.title}\n\n{markdown_table(table)}" for table in tables),
    ]
    return "\n\n".join(blocks)
