"""A diagnosis as tables of text and as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachclip.diagnosis.diagnosis import RECALLS, verdicts
from teachclip.reports.pages import encode_jpeg, jpeg_uri, render_page
from teachclip.reports.tables import COLUMNS, DIRECTIONS, Table, markdown_table

IMAGE_BYTES = 1_900_000
"""Bytes of all images together; in base64 a third more. They become smaller until they fit."""
HEIGHTS = (96, 72, 56, 40, 24)
NAMES = [COLUMNS[name] for name in RECALLS]


def diagnosis_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the measured tables: retrieval, the ladder with the parts of the gap, what is beside it, agreement."""
    models = [
        [label, *(f"{found[way][name]:.1f}" for way in DIRECTIONS for name in RECALLS)]
        for label, found in report["models"].items()
    ]
    ways = [f"{way} {name}" for way in ("t2v", "v2t") for name in NAMES]
    parts = {part["step"]: part for part in report["parts"]}
    ladder = [[*_recalls(step), *_part(parts.get(step["label"]))] for step in report["ladder"]]
    gap = f"{report['gap']['recall_at_1']:+.1f}"
    ladder.append(["gap", *(f"{report['gap'][name]:+.1f}" for name in RECALLS), gap, "sum of the parts"])
    tables = [
        Table("Retrieval", ["model", *ways], models),
        Table("The gap in steps, text to video", ["step", *NAMES, "part (R@1)", "which is"], ladder),
        Table("Beside the ladder, text to video", ["with", *NAMES], [_recalls(step) for step in report["beside"]]),
        Table(
            "Agreement with the teacher",
            ["what", "value"],
            [[entry["label"], _value(entry["value"])] for entry in report["agreement"]],
        ),
    ]
    if report["frames"]:
        kinds = list(next(iter(report["frames"].values())))
        rows = [[who, *(f"{100 * found[kind]:.1f}" for kind in kinds)] for who, found in report["frames"].items()]
        tables.append(Table("Weight on frames, percent", ["whose", *(f"{kind} frames" for kind in kinds)], rows))
    return tables


def _recalls(step: Mapping[str, Any]) -> list[str]:
    return [step["label"], *(f"{step[name]:.1f}" for name in RECALLS)]


def _part(part: Mapping[str, Any] | None) -> list[str]:
    return ["", ""] if part is None else [f"{part['recall_at_1']:+.1f}", part["label"]]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def subtitle(report: Mapping[str, Any]) -> str:
    """Say in one line what was compared on what."""
    return (
        f"{report['student']} against teacher {report['teacher']} on {report['split']}: {report['videos']} videos, "
        f"{report['captions']} captions."
    )


def terminal_text(report: Mapping[str, Any]) -> str:
    """Return the tables and the plain words for a terminal."""
    tables = [f"{table.title}\n{markdown_table(table)}" for table in diagnosis_tables(report)]
    return "\n\n".join([subtitle(report), *tables, "\n".join([*verdicts(report), *report["remarks"]])])


def diagnosis_page(report: Mapping[str, Any], images: Sequence[Mapping[str, Sequence[np.ndarray]]]) -> str:
    """Return the page. `images`: per worst query the frames of `right` and `first`, uint8 (3, height, width)."""
    height = image_height([image for query in images for frames in query.values() for image in frames])
    retrieval, ladder, beside, agreement, *frames = diagnosis_tables(report)
    return render_page(
        "diagnosis.html",
        title=f"Diagnosis of {report['recipe']}",
        subtitle=subtitle(report),
        notes=[*verdicts(report), *report["remarks"]],
        retrieval=retrieval,
        ladder=ladder,
        ladder_rows=report["ladder"],
        beside=beside,
        beside_rows=report["beside"],
        agreement=agreement,
        agreement_rows=report["agreement"],
        frames=frames[0] if frames else None,
        parts=_bars(report["parts"]),
        queries=[_query(*pair, height) for pair in zip(report["worst"], images, strict=True)],
    )


def _bars(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of the gap with their lengths in percent of the longest."""
    widest = max([abs(part["recall_at_1"]) for part in parts] + [1e-9])
    return [
        {
            "label": part["label"],
            "value": part["recall_at_1"],
            "percent": 100 * abs(part["recall_at_1"]) / widest,
        }
        for part in parts
    ]


def _query(entry: Mapping[str, Any], images: Mapping[str, Sequence[np.ndarray]], height: int) -> dict[str, Any]:
    """Return one query: its caption, the ranks, the right video and the video that the student ranks first."""
    return {
        "caption": entry["caption"],
        "ranks": f"rank of the right video: student {entry['student_rank']}, teacher {entry['teacher_rank']}",
        "videos": [
            {"heading": f"{label}: {_shown(entry[key])}", "frames": _frames(entry[key], images[key], height)}
            for key, label in (("right", "right video"), ("first", "the student's first"))
        ],
    }


def _shown(row: Mapping[str, Any]) -> str:
    shown, total = len(row["frames"]), row["frame_count"]
    selection = "" if shown == total else f" ({shown} of {total} frames, those with the most weight)"
    return f"{row['video']}{selection}"


def _frames(row: Mapping[str, Any], images: Sequence[np.ndarray], height: int) -> list[dict[str, Any]]:
    teacher = row["teacher"] or [None] * len(row["frames"])
    return [
        {"number": frame + 1, "image": jpeg_uri(jpeg(image, height)), "student": student, "teacher": relevance}
        for frame, student, relevance, image in zip(row["frames"], row["student"], teacher, images, strict=True)
    ]


def jpeg(image: np.ndarray, height: int) -> bytes:
    """Return an image, uint8 (3, height, width), as JPEG of at most that height."""
    return encode_jpeg(image.transpose(1, 2, 0), max_height=height, quality=75)


def image_height(images: Sequence[np.ndarray]) -> int:
    """Return the largest of `HEIGHTS` at which all images together take at most `IMAGE_BYTES`."""
    for height in HEIGHTS:
        if sum(len(jpeg(image, height)) for image in images) <= IMAGE_BYTES:
            return height
    return HEIGHTS[-1]
