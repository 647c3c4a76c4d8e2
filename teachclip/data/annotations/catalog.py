"""Load the catalogue of a dataset: read annotations, find the video files, hold out videos for validation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from teachclip.data.annotations.files import locate_videos
from teachclip.data.annotations.records import Annotations, Caption, Catalog, Segment, Split, Video, hash_of
from teachclip.data.annotations.uncaptioned import join_uncaptioned, most_texts, plain_text
from teachclip.data.formats import FORMATS
from teachclip.data.formats.problems import Problems
from teachclip.errors import DataError
from teachclip.registry import resolve

SHOWN = 5
"""How many videos a message names."""


def load_catalog(
    *,
    videos: Path,
    format: str | None = None,
    annotations: Path | None = None,
    train: Path | None = None,
    test: Path | None = None,
    validation: ValidationOptions | Path | None = None,
    max_missing: float = 0.0,
    texts: Path | None = None,
    uncaptioned: Path | None = None,
) -> Catalog:
    """Read annotations and find the video files below the folder `videos`.

    Without `annotations` no video has captions. `texts`: file with texts that are of no video, one per line.
    `uncaptioned`: folder with more videos for training, which have no captions. Validation is then held out of the
    captioned videos if there are any; if not, of the others, with at most `MAX_HELD_OUT` of the texts.

    `format` is a name in `teachclip.data.formats.FORMATS` or the `module:name` of a reader
    `read(*, annotations, train, validation, test) -> Annotations`, which gets the lists `train`, `test` and, if it is
    a path, `validation`. If the annotations have no validation split, `ValidationOptions` hold out training videos.
    Videos without a file are excluded if their share is at most `max_missing`.

    Raises RecipeError for an unknown format and DataError for every problem of the data.
    """
    if annotations is None or format is None:
        catalog, uncaptioned = Catalog(Split("train", (), ())), uncaptioned or videos
    else:
        listed = None if isinstance(validation, ValidationOptions) else validation
        files = {"annotations": annotations, "train": train, "test": test, "validation": listed}
        is_whole = texts is None and uncaptioned is None
        catalog = _read_catalog(format, videos, files, max_missing=max_missing, needs_train=is_whole)
    if texts is not None or uncaptioned is not None:
        catalog = join_uncaptioned(catalog, texts, uncaptioned)
    if catalog.validation is None and isinstance(validation, ValidationOptions):
        return _hold_out(catalog, validation)
    return catalog


def _read_catalog(
    format: str, videos: Path, files: Mapping[str, Path | None], *, max_missing: float, needs_train: bool
) -> Catalog:
    """Read the captioned videos; only if it `needs_train` must there be some to train on."""
    read = resolve("data format", format, FORMATS)
    read_annotations = read(**files)
    if not isinstance(read_annotations, Annotations):
        raise DataError(
            f"data format {format!r}: the reader returned a {type(read_annotations).__name__}; allowed: "
            "teachclip.data.annotations.records.Annotations"
        )
    named = (
        ("train", read_annotations.train),
        ("validation", read_annotations.validation),
        ("test", read_annotations.test),
    )
    groups = {name: _by_video(captions) for name, captions in named if captions is not None}
    ids = list(dict.fromkeys(video_id for group in groups.values() for video_id in group))
    located = _locate(Path(videos), ids, read_annotations)
    absent = {video_id: "no such file" for video_id in ids if video_id not in located}
    missing = {
        **absent,
        **{key: reason for group in read_annotations.excluded.values() for key, reason in group.items()},
    }
    total = len(ids) + len(missing) - len(absent)
    problem = f"are not below {videos}" + (" or have no caption" if total > len(ids) else "")
    check_missing_share(missing, missing, total, max_missing, problem)
    splits = {
        name: _build_split(name, group, located, missing)
        for name, group in groups.items()
        if group or name != "train" or needs_train
    }
    excluded_ids = {
        name: (*(key for key in group if key in absent), *read_annotations.excluded.get(name, ()))
        for name, group in groups.items()
    }
    named_splits = (splits.get("train", Split("train", (), ())), splits.get("validation"), splits.get("test"))
    measured = (*(read_annotations.validation or ()), *(read_annotations.test or ()))
    texts = read_annotations.hidden_texts.union(plain_text(caption.text) for caption in measured)
    return Catalog(*named_splits, missing, excluded_ids, read_annotations.understood, texts)


def require_readable(catalog: Catalog, failures: Mapping[str, str], *, max_missing: float) -> Catalog:
    """Return the catalogue without the videos in `failures` (video id -> error); they are added to `excluded`.

    Raises DataError, with videos and errors, if the share of all excluded videos is above `max_missing`, or if a
    split becomes empty. Failures of videos in no split are ignored.
    """
    errors = {video.id: failures[video.id] for video in catalog.videos if video.id in failures}
    if not errors:
        return catalog
    excluded = {**catalog.excluded, **errors}
    check_missing_share(errors, excluded, len(catalog.videos) + len(catalog.excluded), max_missing, "cannot be read")
    splits = {split.name: _readable(split, errors) for split in catalog.splits}
    excluded_ids = {
        split.name: (
            *catalog.excluded_ids.get(split.name, ()),
            *(video.id for video in split.videos if video.id in errors),
        )
        for split in catalog.splits
    }
    return replace(
        catalog,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        excluded=excluded,
        excluded_ids=excluded_ids,
    )


def _readable(split: Split, errors: Mapping[str, str]) -> Split:
    """Return the split without the videos in `errors` and their captions. Raises DataError if none is left."""
    kept = split.without(errors)
    if not kept.videos:
        names = [video.id for video in split.videos]
        raise DataError(f"split {split.name}: none of its videos can be used: {_some(names, errors)}")
    return kept


def _locate(root: Path, ids: Sequence[str], annotations: Annotations) -> dict[str, Video]:
    """Find the files of the videos. Raises DataError for all that are the same segment of the same file."""
    places = {video_id: annotations.segments.get(video_id) or Segment(video_id) for video_id in ids}
    names = {video_id: (place.file, *place.other_names) for video_id, place in places.items()}
    wanted = list(dict.fromkeys(name for choice in names.values() for name in choice))
    paths = locate_videos(root, wanted, tolerant=annotations.tolerant_names)
    problems = Problems()
    located: dict[str, Video] = {}
    owners: dict[tuple[Path, float | None, float | None], str] = {}
    for video_id, place in places.items():
        path = next((paths[name] for name in names[video_id] if name in paths), None)
        if path is None:
            continue
        owner = owners.setdefault((path, place.start, place.end), video_id)
        if owner != video_id:
            what = "file" if place.start is place.end is None else "segment of the file"
            problems.add(f"videos {owner!r} and {video_id!r} are the same {what} {path}; spell its name in one way")
        located[video_id] = Video(video_id, path, place.start, place.end)
    problems.raise_all()
    return located


def check_missing_share(
    errors: Mapping[str, str], excluded: Mapping[str, str], total: int, max_missing: float, problem: str
) -> None:
    """Raise DataError if the share of `excluded` videos of `total` is above `max_missing`; it names `errors`."""
    if len(excluded) <= max_missing * total + 1e-9:  # 0.29 * 100 is below 29
        return
    raise DataError(
        f"{len(errors)} of {total} videos {problem}: {_some(errors, errors)}; fix them, remove them from the "
        f"annotations, or exclude them with data.max_missing={math.ceil(1e4 * len(excluded) / total) / 1e4:g} "
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
    errors: Mapping[str, str],
) -> Split:
    """Return the split with the videos in `videos`. Raises DataError, with some of the `errors`, if it is empty."""
    kept = [video_id for video_id in groups if video_id in videos]
    if not groups:
        raise DataError(f"split {name}: it has no captions")
    if not kept:
        raise DataError(f"split {name}: none of its videos can be used: {_some(groups, errors)}")
    captions = (caption for video_id in kept for caption in groups[video_id])
    return Split(name, (videos[video_id] for video_id in kept), captions)


def _some(video_ids: Collection[str], errors: Mapping[str, str]) -> str:
    """Name a few videos, each with its error."""
    shown = ", ".join(f"{video_id} ({errors.get(video_id, '')})" for video_id in list(video_ids)[:SHOWN])
    return shown + (f" and {len(video_ids) - SHOWN} more" if len(video_ids) > SHOWN else "")


def _hold_out(catalog: Catalog, options: ValidationOptions) -> Catalog:
    """Move training videos to a validation split: captioned ones, or if there are none, others with texts."""
    train = catalog.train
    captioned = {train.videos[row].id for row in np.unique(train.caption_videos[: train.pairs])}
    candidates = [video for video in train.videos if video.id in captioned or not captioned]
    held = choose_held_out({video.id: str(video.path) for video in candidates}, options)
    rest = (video for video in train.videos if video.id not in held)
    own = (caption for caption in train.captions if caption.video_id in held)
    return replace(
        catalog,
        train=Split("train", rest, (caption for caption in train.captions if caption.video_id not in held)),
        validation=Split(
            "validation",
            (video for video in train.videos if video.id in held),
            own if captioned else most_texts(train.captions[train.pairs :], MAX_HELD_OUT, options.seed),
        ),
    )


DEFAULT_SHARE = 0.05

MAX_HELD_OUT = 1000
"""A share holds out at most this many videos: more cost training data and time and do not select better."""


@dataclass(frozen=True)
class ValidationOptions:
    """How many training videos are held out for validation.

    `videos`: a number. `share`: of all, used if `videos` is None; at least 1 and at most `MAX_HELD_OUT` videos.
    `seed`: selects which ones.
    """

    videos: int | None = None
    share: float = DEFAULT_SHARE
    seed: int = 0


def choose_held_out(files: Mapping[str, str], options: ValidationOptions) -> set[str]:
    """Return the ids of the videos to hold out. `files`: the file of every training video, by video id.

    Videos are sorted by the hash of id and seed: a shuffle that depends neither on the order of the annotations nor
    on other videos. Segments of one file are held out together or not at all, so there may be fewer than requested;
    there are more only if every file has more segments than that. Clips of one source in files of their own are not
    recognised. Raises DataError if no training video would remain.
    """
    total = len(files)
    requested = (
        options.videos if options.videos is not None else min(MAX_HELD_OUT, max(1, round(total * options.share)))
    )
    by_file: dict[str, list[str]] = {}
    for video_id in sorted(files, key=lambda name: (hash_of([options.seed, name]), name)):
        by_file.setdefault(files[video_id], []).append(video_id)
    what = "data.validation holds out" if options.videos is None else "data.validation.videos is"
    if len(by_file) < 2:
        raise DataError(
            f"{what} {requested}, but there is only one training file; data.validation=null holds out none"
        )
    if not 0 < requested < total:
        raise DataError(f"{what} {requested}; allowed: 1 to {total - 1}, as there are {total} training videos")
    held: set[str] = set()
    for group in by_file.values():
        if len(held) + len(group) <= requested:
            held.update(group)
    smallest = sorted(by_file.values(), key=len)[0]
    return held or set(smallest)
