"""One study on several data sets: differences over the data sets, from the reports that it wrote on each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.errors import DataError
from teachclip.reports.tables import Table, difference_cell, markdown_table
from teachclip.store.files import make_folder, read_json, write_atomic
from teachclip.studies.results import GALLERY, VariantRuns, paired

METRICS = (GALLERY, "R@1", "R@5", "R@10", "sum")

Models = Mapping[str, VariantRuns]
"""Name of a variant -> its students on one data set."""


def combine(folders: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Return what one study says over several data sets, and print it.

    `folders`: two or more, each with the `report.json` that `teachclip study` wrote on one data set. `out`: folder
    for `report.json` and `report.md`. A value of a data set is the mean of its students; a difference is paired by
    data set, with the 95 % t interval over the data sets.

    Raises DataError if there are fewer than two folders, or if a report cannot be read, is of a design or of pooling
    factors, or has not the study, variants, gallery and pairs of the first.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise DataError(f"--combine: {' '.join(map(str, paths))}; give two or more folders, each once")
    reports = [_read(path) for path in paths]
    for path, report in zip(paths, reports, strict=True):
        for what in ("study", "gallery", "variants", "pairs"):
            if (found := _parts(report)[what]) != (first := _parts(reports[0])[what]):
                raise DataError(
                    f"{path}: its {what} is {found}, that of {paths[0]} {first}; give reports of one study"
                )
    sets = [_models(report) for report in reports]
    pairs = _parts(reports[0])["pairs"]
    result = {
        "title": reports[0]["title"],
        "study": reports[0]["study"],
        "folders": [str(path) for path in paths],
        "gallery": _parts(reports[0])["gallery"],
        "values": {
            name: {metric: [_mean(models[name], metric) for models in sets] for metric in _metrics(sets)}
            for name in sets[0]
        },
        "differences": [
            *(
                _difference(sets, name, [other] * len(sets), metric)
                for name, other in pairs
                for metric in _metrics(sets)
            ),
            *_from_the_best(sets, pairs),
        ],
    }
    text = _markdown(result, sets[0])
    print(text, flush=True)
    if out is not None:
        make_folder(Path(out))
        write_atomic(Path(out) / "report.json", json.dumps(result, indent=1).encode())
        write_atomic(Path(out) / "report.md", text.encode())
        log(f"report: {Path(out) / 'report.md'}, {Path(out) / 'report.json'}")
    return result


def _read(folder: Path) -> dict[str, Any]:
    """Return the report of a study with variants on data of its own."""
    path = folder / "report.json"
    try:
        report: dict[str, Any] = read_json(path)
        trials = [trial for variant in report["results"][-1]["variants"].values() for trial in variant["runs"]]
        plain = all("factors" not in trial and trial["test"]["t2v"] for trial in trials)
        report["study"], report["title"], _parts(report)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a folder that `teachclip study` wrote") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not the report of a study with variants: {type(error).__name__}: {error}"
        ) from error
    if not plain:
        raise DataError(f"{path}: of a study with pooling_factors; allowed: one without")
    return report


def _parts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what reports of one study have in common."""
    section = report["results"][-1]
    variants, gallery = section["variants"], section.get("gallery")
    pairs = [(item["variant"], item["baseline"]) for item in section["differences"]]
    return {
        "study": report["study"],
        "gallery": gallery and gallery["videos"],
        "variants": {name: variant["label"] for name, variant in variants.items()},
        "pairs": list(dict.fromkeys(pair for pair in pairs if {*pair} <= {*variants})),
    }


def _models(report: Mapping[str, Any]) -> dict[str, VariantRuns]:
    gallery = _parts(report)["gallery"]
    return {
        name: VariantRuns(name, variant["label"], [trial["test"] for trial in variant["runs"]], gallery=gallery)
        for name, variant in report["results"][-1]["variants"].items()
    }


def _metrics(sets: Sequence[Models]) -> Sequence[str]:
    return METRICS if all(model.has_gallery for models in sets for model in models.values()) else METRICS[1:]


def _mean(model: VariantRuns, metric: str) -> float:
    return statistics.fmean(model.values(metric))


def _difference(sets: Sequence[Models], name: str, others: Sequence[str], metric: str) -> dict[str, Any]:
    """Return the difference of a variant and, data set by data set, one of the others."""
    values = [_mean(models[name], metric) for models in sets]
    baseline = [_mean(models[other], metric) for models, other in zip(sets, others, strict=True)]
    return {
        "variant": name,
        "baseline": others[0] if len({*others}) == 1 else list(others),
        "label": f"{sets[0][name].label} - {sets[0][others[0]].label}",
        "metric": metric,
        **paired(values, baseline),
    }


def _from_the_best(sets: Sequence[Models], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the differences of each variant that is compared with several, from the best one of them.

    The best by the first metric: in the mean over the data sets, and anew on each data set.
    """
    metrics, differences = _metrics(sets), []
    for name in dict.fromkeys(name for name, _ in pairs):
        others = [other for one, other in pairs if one == name]
        if len(others) < 2:
            continue
        means = {other: [_mean(models[other], metrics[0]) for models in sets] for other in others}
        best = max(others, key=lambda other: sum(means[other]))
        each = [max(others, key=lambda other: means[other][row]) for row in range(len(sets))]
        for chosen, which in (
            ([best] * len(sets), f"the best of {len(others)}, {sets[0][best].label}"),
            (each, f"the best of {len(others)} on each data set"),
        ):
            label = f"{sets[0][name].label} - {which}"
            differences += [{**_difference(sets, name, chosen, metric), "label": label} for metric in metrics]
    return differences


def _markdown(result: Mapping[str, Any], models: Models) -> str:
    """Return the result as Markdown."""
    metrics = list(next(iter(result["values"].values())))
    folders = [f"{row}: {folder}" for row, folder in enumerate(result["folders"], start=1)]
    shown = {models[name].label: values[metrics[0]] for name, values in result["values"].items()}
    rows = [[label, *(f"{value:.1f}" for value in [*each, statistics.fmean(each)])] for label, each in shown.items()]
    numbers = [str(row) for row in range(1, len(folders) + 1)]
    cells: dict[str, list[str]] = {}
    for item in result["differences"]:
        cells.setdefault(item["label"], []).append(difference_cell(item))
    gallery = f" `{GALLERY}` is of {result['gallery']:,} videos." if result["gallery"] else ""
    tables = [
        Table(f"{metrics[0]} by data set, mean over the students", ["model", *numbers, "mean"], rows),
        Table(
            "Paired differences over the data sets, mean [95% t interval] wins",
            ["difference", *metrics],
            [[label, *row] for label, row in cells.items()],
        ),
    ]
    return "\n\n".join(
        [
            f"# {result['title']}: {len(folders)} data sets",
            f"Data sets: {'; '.join(folders)}. Each interval is for one comparison: another data set of this "
            f"kind, with its students.{gallery} The best of several is picked by these very results, which favours "
            "it.",
            *(f"## {table.title}\n\n{markdown_table(table)}" for table in tables),
        ]
    )
