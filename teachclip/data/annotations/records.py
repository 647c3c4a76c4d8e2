"""The records of a dataset: captions and segments as readers return them, videos, splits and the catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teachclip.data.formats.tables import repeated
from teachclip.errors import DataError


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
        if "\0" in self.text or any("\ud800" <= character <= "\udfff" for character in self.text):
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


@dataclass(frozen=True)
class Split:
    """The videos and captions of one split. Captions are grouped by video, in the order of the videos.

    Behind them come texts that are of no video; videos may be without captions. Raises DataError for a duplicated
    id, a caption of a video that is not here, or captions in another order.
    """

    name: str
    videos: tuple[Video, ...]
    captions: tuple[Caption, ...]

    def __post_init__(self) -> None:
        for kind, ids in (("video", [video.id for video in self.videos]), ("caption", [c.id for c in self.captions])):
            if len(set(ids)) < len(ids):
                raise DataError(f"split {self.name}: {kind} id {repeated(ids)!r} is duplicated")
        own = self.caption_videos[: self.pairs]
        behind = any(caption.video_id for caption in self.captions[self.pairs :])
        if behind or (own < 0).any() or (np.diff(own) < 0).any():
            raise DataError(f"split {self.name}: captions must be grouped by video, in the order of the videos")

    @cached_property
    def pairs(self) -> int:
        """How many captions are of a video; they come before the texts that are of none."""
        texts = [not caption.video_id for caption in self.captions]
        return texts.index(True) if True in texts else len(texts)

    @cached_property
    def is_paired(self) -> bool:
        """Whether every text is of a video and every video has a caption."""
        return self.pairs == len(self.captions) and len(np.unique(self.caption_videos)) == len(self.videos)

    def require_captions(self, what: str) -> None:
        """Raise DataError unless every text is of a video and every video has a caption; `what` needs that."""
        if not self.is_paired:
            raise DataError(f"the {self.name} split has videos without captions or texts without videos: {what}")

    def without(self, video_ids: Container[str]) -> Split:
        """Return the split without some videos and their captions."""
        captions = tuple(caption for caption in self.captions if caption.video_id not in video_ids)
        return Split(self.name, tuple(video for video in self.videos if video.id not in video_ids), captions)

    def describe(self) -> str:
        """Return how many videos, captions and texts there are, for a log line."""
        parts = [f"{len(self.videos):,} videos"]
        parts += [f"{self.pairs:,} captions"] if self.pairs else ["no captions"]
        texts = len(self.captions) - self.pairs
        return ", ".join(parts + ([f"{texts:,} texts without a video"] if texts else []))

    @cached_property
    def caption_videos(self) -> np.ndarray:
        """The row of each caption's video, -1 of a text that is of none: (captions,) int64."""
        rows = {video.id: row for row, video in enumerate(self.videos)}
        return np.array([rows.get(caption.video_id, -1) for caption in self.captions], dtype=np.int64)

    def provenance(self) -> dict[str, Any]:
        """Return counts and hashes of the ids and texts, in order, for fingerprints, without file contents."""
        return {
            "videos": len(self.videos),
            "captions": len(self.captions),
            "video_ids": hash_of([video.id for video in self.videos]),
            "caption_ids": hash_of([[caption.id, caption.video_id] for caption in self.captions]),
            "texts": hash_of([caption.text for caption in self.captions]),
        }


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
        seen: dict[str, str] = {}
        for split in self.splits:
            for video in split.videos:
                if video.id in seen:
                    both = f"{seen[video.id]} and {split.name}"
                    hint = "" if both.startswith("train") else "; to select on test set data.select_on=test instead"
                    raise DataError(f"video {video.id!r} is in two splits, {both}{hint}")
                seen[video.id] = split.name

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


def hash_of(values: Sequence[Any]) -> str:
    """Return the sha256 of JSON values, in which neighbouring values cannot run together."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
