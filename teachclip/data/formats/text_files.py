"""One's own data without a table: one text file per video, clip.txt for clip.mp4, each non-blank line a caption.

`annotations` is the folder of the text files, searched with its sub-folders; it may be the video folder. A video is
found by the path of its text file, without .txt. All videos are for training, except those that `validation`
and `test` list; with `train` only the listed ones are. A list has one such path per line. A README or licence without
a video beside it is no caption.

All problems of the files are in one DataError, and what was understood is in `Annotations.understood`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from teachclip.data.annotations.files import EXTENSIONS
from teachclip.data.annotations.own_names import is_about, is_junk
from teachclip.data.annotations.records import Annotations, Caption, Understood
from teachclip.data.formats.own_text import own_lines
from teachclip.data.formats.own_values import SHOWN_ROWS, video_name
from teachclip.data.formats.problems import Problems
from teachclip.data.formats.published import check_ids, require_folder
from teachclip.data.formats.tables import Line
from teachclip.errors import DataError


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the text files. Caption ids are `video:index`. Raises DataError, naming the files."""
    files, ignored = own_files(annotations, (".txt",), (train, validation, test))
    problems = Problems()
    splits = split_names(list(files), problems, train, validation, test)
    captions: dict[str, list[Caption]] = {}
    encodings: dict[str, None] = {}
    doubts: list[str] = []
    for name in dict.fromkeys(name for names in splits if names is not None for name in names):
        with problems.collected():
            lines, source = own_lines(files[name])
            captions[name] = [Caption(f"{name}:{at}", name, line.text) for at, line in enumerate(lines)]
            encodings[source.encoding] = None
            doubts += source.doubts
    problems.raise_all()
    found = [None if names is None else [text for name in names for text in captions[name]] for names in splits]
    shown = [(text.video_id, text.text) for part in found for text in (part or ())[:SHOWN_ROWS]][:SHOWN_ROWS]
    counts = f"{len(captions):,} text files, {sum(map(len, captions.values())):,} captions"
    facts = [" and ".join(encodings), counts, *ignored_fact(ignored)]
    understood = Understood(
        f"{annotations.name}, as it was understood: {'; '.join(facts)}",
        ("video (name of the file)", "caption (a line)"),
        tuple(shown),
        tuple(doubts),
    )
    return Annotations(found[0] or [], found[1], found[2], understood=understood, tolerant_names=True)


def own_files(
    folder: Path, extensions: Sequence[str], lists: Sequence[Path | None] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a folder with these extensions by their path without extension, and which are ignored.

    Ignored are the `lists`, what is no data, and a README or licence that has no video beside it. Raises DataError if
    no file remains, or if two of them are of one video.
    """
    require_folder(folder, f"one {extensions[0]} file per video")
    listed = {path.resolve() for path in lists if path is not None}
    files: dict[str, Path] = {}
    ignored: list[str] = []
    problems = Problems()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in extensions or path.resolve() in listed or path.is_dir():
            continue
        if any(map(is_junk, relative.parts)) or (is_about(path.stem) and not has_video(path)):
            ignored.append(relative.as_posix())
            continue
        other = files.setdefault(relative.with_suffix("").as_posix(), path)
        if other != path:
            problems.add(f"{other} and {path} are of one video; remove one of them")
    problems.raise_all()
    if not files:
        more = f"; ignored: {', '.join(ignored[:SHOWN_ROWS])}" if ignored else ""
        raise DataError(f"{folder} has no file with the extension {' or '.join(extensions)}{more}")
    return files, ignored


def ignored_fact(ignored: Sequence[str]) -> list[str]:
    """Return a fact that names some of the ignored files; none if there are none."""
    more = f" and {len(ignored) - SHOWN_ROWS:,} more" if len(ignored) > SHOWN_ROWS else ""
    return [f"ignored: {', '.join(ignored[:SHOWN_ROWS])}{more}"] if ignored else []


def has_video(path: Path) -> bool:
    """Return whether a video lies beside a file, with the same name but for the extension."""
    return any(path.with_suffix(extension).exists() for extension in EXTENSIONS)


def split_names(
    names: Sequence[str], problems: Problems, train: Path | None, validation: Path | None, test: Path | None
) -> tuple[list[str], list[str] | None, list[str] | None]:
    """Return the videos of train, validation and test: those in the lists, None without one; train has the others.

    A list may name videos with their extension. Videos without a file go to `problems`.
    """
    validated, tested = (None if path is None else _listed(path, names, problems) for path in (validation, test))
    if train is not None:
        return _listed(train, names, problems), validated, tested
    held_out = {*(tested or ()), *(validated or ())}
    return [name for name in names if name not in held_out], validated, tested


def _listed(path: Path, names: Sequence[str], problems: Problems) -> list[str]:
    """Return the videos of a list; what is wrong with it goes to `problems`."""
    known, found = set(names), []
    with problems.collected():
        lines = [Line(where, _without_extension(video_name(text), known)) for where, text in own_lines(path)[0]]
        for where, video in check_ids(lines):
            if video in known:
                found.append(video)
            else:
                problems.add(f"{where}: video {video!r} has no file of captions such as {video}.txt")
    return found


def _without_extension(name: str, known: set[str]) -> str:
    return name.rpartition(".")[0] if name not in known and name.lower().endswith(EXTENSIONS) else name
