"""VATEX, the English captions (Wang et al., ICCV 2019): ids are youtubeid_start_end, each the name of a file.

`annotations` is one of these files or the folder that holds it; its content shows which layout it has:

- vatex_data.json (CLIP2Video, Fang et al., arXiv 2106.11097): an object from video id to {"enCap": [sentences]};
- ref_captions.json (TS2-Net, Liu et al., ECCV 2022): an object from video id to a list of sentences;
- VATEX_data.json (TeachCLIP, Tian et al., CVPR 2024): the layout of MSR-VTT, with a list `sentences`.

`train`, `validation`, `test`: beside it train_list.txt, val_list.txt and test_list.txt with one id per line, or for
the layout of MSR-VTT VATEX_train.csv, VATEX_val.csv and VATEX_test.csv. TS2-Net has no validation list: without one
training videos are held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import msrvtt
from teachclip.data.formats.published import (
    annotations_file,
    captions_of,
    check_texts,
    has_file,
    list_file,
    read_ids,
)
from teachclip.data.formats.tables import kind_of, read_object
from teachclip.errors import DataError


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read captions and lists. Caption ids are `video:index`. Raises DataError, naming file and line or video."""
    path = annotations_file(annotations, "vatex_data.json", "ref_captions.json", "VATEX_data.json")
    content = read_object(path)
    as_msrvtt = isinstance(content.get("sentences"), list)
    pattern = "VATEX_{}.csv" if as_msrvtt else "{}_list.txt"
    lists: dict[str, Path | None] = {}
    for split, short, custom in (
        ("train", "train", train),
        ("validation", "val", validation),
        ("test", "test", test),
    ):
        name = pattern.format(short)
        optional = split == "validation" and custom is None and not has_file(annotations, name)
        lists[split] = None if optional else list_file(annotations, name, custom)
    if as_msrvtt:
        return msrvtt.read(annotations=path, **lists)
    captions = {
        split: None if listed is None else captions_of(read_ids(listed), content, path, _english)
        for split, listed in lists.items()
    }
    return Annotations(captions["train"] or [], captions["validation"], captions["test"])


def _english(where: str, value: Any) -> list[str]:
    """Return the captions of an entry: a list, or an object that has them in `enCap`."""
    if isinstance(value, dict):
        if "enCap" not in value:
            raise DataError(f"{where} has no field 'enCap'; found: {', '.join(value) or 'nothing'}")
        return check_texts(f"{where}: enCap", value["enCap"])
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list of captions or an object with 'enCap', found {kind_of(value)}")
    return check_texts(where, value)
