"""Texts that files bring along: names of files and folders, and tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from teachclip.data.video.tags import read_tags

_CAMERA = re.compile(
    r"(?:IMG|VID|MVI|MOV|DSC[FN]?|GOPR|GH|GX|PXL|DJI|CLIP|VIDEO|FILM|MOVIE|UNTITLED|FINAL|COPY|PART)", re.I
)
"""Words that cameras and programs give to files, or that say nothing of what is seen."""

_WORD = re.compile(r"[^\W\d_]{2,}", re.UNICODE)


def text_of_name(name: str) -> str:
    """Return the words of the name of a file or folder as a text, "" if it has none that says something.

    `Beach_holiday-2019 (2).mp4` is "beach holiday"; `IMG_0042.MP4` is "". Words of all small and capital letters
    together are taken apart: `SunsetOverSea` is "sunset over sea".
    """
    stem = re.sub(r"\.\w{2,4}$", "", name)
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = [word for word in _WORD.findall(apart) if not _CAMERA.fullmatch(word)]
    return " ".join(words).lower() if any(len(word) > 2 for word in words) else ""


def texts_of_files(root: Path, files: Mapping[str, Path], *, tags: bool = True) -> list[str]:
    """Return the texts of the names of files below `root`, of the folders between, and of their tags, each once."""
    found: list[str] = []
    for name, path in files.items():
        parts = PurePath(name).parts
        found += [text_of_name(part) for part in parts]
        found += read_tags(path) if tags else []
    return distinct(found)


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts that are not empty, each once whatever its case, in their order."""
    seen: dict[str, str] = {}
    for text in texts:
        if text.strip():
            seen.setdefault(" ".join(text.casefold().split()), text.strip())
    return list(seen.values())
