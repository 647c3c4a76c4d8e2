"""The report of a diagnosis: tables and sentences for the terminal, and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachclip.diagnosis.ladder import RECALLS
from teachclip.reports.pages import encode_jpeg, jpeg_uri, render_page
from teachclip.reports.tables import COLUMNS, DIRECTIONS, Table, markdown_table

IMAGE_BYTES = 1_900_000
"""Most bytes of all images together; in base64 a third more. They shrink until they fit."""
HEIGHTS = (96, 72, 56, 40, 24)
NAMES = [COLUMNS[name] for name in RECALLS]
SEVERAL_VECTORS = ("closest_frame", "closest_selected", "text_conditioned")
"""The comparisons that use more than one vector per video."""


def diagnosis_tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """Return the tables by name: `ladder`, `comparisons`, `retrieval`, `agreement`, `order`.

    For Shapes data also `frames`.
    """
    parts = {part["step"]: part for part in report["parts"]}
    ladder = [[*_recalls(step), *_part(parts.get(step["label"]))] for step in report["ladder"]]
    gap = [f"{report['gap'][name]:+.1f}" for name in RECALLS]
    ladder.append(["gap", *gap, gap[0], "sum of the parts"])
    retrieval = [
        [label, *(f"{metrics[direction][name]:.1f}" for direction in DIRECTIONS for name in RECALLS)]
        for label, metrics in report["models"].items()
    ]
    agreement = [
        [entry["label"], "-" if entry["value"] is None else f"{entry['value']:.2f}"] for entry in report["agreement"]
    ]
    columns = [f"{direction} {name}" for direction in DIRECTIONS for name in NAMES]
    comparisons = [_recalls(step) for step in report["comparisons"]]
    tables = {
        "retrieval": Table("Retrieval", ["model", *columns], retrieval),
        "ladder": Table(
            "The gap in steps, text to video", ["step", *NAMES, "part (R@1)", "name of the part"], ladder
        ),
        "comparisons": Table("For comparison, text to video", ["with", *NAMES], comparisons),
        "agreement": Table("Agreement with the teacher", ["measure", "value"], agreement),
    }
    if report.get("order"):
        student = {"label": "student as it is", **report["models"]["student"]["t2v"]}
        rows = [_recalls(step) for step in (student, *report["order"]["frames"])]
        tables["order"] = Table("Order of events, text to video", ["with", *NAMES], rows)
    if report["frames"]:
        kinds = list(next(iter(report["frames"].values())))
        rows = [
            [model, *(f"{100 * weights[kind]:.1f}" for kind in kinds)] for model, weights in report["frames"].items()
        ]
        tables["frames"] = Table("Weight on frames, %", ["model", *(f"{kind} frames" for kind in kinds)], rows)
    return tables


def _recalls(step: Mapping[str, Any]) -> list[str]:
    return [step["label"], *(f"{step[name]:.1f}" for name in RECALLS)]


def _part(part: Mapping[str, Any] | None) -> list[str]:
    return ["", ""] if part is None else [f"{part['recall_at_1']:+.1f}", part["label"]]


def subtitle(report: Mapping[str, Any]) -> str:
    """Return one line on what was compared on what."""
    return (
        f"{report['student']} against teacher {report['teacher']} on {report['split']}: {report['videos']} videos, "
        f"{report['captions']} captions."
    )


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Return sentences on the parts of the gap and on the uncertainty of the numbers."""
    gap, parts = report["gap"]["recall_at_1"], report["parts"]
    if gap <= 0:
        lines = [
            f"The student is not behind the teacher at R@1 ({abs(gap):.1f} points ahead): there is no gap to explain."
        ]
    else:
        listed = ", ".join(f"{part['label']} {part['recall_at_1']:+.1f}" for part in parts)
        lines = [f"The student is {gap:.1f} R@1 behind the teacher, which is: {listed}."]
    complete = [
        step for step in report["comparisons"] if step["captions"] in (None, report["captions"])
    ]  # no samples
    several = [step for step in complete if step["name"] in SEVERAL_VECTORS]
    if several and report["cross_fitted"]:
        highest = max(several, key=lambda step: step["recall_at_1"])
        difference = highest["recall_at_1"] - report["ladder"][-2]["recall_at_1"]
        lines.append(
            f"Several vectors per video with the same features would give {highest['recall_at_1']:.1f} R@1 "
            f"({highest['label']}), {difference:+.1f} against the best single vector."
        )
    if report["cross_fitted"] and not report.get("better_vector_identifiable", True):
        lines.append(
            "How much a better vector would gain cannot be told here: the captions of a video are so alike that "
            "vectors fitted to them find as much as the student without any video, so fitted vectors are no part of "
            "the gap."
        )
    clauses = report.get("order", {}).get("clauses", {"captions": 0})
    if clauses["captions"]:
        lines.append(
            f"Of {clauses['captions']} captions that tell an order of two clauses, the student prefers "
            f"{clauses['preferred']:.0f} % to the same caption with its clauses swapped; 50 % is chance."
        )
    error = 50 / report["videos"] ** 0.5
    lines.append(
        f"With {report['videos']} videos an R@1 is uncertain by up to {error:.1f} points (one standard error); "
        "differences are less uncertain, as all steps rank the same captions."
    )
    if not report["cross_fitted"]:
        lines.append(
            "Most videos have one caption here, so what is selected or fitted for a video can only be measured on "
            "the caption that it was made for. Such results are marked 'in sample': they are upper bounds that no "
            "student reaches, and not part of the gap. How much a better vector would gain can only be measured on "
            "a split with several captions per video."
        )
    return lines


def terminal_text(report: Mapping[str, Any]) -> str:
    """Return the tables and sentences for a terminal."""
    tables = [f"{table.title}\n{markdown_table(table)}" for table in diagnosis_tables(report).values()]
    return "\n\n".join([subtitle(report), *tables, "\n".join([*verdicts(report), *report["notes"]])])


def diagnosis_page(report: Mapping[str, Any], images: Sequence[Mapping[str, Sequence[np.ndarray]]]) -> str:
    """Return the page. `images`: per worst query the frames of `match` and `top`, uint8 (3, height, width)."""
    height = image_height([image for query in images for frames in query.values() for image in frames])
    return render_page(
        "diagnosis.html",
        title=f"Diagnosis of {report['recipe']}",
        subtitle=subtitle(report),
        notes=[*verdicts(report), *report["notes"]],
        tables={"frames": None, "order": None, **diagnosis_tables(report)},
        ladder=report["ladder"],
        comparisons=report["comparisons"],
        agreement=report["agreement"],
        parts=_bars(report["parts"]),
        queries=[_query(*pair, height) for pair in zip(report["worst"], images, strict=True)],
    )


def _bars(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of the gap with their lengths in percent of the longest."""
    longest = max([abs(part["recall_at_1"]) for part in parts] + [1e-9])
    return [
        {
            "label": part["label"],
            "value": part["recall_at_1"],
            "percent": 100 * abs(part["recall_at_1"]) / longest,
        }
        for part in parts
    ]


def _query(entry: Mapping[str, Any], images: Mapping[str, Sequence[np.ndarray]], height: int) -> dict[str, Any]:
    """Return one query: its caption, the ranks, the matching video and the student's top video."""
    return {
        "caption": entry["caption"],
        "ranks": f"rank of the matching video: student {entry['student_rank']}, teacher {entry['teacher_rank']}",
        "videos": [
            {"heading": f"{label}: {_shown(entry[key])}", "frames": _frames(entry[key], images[key], height)}
            for key, label in (("match", "matching video"), ("top", "the student's top video"))
        ],
    }


def _shown(entry: Mapping[str, Any]) -> str:
    shown, total = len(entry["frames"]), entry["frame_count"]
    selection = "" if shown == total else f" ({shown} of {total} frames, those with the most weight)"
    return f"{entry['video']}{selection}"


def _frames(entry: Mapping[str, Any], images: Sequence[np.ndarray], height: int) -> list[dict[str, Any]]:
    teacher = entry["teacher"] or [None] * len(entry["frames"])
    return [
        {"number": frame + 1, "image": jpeg_uri(frame_jpeg(image, height)), "student": weight, "teacher": relevance}
        for frame, weight, relevance, image in zip(entry["frames"], entry["student"], teacher, images, strict=True)
    ]


def frame_jpeg(image: np.ndarray, height: int) -> bytes:
    """Return a frame, uint8 (3, height, width), as a JPEG file of at most that height."""
    return encode_jpeg(image.transpose(1, 2, 0), max_height=height, quality=75)


def image_height(images: Sequence[np.ndarray]) -> int:
    """Return the largest of `HEIGHTS` at which all images together take at most `IMAGE_BYTES`."""
    for height in HEIGHTS:
        if sum(len(frame_jpeg(image, height)) for image in images) <= IMAGE_BYTES:
            return height
    return HEIGHTS[-1]
