"""Load the catalogue of a dataset: read the annotations, find the files, hold out videos for validation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teachclip.data.annotations.files import locate_videos
from teachclip.data.annotations.records import Annotations, Caption, Catalog, Segment, Split, Video, hash_of
from teachclip.data.formats import FORMATS
from teachclip.errors import DataError
from teachclip.registry import resolve

SHOWN = 5
"""How many videos a message names."""


def load_catalog(
    *,
    format: str,
    videos: Path,
    annotations: Path,
    train: Path | None = None,
    test: Path | None = None,
    validation: ValidationOptions | Path | None = None,
    max_missing: float = 0.0,
) -> Catalog:
    """Read annotations and find the video files below the folder `videos`.

    `format` is a name in `teachclip.data.formats.FORMATS` or the `module:name` of a reader
    `read(*, annotations, train, validation, test) -> Annotations`; `train`, `test` and, if it is a path, `validation`
    are lists for it. Where the annotations then have no validation split, `validation` options hold training videos
    out. Videos without a file are left out if their share is at most `max_missing`.

    Raises RecipeError for an unknown format, DataError for everything that is wrong with the data.
    """
    read = resolve("data format", format, FORMATS)
    own_list = None if isinstance(validation, ValidationOptions) else validation
    found: Annotations = read(annotations=Path(annotations), train=train, validation=own_list, test=test)
    named = (("train", found.train), ("validation", found.validation), ("test", found.test))
    groups = {name: _by_video(captions) for name, captions in named if captions is not None}
    ids = list(dict.fromkeys(video_id for group in groups.values() for video_id in group))
    located = _locate(Path(videos), ids, found.segments)
    absent = {video_id: "no such file" for video_id in ids if video_id not in located}
    missing = {**absent, **{key: reason for part in found.excluded.values() for key, reason in part.items()}}
    total = len(ids) + len(missing) - len(absent)
    problem = f"are not below {videos}" + (" or have no caption" if total > len(ids) else "")
    refuse_too_many(missing, missing, total, max_missing, problem)
    splits = {name: _build_split(name, group, located, missing) for name, group in groups.items()}
    lost = {
        name: (*(key for key in group if key in absent), *found.excluded.get(name, ()))
        for name, group in groups.items()
    }
    catalog = Catalog(splits["train"], splits.get("validation"), splits.get("test"), missing, lost)
    if catalog.validation is None and isinstance(validation, ValidationOptions):
        return _hold_out(catalog, validation)
    return catalog


def require_readable(catalog: Catalog, failures: Mapping[str, str], *, max_missing: float) -> Catalog:
    """Return the catalogue without the videos in `failures` (video id -> reason); they join `excluded`.

    Raises DataError, naming videos and reasons, if the share of all that is left out is above `max_missing`, or if a
    split is left empty. Failures of videos that are in no split do not matter.
    """
    reasons = {video.id: failures[video.id] for video in catalog.videos if video.id in failures}
    if not reasons:
        return catalog
    out = {**catalog.excluded, **reasons}
    refuse_too_many(reasons, out, len(catalog.videos) + len(catalog.excluded), max_missing, "cannot be read")
    kept = {video.id: video for video in catalog.videos if video.id not in reasons}
    splits = {
        split.name: _build_split(split.name, _by_video(split.captions), kept, reasons) for split in catalog.splits
    }
    lost = {
        split.name: (*catalog.lost.get(split.name, ()), *(video.id for video in split.videos if video.id in reasons))
        for split in catalog.splits
    }
    return Catalog(splits["train"], splits.get("validation"), splits.get("test"), out, lost)


def _locate(root: Path, ids: Sequence[str], segments: Mapping[str, Segment]) -> dict[str, Video]:
    """Find the files of the videos. Raises DataError if two of them are the same part of the same file."""
    places = {video_id: segments.get(video_id) or Segment(video_id) for video_id in ids}
    names = {video_id: (place.file, *place.other_names) for video_id, place in places.items()}
    paths = locate_videos(root, list(dict.fromkeys(name for choice in names.values() for name in choice)))
    located: dict[str, Video] = {}
    owners: dict[tuple[Path, float | None, float | None], str] = {}
    for video_id, place in places.items():
        path = next((paths[name] for name in names[video_id] if name in paths), None)
        if path is None:
            continue
        owner = owners.setdefault((path, place.start, place.end), video_id)
        if owner != video_id:
            what = "file" if place.start is place.end is None else "part of the file"
            raise DataError(f"videos {owner!r} and {video_id!r} are the same {what} {path}; write its name one way")
        located[video_id] = Video(video_id, path, place.start, place.end)
    return located


def refuse_too_many(
    reasons: Mapping[str, str], out: Mapping[str, str], total: int, max_missing: float, problem: str
) -> None:
    """Raise DataError if the share of the videos `out` is above `max_missing`; `reasons` are those to name."""
    if len(out) <= max_missing * total + 1e-9:  # 0.29 * 100 is below 29
        return
    raise DataError(
        f"{len(reasons)} of {total} videos {problem}: {_some(reasons, reasons)}; mend them, take them out of the "
        f"annotations, or leave them out with data.max_missing={math.ceil(1e4 * len(out) / total) / 1e4:g} "
        f"(now {max_missing:g})"
    )


def _by_video(captions: Iterable[Caption]) -> dict[str, list[Caption]]:
    """Group captions by video, in the order in which videos first appear."""
    groups: dict[str, list[Caption]] = {}
    for caption in captions:
        groups.setdefault(caption.video_id, []).append(caption)
    return groups


def _build_split(
    name: str,
    groups: Mapping[str, Sequence[Caption]],
    videos: Mapping[str, Video],
    reasons: Mapping[str, str],
) -> Split:
    """Return the split of those in `videos`. Raises DataError, with some of the `reasons`, if there is none."""
    kept = [video_id for video_id in groups if video_id in videos]
    if not groups:
        raise DataError(f"split {name}: it has no captions")
    if not kept:
        raise DataError(f"split {name}: none of its videos can be used: {_some(groups, reasons)}")
    captions = tuple(caption for video_id in kept for caption in groups[video_id])
    return Split(name, tuple(videos[video_id] for video_id in kept), captions)


def _some(video_ids: Collection[str], reasons: Mapping[str, str]) -> str:
    """Name a few videos, each with its reason."""
    shown = ", ".join(f"{video_id} ({reasons.get(video_id, '')})" for video_id in list(video_ids)[:SHOWN])
    return shown + (f" and {len(video_ids) - SHOWN} more" if len(video_ids) > SHOWN else "")


def _hold_out(catalog: Catalog, options: ValidationOptions) -> Catalog:
    """Move training videos to a validation split."""
    train = catalog.train
    held = choose_held_out({video.id: str(video.path) for video in train.videos}, options)
    videos = {video.id: video for video in train.videos}
    groups = _by_video(train.captions)
    return replace(
        catalog,
        train=_build_split("train", {key: groups[key] for key in groups if key not in held}, videos, {}),
        validation=_build_split("validation", {key: groups[key] for key in groups if key in held}, videos, {}),
    )


DEFAULT_SHARE = 0.05

MOST = 1000
"""No share holds out more videos than this: more would cost training data and time, and choose no better."""


@dataclass(frozen=True)
class ValidationOptions:
    """How much is held out: a number of `videos`, else a `share` of them (1 to `MOST`). `seed` picks which."""

    videos: int | None = None
    share: float = DEFAULT_SHARE
    seed: int = 0


def choose_held_out(files: Mapping[str, str], options: ValidationOptions) -> set[str]:
    """Return the ids of the videos to hold out. `files`: the file of every training video, by video id.

    Videos come in the order of their id hashed with the seed: a shuffle that neither the order of the annotations nor
    other videos change. Parts of one file are held out together or not at all, so that there may be fewer than asked
    for; there are more only if every file has more parts than that. Clips that were cut from one source into files of
    their own are not known to belong together. Raises DataError if nothing would be left to train on.
    """
    total = len(files)
    asked = options.videos if options.videos is not None else min(MOST, max(1, round(total * options.share)))
    parts: dict[str, list[str]] = {}
    for video_id in sorted(files, key=lambda name: (hash_of([options.seed, name]), name)):
        parts.setdefault(files[video_id], []).append(video_id)
    what = "data.validation holds out" if options.videos is None else "data.validation.videos is"
    if len(parts) < 2:
        raise DataError(f"{what} {asked}, but there is one training file; data.validation=null holds out none")
    if not 0 < asked < total:
        raise DataError(f"{what} {asked}; allowed: 1 to {total - 1}, as there are {total} training videos")
    held: set[str] = set()
    for group in parts.values():
        if len(held) + len(group) <= asked:
            held.update(group)
    smallest = sorted(parts.values(), key=len)[0]
    return held or set(smallest)
