"""MSR-VTT as it was published (Xu et al., CVPR 2016), and the train, validation and test lists of later work.

- `annotations`: MSRVTT_data.json, or the folder that holds it: an object with `videos` (`video_id`, `split`) and
  `sentences` (`video_id`, `caption`), in any order. `videos` may be absent.
- `train`: a CSV with the column `video_id`: MSRVTT_train.9k.csv, MSRVTT_train.7k.csv (CLIP4Clip, Luo et al.,
  Neurocomputing 2022) or MSRVTT_train.full.csv (CLIP2Video, Fang et al., arXiv 2106.11097).
- `validation`, `test`: a CSV with the columns `video_id,sentence` and any number of rows per video
  (MSRVTT_JSFUSION_test.csv, also called 1k-A; TeachCLIP's MSRVTT_full_split_val.csv and MSRVTT_full_split_test.csv),
  or with `video_id` alone, which takes all captions of the JSON (MSRVTT_test.full.csv).

Without `train` the splits are those of the JSON itself: train, validate and test (6,513, 497 and 2,990 videos), but
for those that a list gives. A list of training videos comes without a validation split unless one is given: published
runs on the 9k videos selected on test.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Any

from teachclip.data.annotations.records import Annotations, Caption
from teachclip.data.formats.published import annotations_file
from teachclip.data.formats.tables import read_entries, read_object, read_table
from teachclip.errors import DataError


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the annotations. Caption ids are `video:index`, counted per video in the order of the file.

    Raises DataError, naming file and line or entry, for broken files, empty captions, captions of a video that the
    file does not list, listed videos without caption, and duplicated videos.
    """
    path = annotations_file(annotations, "MSRVTT_data.json")
    content = read_object(path)
    splits = _video_splits(path, content)
    captions = _sentences(path, content, splits)
    selected: dict[str, list[Caption]] = {}
    for name, listed in (("train", train), ("validate", validation), ("test", test)):
        if listed is not None:
            selected[name] = _listed(listed, captions)
        elif train is None:
            videos = [video for video, split in (splits or {}).items() if split == name]
            selected[name] = [caption for video in videos for caption in _require(str(path), video, captions)]
    if not selected["train"]:
        raise DataError(f"{path}: no entry of 'videos' has split 'train'; give a CSV of the training video_id's")
    return Annotations(selected["train"], selected.get("validate") or None, selected.get("test") or None)


def _video_splits(path: Path, content: dict[str, Any]) -> dict[str, str] | None:
    """Return the split of every video, "" where there is none; None if the file does not list videos."""
    if "videos" not in content:
        return None
    splits: dict[str, str] = {}
    for number, entry in enumerate(read_entries(path, content, "videos", ["video_id"])):
        if entry["video_id"] in splits:
            raise DataError(f"{path}: videos[{number}]: video_id {entry['video_id']!r} is duplicated")
        splits[entry["video_id"]] = str(entry.get("split", ""))
    return splits


def _sentences(path: Path, content: dict[str, Any], known: Container[str] | None) -> dict[str, list[Caption]]:
    """Return the captions of every video, in the order of the file."""
    captions: dict[str, list[Caption]] = defaultdict(list)
    for number, entry in enumerate(read_entries(path, content, "sentences", ["video_id", "caption"])):
        video = entry["video_id"]
        if known is not None and video not in known:
            raise DataError(f"{path}: sentences[{number}] is about {video!r}, which 'videos' does not list")
        captions[video].append(Caption(f"{video}:{len(captions[video])}", video, entry["caption"].strip()))
    return captions


def _listed(path: Path, captions: dict[str, list[Caption]]) -> list[Caption]:
    """Return the captions of the videos in a CSV, or those of its column `sentence` if it has one."""
    rows = read_table(path, ["video_id"], ["sentence"])
    if "sentence" not in rows[0].values:
        seen: set[str] = set()
        for row in rows:
            video = row.values["video_id"]
            if video in seen:
                raise DataError(f"{row.where}: video_id {video!r} is duplicated")
            seen.add(video)
        return [caption for row in rows for caption in _require(row.where, row.values["video_id"], captions)]
    listed = []
    numbers: Counter[str] = Counter()
    for row in rows:
        video, text = row.values["video_id"], row.values["sentence"]
        if not text:
            raise DataError(f"{row.where}: 'sentence' of {video!r} is empty")
        listed.append(Caption(f"{video}:{numbers[video]}", video, text))
        numbers[video] += 1
    return listed


def _require(where: str, video: str, captions: dict[str, list[Caption]]) -> list[Caption]:
    """Return the captions of a video. Raises DataError if it has none or an empty one."""
    captions_of_video = captions.get(video, [])
    if not captions_of_video:
        raise DataError(f"{where}: video {video!r} has no caption in the annotations")
    for caption in captions_of_video:
        if not caption.text:
            raise DataError(f"{where}: caption {caption.id!r} of the annotations is empty")
    return captions_of_video
