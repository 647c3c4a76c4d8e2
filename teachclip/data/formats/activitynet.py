"""ActivityNet Captions (Krishna et al., ICCV 2017) for paragraph retrieval, as CLIP4Clip and TeachCLIP use it.

`annotations` is the folder that holds train.json and val_1.json (objects from "v_" and the YouTube id to `duration`,
seconds, and `sentences`) and train_ids.json and val_ids.json (lists of such ids); `train`, `validation` and `test`
may give other lists. Ids and file names may have the "v_" or not.

The sentences of a video, joined by spaces, form its only caption, and the video is the file from 0 to ceil(duration)
seconds. val_1 is the test split. Published code selects on it too: here videos are held out of the training videos
instead, unless the recipe sets `data.select_on=test`. As published, listed videos without sentences are not used;
they count as missing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from teachclip.data.annotations.records import Annotations, Caption, Segment
from teachclip.data.formats.published import captions_of, check_ids, check_texts, list_file, require_folder
from teachclip.data.formats.tables import Line, kind_of, read_json, read_object
from teachclip.errors import DataError

FILES = ("train.json", "val_1.json")
YOUTUBE_ID = 11
"""Length of a YouTube id: one that itself begins with "v_" keeps it."""


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read paragraphs and lists. Video ids have no "v_". Raises DataError, naming file, video and field."""
    require_folder(annotations, "train.json and train_ids.json")
    entries: dict[str, _Entry] = {}
    for name in FILES:
        path = list_file(annotations, name, None)
        for key, value in read_object(path).items():
            entry = _Entry(f"{path}: {key!r}", value)
            if (other := entries.setdefault(_youtube_id(key), entry)) is not entry:
                raise DataError(f"{entry.where} is the same video as {other.where}")
    segments: dict[str, Segment] = {}
    excluded: dict[str, dict[str, str]] = {}

    def split(name: str, path: Path, source: str) -> list[Caption]:
        out = excluded.setdefault(name, {})
        ids = _read_ids(path)
        captions = captions_of(ids, entries, annotations / source, lambda _, entry: [_paragraph(*entry)], out)
        videos = [caption.video_id for caption in captions]
        segments.update((video, _segment(video, *entries[video])) for video in videos)
        return captions

    trained = split("train", list_file(annotations, "train_ids.json", train), FILES[0])
    tested = split("test", list_file(annotations, "val_ids.json", test), FILES[1])
    validated = None if validation is None else split("validation", validation, FILES[0])
    return Annotations(trained, validated, tested, segments, excluded)


class _Entry(NamedTuple):
    where: str
    value: Any


def _read_ids(path: Path) -> list[Line]:
    """Return the ids of a JSON list, without "v_"."""
    ids = read_json(path)
    if not isinstance(ids, list) or not ids:
        raise DataError(f"{path} must hold a list of video ids, found {kind_of(ids)}")
    for number, name in enumerate(ids):
        if not isinstance(name, str):
            raise DataError(f"{path}: entry [{number}] must be a video id, found {kind_of(name)}")
    return check_ids(Line(f"{path}: entry [{number}]", _youtube_id(name)) for number, name in enumerate(ids))


def _youtube_id(name: str) -> str:
    return name[2:] if name.startswith("v_") and len(name) != YOUTUBE_ID else name


def _paragraph(where: str, value: Any) -> str:
    """Return the caption of an entry."""
    if not isinstance(value, dict) or "sentences" not in value:
        raise DataError(f"{where} must be an object with 'sentences' and 'duration', found {kind_of(value)}")
    return " ".join(check_texts(f"{where}: sentences", value["sentences"]))


def _segment(video: str, where: str, value: dict[str, Any]) -> Segment:
    """Return the annotated segment of a file."""
    seconds = value.get("duration")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise DataError(f"{where}: duration must be a number of seconds above 0, found {kind_of(seconds)}")
    return Segment(f"v_{video}", None, float(math.ceil(seconds)), (video,))
