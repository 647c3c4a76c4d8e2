"""Tables of a comparison of arms: what each of them costs, what validation chose, and every trial."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teachclip.evaluation.intervals import paired_difference, spread
from teachclip.reports.tables import SPREAD, Table, human_count
from teachclip.studies.comparison import ArmRuns, Candidate, choose, edges


@dataclass(frozen=True)
class Effort:
    """What an arm took, one value per fresh seed.

    `seconds` of the runs that were not interrupted, `parameters` that were trained, and where the run chose a
    sharpness after training, `temperature_scaling`.
    """

    seconds: Sequence[float]
    parameters: int
    temperature_scaling: Sequence[float] = ()


def cost_table(title: str, arms: Sequence[ArmRuns], efforts: Mapping[str, Effort]) -> Table:
    """Return what training and search cost, by arm; nothing where it was not measured."""
    costs = [arm.runs[0].get("cost") or {} for arm in arms]
    candidates = next((cost["candidates"] for cost in costs if cost), 0)
    header = ["model", "seconds per run", "parameters trained", "bytes per video", "FLOPs per query"]
    rows = []
    for arm, cost in zip(arms, costs, strict=True):
        effort = efforts.get(arm.name)
        row = [arm.label, *((_spread(effort.seconds), f"{effort.parameters:,}") if effort else ("", ""))]
        row += [f"{cost['bytes_per_video']:,.0f}", human_count(cost["flops_per_query"])] if cost else ["", ""]
        row.append(_median_of(arm, "ms_per_query"))
        if any("text_adapter_flops" in found for found in costs):
            flops = cost.get("text_adapter_flops", 0)
            row.append(f"{human_count(flops)}, {_median_of(arm, 'text_adapter_ms')} ms" if flops else "")
        rows.append(row)
    header.append(f"ms per query, {candidates:,} videos")
    header += ["text adapter, once per query"] if any("text_adapter_flops" in found for found in costs) else []
    return Table(title, header, rows)


def _median_of(arm: ArmRuns, key: str) -> str:
    """Return the median over an arm's runs of one of its costs, or nothing if it was not measured."""
    values = [run["cost"][key] for run in arm.runs if key in (run.get("cost") or {})]
    return f"{statistics.median(values):.3g}" if values else ""


def choices_table(
    title: str,
    arms: Sequence[ArmRuns],
    tried: Mapping[str, Sequence[Candidate]],
    efforts: Mapping[str, Effort],
) -> Table:
    """Return what validation chose for every arm, and which of it is the smallest or largest value that was tried."""
    sharpened = any(effort.temperature_scaling for effort in efforts.values())
    rows = []
    for arm in arms:
        if arm.chosen is None:
            continue
        score = f"{arm.chosen.mean:.1f}" if arm.chosen.scores else "not tuned"
        on_edge = ", ".join(edges(arm.chosen, tried[arm.name], least=2)) or "none"
        row = [arm.label, " ".join(arm.chosen.settings) or "as the arm says", score, on_edge]
        factors = efforts[arm.name].temperature_scaling
        rows.append([*row, *([", ".join(f"{factor:g}" for factor in factors) or "none"] if sharpened else [])])
    header = ["model", "settings", "validation R@1", "on the edge of the grid"]
    return Table(title, [*header, *(["temperature_scaling, by seed"] if sharpened else [])], rows)


def tried_table(title: str, tried: Mapping[str, Sequence[Candidate]], seeds: Sequence[int]) -> Table:
    """Return every trial on validation: recall at 1 by tuning seed, their mean, and which setting was chosen.

    `tried`: label of the arm -> its settings.
    """
    rows = []
    for label, candidates in tried.items():
        best = choose(candidates)
        for item in candidates:
            scores = [f"{score:.1f}" for score in item.scores]
            mark = "chosen" if item is best else ""
            rows.append([label, " ".join(item.settings) or "as the arm says", *scores, f"{item.mean:.1f}", mark])
    return Table(title, ["model", "settings", *(f"seed {seed}" for seed in seeds), "mean", "which"], rows)


def recall_intervals(arms: Sequence[ArmRuns], metric: str = "R@1") -> list[dict[str, Any]]:
    """Return per arm its mean, its 95 % t interval over the seeds (both ends None for one seed) and its values."""
    found = []
    for arm in arms:
        values = arm.values(metric)
        interval = paired_difference(values, [0.0] * len(values))
        found.append({"name": arm.name, "label": arm.label, "values": values, **interval._asdict()})
    return found


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = spread(values)
    return f"{statistics.fmean(values):.1f}" + ("" if deviation is None else f"{SPREAD}{deviation:.1f}")
