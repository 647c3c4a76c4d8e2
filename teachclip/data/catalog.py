"""Which videos and captions there are, and in which split: the catalogue that everything else counts its rows in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.data.formats import FORMATS
from teachclip.data.locate import locate_videos
from teachclip.errors import DataError
from teachclip.registry import resolve

SHOWN = 5
"""How many videos a message names."""


@dataclass(frozen=True)
class Video:
    """A video file, or the seconds of one from `start` to `end`; None: from its beginning, to its end.

    `id` is unique within a catalogue; several videos may share one file.
    """

    id: str
    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Caption:
    """One sentence about one video. `id` is unique within a split."""

    id: str
    video_id: str
    text: str


@dataclass(frozen=True)
class Split:
    """The videos and captions of one split. Captions are grouped by video, in the order of the videos.

    Raises DataError for an id that stands twice, a video without caption, or captions in another order.
    """

    name: str
    videos: tuple[Video, ...]
    captions: tuple[Caption, ...]

    def __post_init__(self) -> None:
        for kind, ids in (("video", [video.id for video in self.videos]), ("caption", [c.id for c in self.captions])):
            if len(set(ids)) < len(ids):
                raise DataError(f"split {self.name}: {kind} id {_repeated(ids)!r} stands twice")
        order = list(dict.fromkeys(caption.video_id for caption in self.captions))
        if order != [video.id for video in self.videos] or (np.diff(self.caption_videos) < 0).any():
            raise DataError(f"split {self.name}: captions must be grouped by video, in the order of the videos")

    @cached_property
    def caption_videos(self) -> np.ndarray:
        """Row of each caption's video: (captions,) int64."""
        rows = {video.id: row for row, video in enumerate(self.videos)}
        return np.array([rows.get(caption.video_id, -1) for caption in self.captions], dtype=np.int64)

    def circumstances(self) -> dict[str, Any]:
        """Return numbers and hashes of the ids and texts, in order, for fingerprints. File contents are not in it."""
        return {
            "videos": len(self.videos),
            "captions": len(self.captions),
            "video_ids": _hash([video.id for video in self.videos]),
            "caption_ids": _hash([[caption.id, caption.video_id] for caption in self.captions]),
            "texts": _hash([caption.text for caption in self.captions]),
        }


@dataclass(frozen=True)
class Catalog:
    """All splits. No video is in two of them. `left_out` maps the id of a video that is not used to the reason."""

    train: Split
    validation: Split | None = None
    test: Split | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split in self.splits:
            for video in split.videos:
                if video.id in seen:
                    raise DataError(f"video {video.id!r} is in two splits, {seen[video.id]} and {split.name}")
                seen[video.id] = split.name

    @property
    def splits(self) -> tuple[Split, ...]:
        """All splits that there are: train, validation, test."""
        return tuple(split for split in (self.train, self.validation, self.test) if split is not None)

    @property
    def videos(self) -> tuple[Video, ...]:
        """All videos, in the order of the splits."""
        return tuple(video for split in self.splits for video in split.videos)


@dataclass(frozen=True)
class Annotations:
    """What a reader returns: the captions of each split in the order of the file; None where there is no split."""

    train: Sequence[Caption]
    validation: Sequence[Caption] | None = None
    test: Sequence[Caption] | None = None


@dataclass(frozen=True)
class ValidationOptions:
    """How many training videos are held out for validation, and the seed that picks them."""

    videos: int
    seed: int = 0


def load_catalog(
    *,
    format: str,
    videos: Path,
    annotations: Path,
    train: Path | None = None,
    test: Path | None = None,
    validation: ValidationOptions | None = None,
    max_missing: float = 0.0,
) -> Catalog:
    """Read annotations and find the video files below the folder `videos`.

    `format` is a name in `teachclip.data.formats.FORMATS` or the `module:name` of a reader
    `read(*, annotations, train, test) -> Annotations`. Where the annotations have no validation split of their own,
    `validation` holds training videos out. Videos without a file are left out if their share is at most
    `max_missing`.

    Raises RecipeError for an unknown format, DataError for everything that is wrong with the data.
    """
    read = resolve("data format", format, FORMATS)
    found: Annotations = read(annotations=Path(annotations), train=train, test=test)
    named = (("train", found.train), ("validation", found.validation), ("test", found.test))
    groups = {name: _by_video(captions) for name, captions in named if captions is not None}
    ids = list(dict.fromkeys(video_id for group in groups.values() for video_id in group))
    paths = locate_videos(Path(videos), ids)
    missing = {video_id: "no such file" for video_id in ids if video_id not in paths}
    _refuse_too_many(missing, missing, len(ids), max_missing, f"are not below {videos}")
    splits = {name: _build_split(name, group, paths) for name, group in groups.items()}
    catalog = Catalog(splits["train"], splits.get("validation"), splits.get("test"), missing)
    if catalog.validation is None and validation is not None:
        return _hold_out(catalog, validation)
    return catalog


def require_readable(catalog: Catalog, failures: Mapping[str, str], *, max_missing: float) -> Catalog:
    """Return the catalogue without the videos in `failures` (video id -> reason); they join `left_out`.

    Raises DataError, naming videos and reasons, if the share of all that is left out is above `max_missing`, or if a
    split is left empty. Failures of videos that are in no split do not matter.
    """
    reasons = {video.id: failures[video.id] for video in catalog.videos if video.id in failures}
    if not reasons:
        return catalog
    out = {**catalog.left_out, **reasons}
    _refuse_too_many(reasons, out, len(catalog.videos) + len(catalog.left_out), max_missing, "cannot be read")
    paths = {video.id: video.path for video in catalog.videos if video.id not in reasons}
    splits = {split.name: _build_split(split.name, _by_video(split.captions), paths) for split in catalog.splits}
    return Catalog(splits["train"], splits.get("validation"), splits.get("test"), out)


def _refuse_too_many(
    reasons: Mapping[str, str], out: Mapping[str, str], total: int, max_missing: float, problem: str
) -> None:
    """Raise DataError if the share of the videos `out` is above `max_missing`; `reasons` are those to name."""
    if len(out) <= max_missing * total:
        return
    shown = ", ".join(f"{video_id} ({reason})" for video_id, reason in list(reasons.items())[:SHOWN])
    more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    raise DataError(
        f"{len(reasons)} of {total} videos {problem}: {shown}{more}; mend them, take them out of the annotations, or "
        f"leave them out with data.max_missing={math.ceil(1e4 * len(out) / total) / 1e4:g} (now {max_missing:g})"
    )


def _by_video(captions: Iterable[Caption]) -> dict[str, list[Caption]]:
    """Group captions by video, in the order in which videos first appear."""
    groups: dict[str, list[Caption]] = {}
    for caption in captions:
        groups.setdefault(caption.video_id, []).append(caption)
    return groups


def _build_split(name: str, groups: Mapping[str, Sequence[Caption]], paths: Mapping[str, Path]) -> Split:
    """Return the split of the videos that have a path. Raises DataError if there is none."""
    kept = [video_id for video_id in groups if video_id in paths]
    if not kept:
        raise DataError(f"split {name}: {'none of its videos can be used' if groups else 'it has no captions'}")
    videos = tuple(Video(video_id, paths[video_id]) for video_id in kept)
    return Split(name, videos, tuple(caption for video_id in kept for caption in groups[video_id]))


def _hold_out(catalog: Catalog, options: ValidationOptions) -> Catalog:
    """Move training videos to a validation split.

    They are those whose id, hashed with the seed, comes first: a shuffle that neither the order of the files nor
    other videos change.
    """
    train = catalog.train
    if not 0 < options.videos < len(train.videos):
        raise DataError(
            f"data.validation.videos is {options.videos}; allowed: 1 to {len(train.videos) - 1}, as there are "
            f"{len(train.videos)} training videos"
        )
    shuffled = sorted((_hash([options.seed, video.id]), video.id) for video in train.videos)
    held = {video_id for _, video_id in shuffled[: options.videos]}
    paths = {video.id: video.path for video in train.videos}
    groups = _by_video(train.captions)
    return replace(
        catalog,
        train=_build_split("train", {key: groups[key] for key in groups if key not in held}, paths),
        validation=_build_split("validation", {key: groups[key] for key in groups if key in held}, paths),
    )


def _hash(values: Sequence[Any]) -> str:
    """Return the sha256 of values in JSON, which keeps them apart."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _repeated(ids: Iterable[str]) -> str:
    """Return the first id that stands twice."""
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
