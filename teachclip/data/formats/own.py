"""Own data: one CSV file with the columns `video,caption` and, if you like, `split`.

`video` is the name of a file, with or without its extension, or its path below the video folder. `split` is train,
validation or test; without the column every row is for training. A video may have any number of rows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from teachclip.data.catalog import Annotations, Caption
from teachclip.data.formats.tables import read_table
from teachclip.errors import DataError

SPLITS = ("train", "validation", "test")


def read(*, annotations: Path, train: Path | None = None, test: Path | None = None) -> Annotations:
    """Read a CSV file. Caption ids are `video:index`, counted per video. Raises DataError, naming file and line."""
    if train is not None or test is not None:
        raise DataError(f"{annotations}: this format takes no list of train or test videos; add a column 'split'")
    captions: dict[str, list[Caption]] = {split: [] for split in SPLITS}
    numbers: Counter[str] = Counter()
    homes: dict[str, str] = {}
    for row in read_table(annotations, ["video", "caption"], ["split"]):
        video, split = row.values["video"], row.values.get("split", "train")
        if split not in SPLITS:
            raise DataError(f"{row.where}: 'split' is {split!r}; allowed: {', '.join(SPLITS)}")
        if homes.setdefault(video, split) != split:
            raise DataError(f"{row.where}: video {video!r} is in split {split}, but in {homes[video]} above")
        captions[split].append(Caption(f"{video}:{numbers[video]}", video, row.values["caption"]))
        numbers[video] += 1
    if not captions["train"]:
        raise DataError(f"{annotations}: no row is in split train")
    return Annotations(captions["train"], captions["validation"] or None, captions["test"] or None)
