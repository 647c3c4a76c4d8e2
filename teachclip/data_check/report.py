"""The report of a dataset check: tables and lines for the terminal, a JSON file, and a page with images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from teachclip.data_check.checks import VideoCheck
from teachclip.reports.pages import encode_jpeg, jpeg_uri, render_page
from teachclip.reports.tables import Table
from teachclip.store.files import write_atomic

MAX_NAMED = 20
"""Videos of one kind that the terminal names; the JSON file and the page have more."""

MAX_SUSPICIOUS_STRIPS = 120
"""Suspicious videos that the page shows; browsers cannot open a page of thousands of images."""


class Strip(NamedTuple):
    """The sampled frames of a video as thumbnails, uint8 (frames, height, width, 3)."""

    video: VideoCheck
    frames: np.ndarray


class DatasetCheck(NamedTuple):
    """Everything that the check of a recipe's data found."""

    recipe: str
    videos: Sequence[VideoCheck]
    captions: Mapping[str, Mapping[str, Any]]
    """Per split, as `caption_statistics` returns them."""
    duplicates: Sequence[Sequence[str]]
    overlaps: Sequence[str]
    verdict: Sequence[str]
    refusal: str
    """Why training would refuse this data; empty if it would not."""
    strips: Sequence[Strip]
    """Of a few videos without suspicions and of the suspicious ones."""


def tables(check: DatasetCheck) -> list[Table]:
    """Return the tables: videos by split, captions by split, counts of problems, counts of file types and sizes."""
    return [
        _videos_table(check.videos),
        _captions_table(check.captions),
        _problems_table(check.videos),
        _files_table(check.videos),
    ]


def _videos_table(checks: Sequence[VideoCheck]) -> Table:
    rows = []
    for split in dict.fromkeys(video.split for video in checks):
        videos = [video for video in checks if video.split == split]
        missing = sum(video.is_missing for video in videos)
        unreadable = sum(bool(video.error) for video in videos) - missing
        suspicious = sum(bool(video.suspicions) for video in videos)
        usable = len(videos) - missing - unreadable
        seconds = sum(video.seconds for video in videos)
        rows.append([split, *map(str, (len(videos), usable, missing, unreadable, suspicious)), _length(seconds)])
    return Table("Videos", ["split", "listed", "usable", "missing", "unreadable", "suspicious", "length"], rows)


def _captions_table(captions: Mapping[str, Mapping[str, Any]]) -> Table:
    header = [
        "split",
        "captions",
        "per video (min, median, max)",
        "tokens (min, median, max)",
        "truncated",
        "tokens truncated",
    ]
    rows = [
        [
            split,
            str(statistics["captions"]),
            _triple(statistics["captions_per_video"]),
            _triple(statistics["tokens"]),
            f"{100 * statistics['captions_truncated'] / statistics['captions']:.1f} %",
            f"{100 * statistics['tokens_truncated_share']:.2f} %",
        ]
        for split, statistics in captions.items()
    ]
    return Table("Captions", header, rows)


def _problems_table(checks: Sequence[VideoCheck]) -> Table:
    """Return how many videos have each problem; each kind counts once per video."""
    errors = Counter("missing" if video.is_missing else "unreadable" for video in checks if video.error)
    suspicions = Counter(kind for video in checks for kind in {suspicion.kind for suspicion in video.suspicions})
    rows = [[kind, str(count)] for kind, count in (errors + suspicions).most_common()]
    return Table("Problems", ["what", "videos"], rows or [["none", "0"]])


def _files_table(checks: Sequence[VideoCheck]) -> Table:
    files = {video.path: video.facts for video in checks if video.facts is not None}
    kinds = Counter(f"{facts.codec} in {Path(path).suffix}" for path, facts in files.items())
    sizes = Counter(f"{facts.shown_width} x {facts.shown_height}" for facts in files.values())
    rows = [[name, str(count)] for name, count in [*kinds.most_common(6), *sizes.most_common(4)]]
    return Table("Files", ["what", "files"], rows or [["no readable file", "0"]])


def _length(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def notes(check: DatasetCheck) -> list[str]:
    """Return lines on duplicates, shared captions and overlaps, and the verdict last."""
    lines = [f"same content: {', '.join(group[:MAX_NAMED])}" for group in check.duplicates[:MAX_NAMED]]
    if len(check.duplicates) > MAX_NAMED:
        lines.append(f"same content: {len(check.duplicates) - MAX_NAMED} more groups")
    for split, statistics in check.captions.items():
        count = statistics["captions_of_several_videos"]
        if count:
            examples = "; ".join(map(repr, statistics["examples_of_several_videos"][:2]))
            lines.append(f"{split}: {count} captions belong to several videos, such as {examples}")
    return [*lines, *check.overlaps, *check.verdict, *([check.refusal] if check.refusal else [])]


def named_problems(check: DatasetCheck) -> list[str]:
    """Return a line for each video that cannot be used, then for each suspicious one, `MAX_NAMED` of each."""
    unusable = [f"{video.name}: {video.error}" for video in check.videos if video.error]
    suspicious = [
        f"{video.name}: {_messages(video)}" for video in check.videos if video.suspicions and not video.error
    ]
    lines = []
    for group, kind in ((unusable, "videos that cannot be used"), (suspicious, "suspicious videos")):
        lines += group[:MAX_NAMED]
        if len(group) > MAX_NAMED:
            lines.append(f"... and {len(group) - MAX_NAMED} more {kind}")
    return lines


def _messages(video: VideoCheck) -> str:
    return "; ".join(suspicion.message for suspicion in video.suspicions)


def write_check_report(check: DatasetCheck, folder: Path) -> list[Path]:
    """Write `prepare.json` and `prepare.html` into a folder. Returns their paths."""
    content = {
        "recipe": check.recipe,
        "captions": check.captions,
        "duplicates": check.duplicates,
        "overlaps": check.overlaps,
        "verdict": check.verdict,
        "refusal": check.refusal,
        "videos": {video.id: _as_json(video) for video in check.videos},
    }
    paths = [folder / "prepare.json", folder / "prepare.html"]
    write_atomic(paths[0], json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    write_atomic(paths[1], check_page(check).encode())
    return paths


def _as_json(video: VideoCheck) -> dict[str, Any]:
    facts = None
    if video.facts is not None:
        facts = {key: value for key, value in asdict(video.facts).items() if key != "timeline"}
    return {
        "file": video.path,
        "split": video.split,
        "error": video.error,
        "suspicions": [suspicion.message for suspicion in video.suspicions],
        "frames": video.frames,
        "seconds": video.seconds,
        "facts": facts,
    }


def check_page(check: DatasetCheck) -> str:
    """Return the page: notes and verdict, tables, frames of usable and suspicious videos, and the unusable videos."""
    suspicious = [strip for strip in check.strips if strip.video.suspicions]
    unusable = [[video.name, video.error] for video in check.videos if video.error]
    return render_page(
        "prepare.html",
        title=f"Data of {check.recipe}",
        notes=notes(check),
        tables=tables(check),
        usable=[_strip(strip) for strip in check.strips if not strip.video.suspicions],
        suspicious=[_strip(strip) for strip in suspicious],
        hidden=sum(bool(video.suspicions) and not video.error for video in check.videos) - len(suspicious),
        unusable=Table("Videos that cannot be used", ["video", "error"], unusable),
    )


def _strip(strip: Strip) -> dict[str, str]:
    video, facts = strip.video, strip.video.facts
    size = (
        "" if facts is None else f"{video.seconds:.1f} s, {facts.shown_width} x {facts.shown_height}, {facts.codec}"
    )
    return {
        "name": video.name,
        "caption": "; ".join(text for text in (size, _messages(video)) if text),
        "alt": f"{len(strip.frames)} frames of {video.id}",
        "image": jpeg_uri(encode_jpeg(np.concatenate(list(strip.frames), axis=1))),
    }


def thumbnails(frames: Tensor, *, height: int = 72) -> np.ndarray:
    """Return small images of frames, uint8 (frames, height, width, 3), from uint8 (frames, 3, height, width)."""
    size = (height, max(1, round(frames.shape[-1] * height / frames.shape[-2])))
    small = F.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
