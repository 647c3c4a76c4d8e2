"""Texts as people give them: what is refused before anything is encoded. Imports neither torch nor transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from teachclip.data.annotations.files import EXTENSIONS
from teachclip.errors import DataError

VIDEO_ENDINGS = (*EXTENSIONS, ".ogv", ".mts", ".m2ts", ".vob")
"""A text without spaces, or with a folder, that ends so is the path of a video."""


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError, with the index of the text, if one is empty, not a string or the path of a video."""
    for number, text in enumerate(texts):
        if isinstance(text, os.PathLike) or (isinstance(text, str) and _is_video_path(text)):
            raise DataError(
                f"text {number} is {str(text)[:200]!r}, the path of a video: give it as a video (encode_video, "
                "videos=[...], in Sentence Transformers {'video': path})"
            )
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {number} is {text!r}, expected a text that is not empty")


def _is_video_path(text: str) -> bool:
    name = text.strip()
    if not name.lower().endswith(VIDEO_ENDINGS) or "\n" in name:
        return False
    return not any(map(str.isspace, name)) or "/" in name or "\\" in name or os.path.isfile(name)
