"""Subtitles beside videos, as texts with times: what is said while something is seen."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from teachclip.data.formats.own_text import read_own_text
from teachclip.data.formats.problems import Problems
from teachclip.data.formats.subtitles import EXTENSIONS, read_cues
from teachclip.errors import DataError

log = logging.getLogger(__name__)

_LANGUAGE = re.compile(r"\.[A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?\Z")
"""What may stand between the name of a video and the ending: `film.en.vtt`, `film.pt-BR.srt`."""


class Spoken(NamedTuple):
    """One subtitle of a video; `start` and `end` are seconds."""

    video: str
    start: float
    end: float
    text: str


def subtitles_of(files: Mapping[str, Path]) -> list[Spoken]:
    """Return the subtitles that lie beside videos, by name of the video: `film.srt` or `film.en.vtt` of `film.mp4`.

    Files are found whatever the case of their ending. One that cannot be read is excluded, with a warning.
    """
    beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for folder in dict.fromkeys(path.parent for path in files.values()):
        for source in sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS):
            for stem in dict.fromkeys((source.stem, _LANGUAGE.sub("", source.stem))):
                beside[folder, stem].append(source)
    found: list[Spoken] = []
    for name, path in files.items():
        for source in beside.get((path.parent, path.stem), ()):
            found += _read(source, name)
    return found


def _read(source: Path, video: str) -> list[Spoken]:
    problems = Problems()
    try:
        cues = read_cues(source, read_own_text(source).text, problems)
    except DataError as error:
        log.warning("excluded: %s", str(error).splitlines()[0])
        return []
    if problems.count:
        log.warning("%s: %d subtitles cannot be read and are dropped", source, problems.count)
    return [Spoken(video, cue.start, cue.end, cue.text) for cue in cues]


def as_table(subtitles: Sequence[Spoken]) -> str:
    """Return subtitles as a CSV table with the columns video, caption, start, end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "caption", "start", "end"])
    writer.writerows([item.video, item.text, f"{item.start:.3f}", f"{item.end:.3f}"] for item in subtitles)
    return text.getvalue()
