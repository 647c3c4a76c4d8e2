"""One's own data as subtitles: clip.srt or clip.vtt for clip.mp4, each cue a caption of its seconds.

`annotations` is the folder of the files, searched with its sub-folders, or one file; lists are as in `text_files`. A
language may follow the name, as in clip.en.srt. Tags are removed, and cues without text are skipped.

Nothing is lost unseen: a time that cannot be read, a cue that ends before it begins, and text without a time are
problems of the file. That is why no library reads them: pysubs2 and webvtt-py skip such cues silently.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from teachclip.data.annotations.records import Annotations, Segment
from teachclip.data.formats.custom import collect
from teachclip.data.formats.own_tables import OwnTable, Record
from teachclip.data.formats.own_text import read_own_text, split_lines
from teachclip.data.formats.problems import Problems
from teachclip.data.formats.text_files import has_video, ignored_fact, own_files, split_names
from teachclip.errors import DataError

EXTENSIONS = (".srt", ".vtt")
_STAMP = r"(?:([0-9]{1,3}):)?([0-9]{1,2}):([0-9]{2})(?:[.,]([0-9]{1,3}))?"
_TIMES = re.compile(rf"\s*{_STAMP}\s*-->\s*{_STAMP}(?:\s.*)?")
_TAGS = re.compile(r"</?[A-Za-z][^<>]*>|</?>|<[0-9:.]+>|\{\\[^{}]*\}")
_NO_CUE = ("WEBVTT", "NOTE", "STYLE", "REGION")
_LANGUAGE = re.compile(r"(.+)\.[A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?")


class Cue(NamedTuple):
    """One subtitle; `start` and `end` are seconds, `where` is "file: line 7" for messages."""

    where: str
    start: float
    end: float
    text: str


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the subtitles. Caption ids are `video[start-end]:index`. Raises DataError, naming files and lines."""
    if annotations.suffix.lower() in EXTENSIONS and not annotations.is_dir():
        files: dict[str, Path] = {annotations.stem: annotations}
        ignored: list[str] = []
    else:
        files, ignored = own_files(annotations, EXTENSIONS, (train, validation, test))
    problems = Problems()
    videos = _videos(files, problems)
    lists = split_names(list(videos), problems, train, validation, test)
    split_of = {
        name: split
        for split, names in zip(("train", "validation", "test"), lists, strict=True)
        for name in names or ()
    }
    rows: list[Record] = []
    facts: dict[str, None] = {}
    doubts: list[str] = []
    for video, name in videos.items():
        with problems.collected():
            source = read_own_text(files[name])
            facts[source.encoding], doubts = None, [*doubts, *source.doubts]
            cues = read_cues(files[name], source.text, problems)
            if video in split_of:
                rows += [_record(video, cue, split_of[video]) for cue in cues]
    told = [" and ".join(facts), f"{len(videos):,} files of subtitles", *ignored_fact(ignored)]
    headings = {"video": "name of the file", "caption": "text", "start": "start", "end": "end"}
    found = collect(annotations, OwnTable(rows, headings, told, doubts), problems)
    segments = {video: _with_names(segment, videos[segment.file]) for video, segment in found.segments.items()}
    return replace(found, segments=segments)


def _record(video: str, cue: Cue, split: str) -> Record:
    values: dict[str, Any] = {"video": video, "caption": cue.text, "start": cue.start, "end": cue.end, "split": split}
    return Record(cue.where, values)


def _with_names(segment: Segment, name: str) -> Segment:
    """Return a segment whose file has the name of the subtitles, or that name without a language."""
    others = (segment.file,) if segment.file != name else ()
    return Segment(name, segment.start, segment.end, others)


def _videos(files: dict[str, Path], problems: Problems) -> dict[str, str]:
    """Return the name of the subtitles of each video: without the language, unless a video beside it has that too."""
    videos: dict[str, str] = {}
    for name, path in files.items():
        match = None if has_video(path) else _LANGUAGE.fullmatch(name)
        other = videos.setdefault(match[1] if match else name, name)
        if other != name:
            problems.add(f"{files[other]} and {path} are of one video; keep the subtitles of one language")
    return videos


def read_cues(path: Path, text: str, problems: Problems) -> list[Cue]:
    """Return the cues of SRT or WebVTT that have text, in the order of the file; what is wrong goes to `problems`.

    Raises DataError if there is none.
    """
    cues: list[Cue] = []
    before = problems.count
    for number, block in _blocks(text):
        times = [at for at, line in enumerate(block) if "-->" in line]
        if not times:
            if not (block[0].lstrip().startswith(_NO_CUE) or block[0].strip().isdecimal()):
                problems.add(f"{path}: line {number}: text without a time: {block[0].strip()!r:.60}")
            continue
        if times[0] > 1 or (times[0] == 1 and block[0].startswith("NOTE")):
            problems.add(f"{path}: line {number}: text without a time: {block[0].strip()!r:.60}")
        for at, after in zip(times, [*times[1:], len(block)], strict=True):
            lines = block[at + 1 : after]
            if after < len(block) and lines and lines[-1].strip().isdecimal():
                lines = lines[:-1]  # the number of the next cue, without a blank line before it
            with problems.collected():
                start, end = _times(f"{path}: line {number + at}", block[at])
                content = html.unescape(_TAGS.sub("", " ".join(lines)))
                if content.strip():
                    cues.append(Cue(f"{path}: line {number + at}", start, end, " ".join(content.split())))
    if not cues and problems.count == before:
        raise DataError(
            f"{path} has no captions; expected times such as 00:00:01,000 --> 00:00:02,500 above each text"
        )
    return cues


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield lines that follow each other without a blank one, with the number of the first."""
    block: list[str] = []
    lines = split_lines(text)
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _times(where: str, line: str) -> tuple[float, float]:
    """Return the seconds of a line of times. Raises DataError."""
    if not (match := _TIMES.fullmatch(line)):
        raise DataError(f"{where}: times must be such as 00:00:01,000 --> 00:00:02,500, found {line.strip()!r:.60}")
    start, end = (_seconds(*match.groups()[at : at + 4]) for at in (0, 4))
    if start >= end:
        raise DataError(f"{where}: the cue ends at {end:g}, which is not after its start, {start:g}")
    return start, end


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    return float(f"{3600 * int(hours or 0) + 60 * int(minutes) + int(seconds)}.{fraction or 0}")
