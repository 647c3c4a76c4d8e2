"""Which training videos are held out for validation, where the data brings no validation split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from teachclip.errors import DataError

DEFAULT_SHARE = 0.05
MOST = 1000
"""No share holds out more videos than this: more would cost training data and time, and choose no better."""


@dataclass(frozen=True)
class ValidationOptions:
    """How much is held out: a number of `videos`, else a `share` of them (1 to `MOST`). `seed` picks which."""

    videos: int | None = None
    share: float = DEFAULT_SHARE
    seed: int = 0


def choose_held_out(files: Mapping[str, str], options: ValidationOptions) -> set[str]:
    """Return the ids of the videos to hold out. `files`: the file of every training video, by video id.

    Videos come in the order of their id hashed with the seed: a shuffle that neither the order of the annotations nor
    other videos change. Parts of one file are held out together or not at all, so that there may be fewer than asked
    for; there are more only if every file has more parts than that. Clips that were cut from one source into files of
    their own are not known to belong together. Raises DataError if nothing would be left to train on.
    """
    total = len(files)
    asked = options.videos if options.videos is not None else min(MOST, max(1, round(total * options.share)))
    parts: dict[str, list[str]] = {}
    for video_id in sorted(files, key=lambda name: (_hash([options.seed, name]), name)):
        parts.setdefault(files[video_id], []).append(video_id)
    what = "data.validation holds out" if options.videos is None else "data.validation.videos is"
    if len(parts) < 2:
        raise DataError(f"{what} {asked}, but there is one training file; data.validation=null holds out none")
    if not 0 < asked < total:
        raise DataError(f"{what} {asked}; allowed: 1 to {total - 1}, as there are {total} training videos")
    held: set[str] = set()
    for group in parts.values():
        if len(held) + len(group) <= asked:
            held.update(group)
    smallest = sorted(parts.values(), key=len)[0]
    return held or set(smallest)


def _hash(values: list[int | str]) -> str:
    """Return the sha256 of values in JSON, which keeps them apart."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
