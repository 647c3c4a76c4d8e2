"""Tables of a study: results, differences, attention, teachers and their students, cost, choices, every trial."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teachclip.reports.tables import Table, difference_cell, human_count, mean_cell
from teachclip.shapes.scenes import FRAME_KINDS
from teachclip.studies.results import GALLERY, METRICS, Candidate, VariantRuns, choose, difference, edges


@dataclass(frozen=True)
class Effort:
    """What a variant took, one value per test seed.

    `seconds` of the runs that were not interrupted, `parameters` that were trained, and where the run chose a pooling
    factor after training, `temperature_scaling`, or the share of finetuned encoders, `wise_ft`; where it measured
    conditions, which of them held, `conditions`.
    """

    seconds: Sequence[float]
    parameters: int
    temperature_scaling: Sequence[float] = ()
    wise_ft: Sequence[float] = ()
    conditions: Sequence[Mapping[str, bool]] = ()


def recall_table(title: str, variants: Sequence[VariantRuns]) -> Table:
    """Return mean and standard deviation over the seeds of every metric of every variant."""
    rows = [[variant.label, *(mean_cell(variant.values(metric)) for metric in METRICS)] for variant in variants]
    if not any(variant.has_gallery for variant in variants):
        return Table(title, ["model", *METRICS], rows)
    cells = [mean_cell(variant.values(GALLERY)) if variant.has_gallery else "" for variant in variants]
    rows = [[label, cell, *others] for (label, *others), cell in zip(rows, cells, strict=True)]
    return Table(title, ["model", GALLERY, *METRICS], rows)


def difference_table(title: str, differences: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per pair of variants and one column per metric: mean, interval and wins."""
    rows: dict[str, dict[str, str]] = {}
    for item in differences:
        rows.setdefault(item["label"], {})[item["metric"]] = difference_cell(item)
    metrics = list(dict.fromkeys(item["metric"] for item in differences))
    body = [[label, *(cells.get(metric, "") for metric in metrics)] for label, cells in rows.items()]
    return Table(title, ["difference", *metrics], body)


def frame_table(title: str, variants: Sequence[VariantRuns]) -> Table:
    """Return the mean attention weight that every variant puts on frames of each kind, in percent."""
    rows = [
        [variant.label, *(mean_cell([100 * frames[kind] for frames in variant.frames]) for kind in FRAME_KINDS)]
        for variant in variants
        if variant.frames
    ]
    return Table(title, ["model", *(f"{kind} frames" for kind in FRAME_KINDS)], rows)


def teacher_table(
    title: str,
    students: Mapping[str, Sequence[VariantRuns]],
    teachers: Mapping[str, VariantRuns],
    taught_by: Mapping[str, Sequence[str]],
    *,
    baseline: str,
    interval: bool = True,
) -> Table:
    """Return R@1 of teachers and of the students that they teach, and what each student gains over the baseline.

    `students`: way of choosing -> its variants; `teachers`: by label; `taught_by`: name of the variant -> labels of
    its teachers.
    """
    ways = {way: {variant.name: variant for variant in variants} for way, variants in students.items()}
    rows = []
    for name, student in next(iter(ways.values())).items():
        labels = [label for label in taught_by[name] if label in teachers]
        row = [student.label, ", ".join(mean_cell(teachers[label].values("R@1")) for label in labels)]
        for variants in ways.values():
            row.append(mean_cell(variants[name].values("R@1")))
            gain = difference(variants[name], variants[baseline], "R@1", interval=interval)
            row.append("" if name == baseline else difference_cell(gain))
        rows.append(row)
    columns = [f"student's R@1{f', {way}' if len(ways) > 1 else ''}" for way in ways]
    header = ["model", "teacher's R@1", *(cell for column in columns for cell in (column, "gain"))]
    return Table(title, header, rows)


def cost_table(title: str, variants: Sequence[VariantRuns], efforts: Mapping[str, Effort]) -> Table:
    """Return what training and search cost, by variant; nothing where it was not measured."""
    costs = [variant.runs[0].get("cost") or {} for variant in variants]
    candidates = next((cost["candidates"] for cost in costs if cost), 0)
    header = ["model", "seconds per run", "parameters trained", "bytes per video", "FLOPs per query"]
    rows = []
    for variant, cost in zip(variants, costs, strict=True):
        effort = efforts.get(variant.name)
        row = [variant.label, *((_mean(effort.seconds), f"{effort.parameters:,}") if effort else ("", ""))]
        row += [f"{cost['bytes_per_video']:,.0f}", human_count(cost["flops_per_query"])] if cost else ["", ""]
        row.append(_median_of(variant, "ms_per_query"))
        if any("text_adapter_flops" in other for other in costs):
            flops = cost.get("text_adapter_flops", 0)
            row.append(f"{human_count(flops)}, {_median_of(variant, 'text_adapter_ms')} ms" if flops else "")
        rows.append(row)
    header.append(f"ms per query, {candidates:,} videos")
    header += ["text adapter, once per query"] if any("text_adapter_flops" in cost for cost in costs) else []
    return Table(title, header, rows)


def _median_of(variant: VariantRuns, key: str) -> str:
    """Return the median over a variant's runs of one of its costs, or nothing if it was not measured."""
    values = [run["cost"][key] for run in variant.runs if key in (run.get("cost") or {})]
    return f"{statistics.median(values):.3g}" if values else ""


def choices_table(
    title: str,
    variants: Sequence[VariantRuns],
    tried: Mapping[str, Sequence[Candidate]],
    efforts: Mapping[str, Effort],
    own: Mapping[str, Mapping[str, float]],
) -> Table:
    """Return what validation chose for every variant, and which of it is the smallest or largest value tried.

    `own`: by variant, what the recipe itself has for the keys that its settings change.
    """
    after_training = {
        "temperature_scaling": {name: effort.temperature_scaling for name, effort in efforts.items()},
        "wise_ft": {name: effort.wise_ft for name, effort in efforts.items()},
    }
    after_training = {key: values for key, values in after_training.items() if any(values.values())}
    measured = any(effort.conditions for effort in efforts.values())
    factors = len({candidate.factor for candidates in tried.values() for candidate in candidates}) > 1
    rows = []
    for variant in variants:
        if variant.chosen is None:
            continue
        chosen = variant.chosen
        score = f"{chosen.mean:.1f}" if chosen.scores else "not tuned"
        on_edge = ", ".join(edges(chosen, tried[variant.name], own.get(variant.name), least=2)) or "none"
        row = [variant.label, " ".join(chosen.settings) or "as the variant defines"]
        row += [f"{chosen.factor:g}"] if factors else []
        by_seed = [
            ", ".join(f"{value:g}" for value in values[variant.name]) or "none" for values in after_training.values()
        ]
        held = efforts[variant.name].conditions
        names = list(dict.fromkeys(name for found in held for name in found))
        seeds = ", ".join(f"{name}: {sum(found.get(name, False) for found in held)} of {len(held)}" for name in names)
        rows.append([*row, score, on_edge, *by_seed, *([seeds] if measured else [])])
    header = [
        "model",
        "settings",
        *(["pooling factor"] if factors else []),
        "validation R@1",
        "on the edge of the grid",
    ]
    header += [f"{key}, by seed" for key in after_training]
    header += ["conditions that held, seeds"] if measured else []
    return Table(title, header, rows)


def tried_table(title: str, tried: Mapping[str, Sequence[Candidate]], seeds: Sequence[int]) -> Table:
    """Return every trial on validation: recall at 1 by dev seed, their mean, and which setting was chosen.

    `tried`: label of the variant -> its settings.
    """
    rows = []
    for label, candidates in tried.items():
        best = choose(candidates)
        for item in candidates:
            scores = [f"{score:.1f}" for score in item.scores]
            mark = "chosen" if item is best else ""
            rows.append(
                [label, " ".join(item.settings) or "as the variant defines", *scores, f"{item.mean:.1f}", mark]
            )
    return Table(title, ["model", "settings", *(f"seed {seed}" for seed in seeds), "mean", "which"], rows)


def factors_table(title: str, tried: Mapping[str, Sequence[Candidate]]) -> Table:
    """Return every trial on validation: the mean recall at 1 as trained, and the best one with its pooling factor.

    `tried`: label of the variant -> its settings at every factor.
    """
    rows = []
    for label, candidates in tried.items():
        for settings in dict.fromkeys(candidate.settings for candidate in candidates):
            same = [candidate for candidate in candidates if candidate.settings == settings]
            best, trained = choose(same), next((item for item in same if item.factor == 1), None)
            cells = ["" if trained is None else f"{trained.mean:.1f}", f"{best.mean:.1f}", f"{best.factor:g}"]
            rows.append([label, " ".join(settings) or "as the variant defines", *cells])
    return Table(title, ["model", "settings", "as trained", "best pooling factor", "which"], rows)


def _mean(values: Sequence[float]) -> str:
    return mean_cell(values) if values else ""
