"""Videos without captions and texts without videos, as parts of a catalogue."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from teachclip.data.annotations.files import UNREADABLE, find_videos
from teachclip.data.annotations.records import Caption, Catalog, Split, Video, hash_of
from teachclip.data.formats.own_text import own_lines
from teachclip.errors import DataError

log = logging.getLogger(__name__)


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file, one per line: each once, without empty lines. Raises DataError if there is none."""
    lines, _ = own_lines(path)
    found = list(dict.fromkeys(" ".join(text.split()) for _, text in lines))
    found = [text for text in found if text]
    if not found:
        raise DataError(f"{path} holds no texts; expected one per line")
    return found


def plain_text(text: str) -> str:
    """Return a text as it is compared with others: in lower case, with single spaces."""
    return " ".join(text.casefold().split())


def as_captions(texts: Sequence[str]) -> tuple[Caption, ...]:
    """Return texts as captions that are of no video."""
    return tuple(Caption(f"text:{number}", "", text) for number, text in enumerate(texts))


def most_texts(texts: Sequence[Caption], most: int, seed: int) -> tuple[Caption, ...]:
    """Return the texts, or `most` of them if there are more: chosen by the hash of text and seed, in their order."""
    if len(texts) <= most:
        return tuple(texts)
    chosen = {caption.id for caption in sorted(texts, key=lambda caption: hash_of([seed, caption.text]))[:most]}
    return tuple(caption for caption in texts if caption.id in chosen)


def join_uncaptioned(catalog: Catalog, texts: Path | None, folder: Path | None) -> Catalog:
    """Return the catalogue with the texts of a file and the videos of a folder in its training split.

    A video that is in a split already, by its path, is not added again, nor is a text that is a caption of
    validation or test. Raises DataError if nothing is left to train on.
    """
    train = catalog.train
    videos, captions = list(train.videos), list(train.captions)
    if folder is not None:
        used = {os.path.realpath(video.path) for video in catalog.videos}
        names = {video.id for video in catalog.videos}
        for name, path in find_videos(Path(folder)).items():
            if os.path.realpath(path) not in used:
                videos.append(Video(name if name not in names else f"uncaptioned/{name}", path))
    if texts is not None:
        held_out = held_out_texts(catalog)
        found = read_texts(Path(texts))
        kept = [text for text in found if plain_text(text) not in held_out]
        if len(kept) < len(found):
            log.warning("excluded %d of %d texts: they are in validation or test", len(found) - len(kept), len(found))
        captions += as_captions(kept)
    if not videos or not captions:
        what = "video" if not videos else "text"
        raise DataError(f"there is no {what} to train on that is not in validation or test")
    return replace(catalog, train=Split("train", tuple(videos), tuple(captions)))


def held_out_texts(catalog: Catalog) -> frozenset[str]:
    """Return the captions of validation and test, as `plain_text` returns them: nothing is taught on them.

    Texts without a video do not count: without captions they are the same ones in all splits.
    """
    measured = (split for split in (catalog.validation, catalog.test) if split is not None)
    captions = (caption for split in measured for caption in split.captions if caption.video_id)
    return catalog.measured_texts.union(plain_text(caption.text) for caption in captions)


def without_copies(catalog: Catalog, facts: Mapping[str, Mapping[str, Any]]) -> Catalog:
    """Return the catalogue without uncaptioned training videos whose files are those of validation or test.

    `facts`: of `file_facts`. Raises DataError if no video is left to train on.
    """
    train = catalog.train
    captioned = {caption.video_id for caption in train.captions}
    held_out = {
        facts[video.id]["sha256"] for split in catalog.splits if split is not train for video in split.videos
    } - {UNREADABLE}
    copies = {
        video.id for video in train.videos if video.id not in captioned and facts[video.id]["sha256"] in held_out
    }
    if not copies:
        return catalog
    log.warning("excluded %d videos without captions: they are in validation or test", len(copies))
    kept = tuple(video for video in train.videos if video.id not in copies)
    if not kept:
        raise DataError("every video without captions is in validation or test too: none is left to train on")
    return replace(catalog, train=Split("train", kept, train.captions))
