"""What a video file says of itself: title, comment, description and keywords in its container."""

from __future__ import annotations

from pathlib import Path

import av

NAMES = ("title", "description", "synopsis", "comment", "keywords", "genre", "show", "episode_id")
"""The tags that may speak of what is seen."""

LONGEST = 200
"""Characters of a tag; longer ones are articles or code."""


def read_tags(path: Path) -> list[str]:
    """Return the tags of a file that are texts, each once; of a file that cannot be opened none."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
    except (av.error.FFmpegError, OSError, ValueError):
        return []
    found = [" ".join(tags[name].split()) for name in NAMES if name in tags]
    return [text for text in dict.fromkeys(found) if text and len(text) <= LONGEST]


def read_seconds(path: Path) -> float | None:
    """Return the length that the header of a file declares, in seconds; None if it cannot be read or says none."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return None if container.duration is None else container.duration / av.time_base
    except (av.error.FFmpegError, OSError, ValueError):
        return None
