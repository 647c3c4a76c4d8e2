"""A diagnosis as tables of text and as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from teachclip.diagnosis.diagnosis import RECALLS, verdicts
from teachclip.reports.pages import table_html, whole_page
from teachclip.reports.report import Table, markdown_table
from teachclip.reports.tables import COLUMNS, DIRECTIONS

PICTURE_BYTES = 1_900_000
"""Bytes of all pictures together; in base64 a third more. They become smaller until they fit."""
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


def diagnosis_page(report: Mapping[str, Any], films: Sequence[Mapping[str, Sequence[np.ndarray]]]) -> str:
    """Return the page. `films`: per worst query the pictures of `right` and `first`, uint8 (3, height, width)."""
    title = f"Diagnosis of {report['recipe']}"
    height = picture_height([picture for film in films for row in film.values() for picture in row])
    notes = "".join(f"<li>{escape(line)}</li>" for line in [*verdicts(report), *report["remarks"]])
    retrieval, ladder, beside, *others = diagnosis_tables(report)
    queries = "".join(_query(*pair, height) for pair in zip(report["worst"], films, strict=True))
    return whole_page(
        title,
        [
            f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(subtitle(report))}</p>",
            f"<ul>{notes}</ul>",
            table_html(ladder),
            _bars(report["parts"]),
            _explained(report["ladder"]),
            table_html(beside),
            _explained(report["beside"]),
            table_html(retrieval),
            "<p>zero-shot: mean pooling of the recipe's backbone, without any training. t2v: captions look for their "
            "video; v2t: videos look for their captions.</p>",
            *map(table_html, others[:1]),
            _explained(report["agreement"]),
            *map(table_html, others[1:]),
            f"<p>{escape(_FRAMES)}</p>" if report["frames"] else "",
            f"<h2>The {len(films)} queries that the student loses most</h2>" if films else "",
            f"<p>{escape(_QUERIES)}</p>" if films else "<p>No query is ranked worse by the student.</p>",
            queries,
        ],
    )


def _explained(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what each row of a table means, one sentence per label."""
    rows = "".join(f"<dt>{escape(entry['label'])}</dt><dd>{escape(entry['how'])}</dd>" for entry in entries)
    return f'<details open=""><summary>How these were got</summary><dl>{rows}</dl></details>' if rows else ""


def _bars(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the parts of the gap as bars, all of one scale; negative ones are hatched."""
    widest = max([abs(part["recall_at_1"]) for part in parts] + [1e-9])
    rows = ""
    for part in parts:
        value = part["recall_at_1"]
        width = 100 * abs(value) / widest
        kind = "minus" if value < 0 else "plus"
        rows += (
            f'<div class="part"><span>{escape(part["label"])}</span><span class="track">'
            f'<i class="{kind}" style="width:{width:.1f}%"></i></span><b>{value:+.1f}</b></div>'
        )
    return f'<div class="parts">{rows}</div>'


def _query(entry: Mapping[str, Any], film: Mapping[str, Sequence[np.ndarray]], height: int) -> str:
    """Return one query: its caption, the ranks, the right video, the video that the student put first."""
    ranks = f"rank of the right video: student {entry['student_rank']}, teacher {entry['teacher_rank']}"
    rows = "".join(
        f"<h4>{escape(said)}: {escape(entry[which]['video'])}{escape(_cut(entry[which]))}</h4>"
        f"{_film(entry[which], film[which], height)}"
        for which, said in (("right", "right video"), ("first", "the student's first"))
    )
    return f'<section class="query"><h3>{escape(entry["caption"])}</h3><p>{escape(ranks)}</p>{rows}</section>'


def _cut(row: Mapping[str, Any]) -> str:
    shown, total = len(row["frames"]), row["frame_count"]
    return "" if shown == total else f" ({shown} of {total} frames, those with the most weight)"


def _film(row: Mapping[str, Any], pictures: Sequence[np.ndarray], height: int) -> str:
    cells = ""
    teacher = row["teacher"] or [None] * len(row["frames"])
    for frame, own, other, picture in zip(row["frames"], row["student"], teacher, pictures, strict=True):
        bars = _bar("S", own) + ("" if other is None else _bar("T", other))
        cells += f'<div class="frame"><img alt="frame {frame + 1}" src="{data_uri(picture, height)}"/>{bars}</div>'
    return f'<div class="film">{cells}</div>'


def _bar(who: str, share: float) -> str:
    percent = 100 * share
    return (
        f'<div class="bar {who}"><span>{who} {percent:.0f}%</span>'
        f'<i style="width:{min(100.0, percent):.0f}%"></i></div>'
    )


def jpeg(picture: np.ndarray, height: int) -> bytes:
    """Return a picture, uint8 (3, height, width), as JPEG of at most that height."""
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    if image.height > height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=75)
    return data.getvalue()


def data_uri(picture: np.ndarray, height: int) -> str:
    """Return a picture as the address of an image that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture, height)).decode('ascii')}"


def picture_height(pictures: Sequence[np.ndarray]) -> int:
    """Return the largest of `HEIGHTS` at which all pictures together take at most `PICTURE_BYTES`."""
    for height in HEIGHTS:
        if sum(len(jpeg(picture, height)) for picture in pictures) <= PICTURE_BYTES:
            return height
    return HEIGHTS[-1]


_FRAMES = (
    "The embedded world keeps a record of what every frame shows: an event that captions tell of, a distractor, or "
    "nothing. Student: mean share of its videos' frames. Teacher: mean relevance for each caption's own video."
)
_QUERIES = (
    "Those whose right video the student ranks the most places behind the teacher; of each video the worst caption. "
    "Below each frame, S: the student's share of the frame, which is the same for every caption; T: the teacher's "
    "relevance of the frame for this very caption."
)
_STYLE = """
.parts { margin: .75rem 0 1.25rem; max-width: 36rem; }
.part { display: grid; grid-template-columns: 10rem 1fr 3.2rem; gap: .6rem; align-items: center; font-size: .9rem; }
.part b { text-align: right; font-variant-numeric: tabular-nums; }
.track i { display: block; height: .8rem; border-radius: 3px; background: #3b7dd8; }
.track i.minus { background: repeating-linear-gradient(45deg, #b9651b 0 4px, transparent 4px 8px); }
summary { color: var(--soft); font-size: .9rem; cursor: pointer; margin-top: .4rem; }
dl { font-size: .9rem; margin: .4rem 0; } dt { font-weight: 600; } dd { margin: 0 0 .45rem; }
.query { border-top: 1px solid var(--line); margin-top: 1rem; }
.query h3 { font-size: 1rem; margin: .8rem 0 .1rem; }
.query h4 { font-size: .85rem; font-weight: 500; color: var(--soft); margin: .6rem 0 .25rem; }
.query h4, .query h3, dd, main > p { overflow-wrap: anywhere; }
.query p { margin: 0; font-size: .9rem; }
.film { display: flex; flex-wrap: wrap; gap: .35rem; }
.frame { width: 4.6rem; }
.frame img { width: 100%; min-width: 0; height: auto; border-radius: 3px; }
.bar { position: relative; height: 1rem; margin-top: 2px; font-size: .7rem; line-height: 1rem; }
.bar span { position: relative; z-index: 1; padding-left: 2px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; opacity: .45; }
.bar.S i { background: #3b7dd8; } .bar.T i { background: #d9822b; }
@media (max-width: 34rem) { .part { grid-template-columns: 7rem 1fr 3rem; } .frame { width: 3.9rem; } }
"""
