"""Examples as queries: a video, a moment of one, a picture."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from teachclip.data.annotations.files import EXTENSIONS
from teachclip.data.formats.own_values import seconds
from teachclip.errors import DataError

if TYPE_CHECKING:
    from teachclip.search.index import VideoIndex
    from teachclip.search.results import Part

_ROW = re.compile(r"([0-9a-f]{16})(?:-(\d+))?")


def split_moment(example: str) -> tuple[str, float | None]:
    """Return the path and the seconds of `film.mp4@0:42`, or the path and None. Raises DataError for another time."""
    path, at, moment = example.rpartition("@")
    if not at or os.path.exists(example) or not re.fullmatch(r"[\d:.,]+", moment):
        return example, None
    return path, seconds(moment, f"example {example!r}", "the time", decimal_commas=True)


def vector_of(index: VideoIndex, example: Any) -> np.ndarray:
    """Return the vector of an example, float32 (dim,), L2-normalised.

    `example`: the id of a video or row of the index; the path of a video or picture, in the index or not, perhaps
    with a moment (`film.mp4@0:42`, which means the part around it); or what `encode_video` takes as one video.
    Vectors that are in the index are not computed again. Raises DataError for other texts, VideoError for files that
    cannot be read.
    """
    if not isinstance(example, str | os.PathLike):
        return _encoded(index, example)
    name, moment = split_moment(os.fspath(example))
    if match := _ROW.fullmatch(name):
        vectors = index.vectors([match[1]])
        chosen = vectors if match[2] is None else {row: vector for row, vector in vectors.items() if row == name}
        if not chosen:
            raise DataError(f"{index.path}: has no row {name!r}")
        return _mean(list(chosen.values()))
    path = os.path.abspath(os.path.expanduser(name))
    is_file = os.path.isfile(path)
    try:
        video = index.video(path if is_file else name)  # a file that is there is not another one of the same name
    except DataError as error:
        if not is_file:
            raise DataError(f"example {name!r}: {error}") from None
        return _outside(index, Path(path), moment)
    vectors = index.vectors([video.id])
    if moment is None:
        return _mean(list(vectors.values()))
    if moment > video.length:
        raise DataError(f"example {name!r} is {video.length:.1f} seconds long; there is no second {moment:g}")
    parts = index.parts(video.id)
    nearest = min(parts, key=lambda part: _distance(part, moment))
    return _mean([vectors[part.id] for part in parts if (part.start, part.end) == (nearest.start, nearest.end)])


def _distance(part: Part, moment: float) -> tuple[float, float]:
    """Order parts by how far a moment is outside of them, then from their middle."""
    return max(part.start - moment, moment - part.end, 0.0), abs((part.start + part.end) / 2 - moment)


def _outside(index: VideoIndex, path: Path, moment: float | None) -> np.ndarray:
    """Encode a file that is not in the index."""
    if path.suffix.lower() not in EXTENSIONS or path.suffix.lower() == ".gif":
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as picture:
                if not getattr(picture, "is_animated", False):
                    return _encoded(index, [picture.convert("RGB")])
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{path}: is neither a video nor a picture that can be read") from error
    if moment is None:
        return _encoded(index, str(path))
    half = index.settings.cutting.window / 2
    return _encoded(index, (str(path), max(0.0, moment - half), moment + half))


def _encoded(index: VideoIndex, video: Any) -> np.ndarray:
    return index.queries().videos([video])[0]


def _mean(vectors: list[np.ndarray]) -> np.ndarray:
    mean = np.mean(vectors, axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
