"""The report of the data doctor: a table in the terminal, a JSON file, and a page with pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from teachclip.data_check.findings import Finding, count_oddities
from teachclip.reports.pages import encode_jpeg, jpeg_uri, render_page
from teachclip.reports.tables import Table
from teachclip.store.files import write_atomic

NAMED = 20
"""Videos of one kind that the terminal names; the JSON file and the page have more."""

MISSING = "missing"
"""How the reason of a video without a file, or without captions, begins."""

PICTURED = 120
"""Odd videos on the page; a page of thousands of pictures opens in no browser."""


class Strip(NamedTuple):
    """The sampled frames of a video as small pictures, uint8 (frames, height, width, 3)."""

    finding: Finding
    frames: np.ndarray


class Examination(NamedTuple):
    """All that was found."""

    recipe: str
    findings: Sequence[Finding]
    captions: Mapping[str, Mapping[str, Any]]
    same_content: Sequence[Sequence[str]]
    overlaps: Sequence[str]
    verdict: Sequence[str]
    refusal: str
    """Why training would refuse this data; empty if it would not."""
    strips: Sequence[Strip]
    """Of a few good videos and of every odd one."""


def tables(found: Examination) -> list[Table]:
    """Return the tables: videos by split, captions by split, what is odd."""
    splits = list(dict.fromkeys(finding.split for finding in found.findings))
    rows = []
    for split in splits:
        mine = [finding for finding in found.findings if finding.split == split]
        missing = sum(finding.reason.startswith(MISSING) for finding in mine)
        unreadable = sum(bool(finding.reason) for finding in mine) - missing
        odd = sum(bool(finding.oddities) for finding in mine)
        seconds = sum(finding.seconds for finding in mine)
        usable = len(mine) - missing - unreadable
        rows.append([split, *map(str, (len(mine), usable, missing, unreadable, odd)), _length(seconds)])
    videos = Table("Videos", ["split", "listed", "usable", "missing", "unreadable", "odd", "length"], rows)
    words = Table(
        "Captions",
        [
            "split",
            "captions",
            "per video (least, median, most)",
            "tokens (least, median, most)",
            "cut",
            "tokens lost",
        ],
        [
            [
                split,
                str(facts["captions"]),
                _three(facts["captions_per_video"]),
                _three(facts["tokens"]),
                f"{100 * facts['captions_cut'] / facts['captions']:.1f} %",
                f"{100 * facts['tokens_cut_share']:.2f} %",
            ]
            for split, facts in found.captions.items()
        ],
    )
    kinds = count_oddities(found.findings)
    reasons = Counter("missing" if f.reason.startswith(MISSING) else "unreadable" for f in found.findings if f.reason)
    counted = [[kind, str(count)] for kind, count in (reasons + kinds).most_common()]
    files = Table("Files", ["what", "files"], _file_rows(found.findings))
    return [videos, words, Table("To look at", ["what", "videos"], counted or [["nothing", "0"]]), files]


def _length(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _three(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _file_rows(findings: Sequence[Finding]) -> list[list[str]]:
    known = {finding.path: finding.facts for finding in findings if finding.facts is not None}
    kinds = Counter(f"{facts.codec} in {Path(path).suffix}, read by {facts.decoder}" for path, facts in known.items())
    sizes = Counter(f"{facts.shown_width} x {facts.shown_height}" for facts in known.values())
    shown = [*kinds.most_common(6), *sizes.most_common(4)]
    return [[name, str(count)] for name, count in shown] or [["no readable file", "0"]]


def remarks(found: Examination) -> list[str]:
    """Return lines on duplicates and overlaps, and the verdict last."""
    lines = []
    for group in found.same_content[:NAMED]:
        lines.append(f"same content: {', '.join(group[:NAMED])}")
    if len(found.same_content) > NAMED:
        lines.append(f"same content: {len(found.same_content) - NAMED} more groups")
    for split, facts in found.captions.items():
        if facts["captions_of_several_videos"]:
            examples = "; ".join(map(repr, facts["examples_of_several_videos"][:2]))
            count = facts["captions_of_several_videos"]
            lines.append(f"{split}: {count} captions stand for several videos, such as {examples}")
    return [*lines, *found.overlaps, *found.verdict, *([found.refusal] if found.refusal else [])]


def named_problems(found: Examination) -> list[str]:
    """Return a line for each video that cannot be used and each odd one, the worst first."""
    bad = [f"{f.split} {f.id}: {f.reason}" for f in found.findings if f.reason]
    odd = [f"{f.split} {f.id}: {'; '.join(f.oddities)}" for f in found.findings if f.oddities and not f.reason]
    lines = []
    for group, what in ((bad, "that cannot be used"), (odd, "to look at")):
        lines += group[:NAMED]
        if len(group) > NAMED:
            lines.append(f"... and {len(group) - NAMED} more videos {what}")
    return lines


def write_prepare_report(found: Examination, folder: Path) -> list[Path]:
    """Write `prepare.json` and `prepare.html` into a folder; returns their paths."""
    content = {
        "recipe": found.recipe,
        "captions": found.captions,
        "same_content": found.same_content,
        "overlaps": found.overlaps,
        "verdict": found.verdict,
        "refusal": found.refusal,
        "videos": {finding.id: _as_json(finding) for finding in found.findings},
    }
    paths = [folder / "prepare.json", folder / "prepare.html"]
    write_atomic(paths[0], json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    write_atomic(paths[1], _page(found).encode())
    return paths


def _as_json(finding: Finding) -> dict[str, Any]:
    facts = None
    if finding.facts is not None:
        facts = {key: value for key, value in asdict(finding.facts).items() if key != "timeline"}
    return {
        "file": finding.path,
        "split": finding.split,
        "reason": finding.reason,
        "oddities": finding.oddities,
        "frames": finding.frames,
        "seconds": finding.seconds,
        "facts": facts,
    }


def _page(found: Examination) -> str:
    """Return the page: verdict, tables, frames of a few good videos and of the odd ones, and the unusable ones."""
    suspicious = [strip for strip in found.strips if strip.finding.oddities]
    excluded = [[f"{f.split} {f.id}", f.reason] for f in found.findings if f.reason]
    *numbers, files = tables(found)
    return render_page(
        "prepare.html",
        title=f"Data of {found.recipe}",
        notes=remarks(found),
        tables=numbers,
        files=files,
        usable=[_strip(strip) for strip in found.strips if not strip.finding.oddities],
        suspicious=[_strip(strip) for strip in suspicious],
        hidden=sum(bool(f.oddities) and not f.reason for f in found.findings) - len(suspicious),
        excluded=Table("Videos that cannot be used", ["video", "reason"], excluded),
    )


def _strip(strip: Strip) -> dict[str, str]:
    finding, facts = strip.finding, strip.finding.facts
    size = "" if facts is None else f"{facts.shown_width} x {facts.shown_height}, {facts.codec}"
    return {
        "name": f"{finding.split} {finding.id}",
        "caption": "; ".join([*([f"{finding.seconds:.1f} s, {size}"] if size else []), *finding.oddities]),
        "alt": f"{len(strip.frames)} frames of {finding.id}",
        "image": jpeg_uri(encode_jpeg(np.concatenate(list(strip.frames), axis=1))),
    }
