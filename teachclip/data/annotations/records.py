"""The records of a dataset: captions and segments as readers return them, videos, splits and the catalogue."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.data.annotations.packed import Packed
from teachclip.data.formats.tables import repeated
from teachclip.errors import DataError
from teachclip.store.row_plan import KeyPlaces, row_keys
from teachclip.store.scratch import blocks

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Caption:
    """One sentence, or one paragraph, about one video. `id` is unique within a split.

    A text that is of no video, such as a query, has the `video_id` "".
    Raises DataError for a text that tokenizers reject: a lone surrogate, as JSON may escape it, or NUL.
    """

    id: str
    video_id: str
    text: str

    def __post_init__(self) -> None:
        if _NOT_TEXT.search(self.text):
            allowed = "Unicode without NUL and lone surrogates"
            raise DataError(
                f"caption {self.id!r} of {self.video_id!r} is not valid text: {self.text!r:.80}; allowed: {allowed}"
            )


@dataclass(frozen=True)
class Segment:
    """The file of a video and the span of it, where the id of the video does not say so.

    `file`: its name. `start`, `end`: seconds; None: from the beginning, to the end. `other_names`: alternative names
    of the file, tried in this order.
    """

    file: str
    start: float | None = None
    end: float | None = None
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Understood:
    """How a file of one's own was understood, for people to confirm: a table of its first rows.

    `title`: the file, its encoding, separator and the like. `header`: what each column is, and what the file calls
    it. `doubts`: lines on what another reader could understand otherwise.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """The captions of each split in the order of the file; None where there is no split.

    `segments`: by video id, for videos whose id is not the name of their file or that are a segment of it.
    `excluded`: by split and video id, why a listed video is not used; these videos count as missing.
    `understood`: how a file of one's own was understood. `tolerant_names`: whether names of videos may be paths of
    another computer, or differ from their files in upper and lower case. `hidden_texts`: captions, as `plain_text`
    returns them, that are measured on but not read here; no text teaches that is one of them.
    """

    train: Sequence[Caption]
    validation: Sequence[Caption] | None = None
    test: Sequence[Caption] | None = None
    segments: Mapping[str, Segment] = field(default_factory=dict)
    excluded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    understood: Understood | None = None
    tolerant_names: bool = False
    hidden_texts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Video:
    """A video file, or the seconds of one from `start` to `end`; None: from its beginning, to its end.

    `id` is unique within a catalogue; several videos may share one file.
    """

    id: str
    path: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, init=False)
class Split:
    """The videos and captions of one split. Captions are grouped by video, in the order of the videos.

    Behind them come texts that are of no video; videos may be without captions. Both may be given as they come, and
    are kept as `Packed`. Raises DataError for a duplicated id, a caption of a video that is not here, or captions in
    another order.
    """

    name: str
    videos: Sequence[Video]
    captions: Sequence[Caption]

    def __init__(self, name: str, videos: Iterable[Video], captions: Iterable[Caption]) -> None:
        kept = {"name": name, "videos": _packed_videos(videos), "captions": _packed_captions(captions)}
        for key, value in kept.items():
            object.__setattr__(self, key, value)
        for kind, records in (("video", self.videos), ("caption", self.captions)):
            if len(KeyPlaces(_id_keys(record.id for record in records)).firsts()) < len(records):
                raise DataError(
                    f"split {self.name}: {kind} id {repeated(record.id for record in records)!r} is duplicated"
                )
        own = self.caption_videos[: self.pairs]
        behind = any(self.captions[row].video_id for row in range(self.pairs, len(self.captions)))
        if behind or any((own[rows] < 0).any() or (_steps(own, rows) < 0).any() for rows in blocks(len(own))):
            raise DataError(f"split {self.name}: captions must be grouped by video, in the order of the videos")

    @cached_property
    def pairs(self) -> int:
        """How many captions are of a video; they come before the texts that are of none."""
        count = len(self.captions)
        return next((row for row, caption in enumerate(self.captions) if not caption.video_id), count)

    @cached_property
    def is_paired(self) -> bool:
        """Whether every text is of a video and every video has a caption."""
        own = self.caption_videos[: self.pairs]
        captioned = min(1, len(own)) + sum(int(np.count_nonzero(_steps(own, rows))) for rows in blocks(len(own)))
        return self.pairs == len(self.captions) and captioned == len(self.videos)

    def require_captions(self, what: str) -> None:
        """Raise DataError unless every text is of a video and every video has a caption; `what` needs that."""
        if not self.is_paired:
            raise DataError(f"the {self.name} split has videos without captions or texts without videos: {what}")

    def without(self, video_ids: Container[str]) -> Split:
        """Return the split without some videos and their captions."""
        captions = (caption for caption in self.captions if caption.video_id not in video_ids)
        return Split(self.name, (video for video in self.videos if video.id not in video_ids), captions)

    def describe(self) -> str:
        """Return how many videos, captions and texts there are, for a log line."""
        parts = [f"{len(self.videos):,} videos"]
        parts += [f"{self.pairs:,} captions"] if self.pairs else ["no captions"]
        texts = len(self.captions) - self.pairs
        return ", ".join(parts + ([f"{texts:,} texts without a video"] if texts else []))

    @cached_property
    def caption_videos(self) -> np.ndarray:
        """The row of each caption's video, -1 of a text that is of none: (captions,) int64."""
        places = KeyPlaces(_id_keys(video.id for video in self.videos))
        return places.find(_id_keys(caption.video_id for caption in self.captions))

    def provenance(self) -> dict[str, Any]:
        """Return counts and hashes of the ids and texts, in order, for fingerprints, without file contents."""
        return {
            "videos": len(self.videos),
            "captions": len(self.captions),
            "video_ids": hash_of(video.id for video in self.videos),
            "caption_ids": hash_of([caption.id, caption.video_id] for caption in self.captions),
            "texts": hash_of(caption.text for caption in self.captions),
        }


def _packed_captions(captions: Iterable[Caption]) -> Packed[Caption]:
    if isinstance(captions, Packed):
        return captions
    return Packed(captions, fields=3, pack=_caption_fields, unpack=Caption)


def _packed_videos(videos: Iterable[Video]) -> Packed[Video]:
    if isinstance(videos, Packed):
        return videos
    return Packed(videos, fields=3, pack=_video_fields, unpack=_video_of)


def _caption_fields(caption: Caption) -> tuple[str, ...]:
    return caption.id, caption.video_id, caption.text


def _video_fields(video: Video) -> tuple[str, ...]:
    return video.id, str(video.path), json.dumps([video.start, video.end])


def _video_of(id: str, path: str, span: str) -> Video:
    return Video(id, Path(path), *json.loads(span))


def _id_keys(ids: Iterable[str]) -> np.ndarray:
    """Return the keys of ids, uint8 (ids, 16)."""
    return row_keys(id.encode("utf-8", "surrogatepass") for id in ids)


def _steps(numbers: np.ndarray, rows: slice) -> np.ndarray:
    """Return the differences of the numbers in a block to the one behind each."""
    return np.diff(numbers[rows.start : rows.stop + 1])


@dataclass(frozen=True)
class Catalog:
    """All splits. No video is in two of them.

    `excluded`: why a video is not used, by its id. `excluded_ids`: the ids of these videos, by the name of their
    split. `understood`: how annotations of one's own were understood. `measured_texts`: the captions, as `plain_text`
    returns them, that the annotations have for validation and test, whether their videos are there or not, and hidden
    ones. Raises DataError for a video in two splits.
    """

    train: Split
    validation: Split | None = None
    test: Split | None = None
    excluded: Mapping[str, str] = field(default_factory=dict)
    excluded_ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    understood: Understood | None = None
    measured_texts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        before: list[tuple[str, KeyPlaces]] = []
        for split in self.splits:
            keys = _id_keys(video.id for video in split.videos)
            for name, places in before:
                again = next((row for row, place in enumerate(places.find(keys)) if place >= 0), None)
                if again is not None:
                    both = f"{name} and {split.name}"
                    hint = "" if both.startswith("train") else "; to select on test set data.select_on=test instead"
                    raise DataError(f"video {split.videos[again].id!r} is in two splits, {both}{hint}")
            before.append((split.name, KeyPlaces(keys)))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The existing splits, in the order train, validation, test."""
        return tuple(split for split in (self.train, self.validation, self.test) if split is not None)

    @property
    def videos(self) -> tuple[Video, ...]:
        """All videos, in the order of the splits."""
        return tuple(video for split in self.splits for video in split.videos)

    @property
    def incomplete_splits(self) -> dict[str, str]:
        """How many videos are used of each split with excluded ones, such as "8,973 of 9,000", by its name."""
        used = {split.name: len(split.videos) for split in self.splits}
        return {
            name: f"{used[name]:,} of {used[name] + len(ids):,}" for name, ids in self.excluded_ids.items() if ids
        }


def hash_of(values: Iterable[Any]) -> str:
    """Return the sha256 of JSON values, as a list of them: neighbouring values cannot run together."""
    digest, encoder, before = hashlib.sha256(b"["), json.JSONEncoder(ensure_ascii=False), b""
    for value in values:
        digest.update(before + encoder.encode(value).encode("utf-8", "surrogatepass"))
        before = b", "
    digest.update(b"]")
    return digest.hexdigest()
