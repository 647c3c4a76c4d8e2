"""LSMDC (Rohrbach et al., IJCV 2017) with the test set of the 2016 challenge, as CLIP4Clip and X-Pool use it.

`annotations` is the folder that holds LSMDC16_annos_training.csv, LSMDC16_annos_val.csv and
LSMDC16_challenge_1000_publictect.csv (so spelled); `train`, `validation` and `test` may give other files of this
layout: no header, six columns with tabs between them, of which the first (clip id) and the sixth (sentence) are used.

A clip may stand in several lines, each of which is a caption of it. Clips are files of the name of their id, anywhere
below the video folder.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from teachclip.data.annotations.records import Annotations, Caption
from teachclip.data.formats.published import list_file, require_folder
from teachclip.data.formats.tables import read_lines
from teachclip.errors import DataError

COLUMNS = "clip_id, start_aligned, end_aligned, start_extracted, end_extracted, sentence"


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the three files. Caption ids are `clip:index`. Raises DataError, naming file and line."""
    require_folder(annotations, "LSMDC16_annos_training.csv")
    return Annotations(
        _read_file(list_file(annotations, "LSMDC16_annos_training.csv", train)),
        _read_file(list_file(annotations, "LSMDC16_annos_val.csv", validation)),
        _read_file(list_file(annotations, "LSMDC16_challenge_1000_publictect.csv", test)),
    )


def _read_file(path: Path) -> list[Caption]:
    """Return the captions of one file, in its order."""
    captions = []
    numbers: Counter[str] = Counter()
    for where, text in read_lines(path):
        values = [value.strip() for value in text.split("\t")]  # quotes are part of a sentence
        if len(values) != 6:
            raise DataError(f"{where} has {len(values)} columns; tabs must separate six: {COLUMNS}")
        clip, sentence = values[0], values[-1]
        if not clip or not sentence:
            raise DataError(f"{where}: {'sentence' if clip else 'clip_id'} is empty")
        captions.append(Caption(f"{clip}:{numbers[clip]}", clip, sentence))
        numbers[clip] += 1
    return captions
