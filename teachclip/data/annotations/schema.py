"""What a reader of annotations returns: captions, and where their videos are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from teachclip.errors import DataError


@dataclass(frozen=True)
class Caption:
    """One sentence, or one paragraph, about one video. `id` is unique within a split.

    Raises DataError for a text that no tokenizer takes: half of a surrogate pair, as JSON may escape it, or NUL.
    """

    id: str
    video_id: str
    text: str

    def __post_init__(self) -> None:
        if "\0" in self.text or any("\ud800" <= letter <= "\udfff" for letter in self.text):
            allowed = "Unicode without NUL and halves of surrogate pairs"
            raise DataError(
                f"caption {self.id!r} of {self.video_id!r} is no text: {self.text!r:.80}; allowed: {allowed}"
            )


@dataclass(frozen=True)
class Segment:
    """Where a video is, if its id does not say it: the name of its file, and the part of it in seconds.

    `start`, `end`: seconds of the file; None: from its beginning, to its end. `other_names`: what the file may be
    called instead, tried in this order.
    """

    file: str
    start: float | None = None
    end: float | None = None
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """The captions of each split in the order of the file; None where there is no split.

    `segments`: by video id, where the videos are whose id is not the name of their file, or that are a part of it.
    `excluded`: by split, why listed videos are not used, by their id; they count as missing.
    """

    train: Sequence[Caption]
    validation: Sequence[Caption] | None = None
    test: Sequence[Caption] | None = None
    segments: Mapping[str, Segment] = field(default_factory=dict)
    excluded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
