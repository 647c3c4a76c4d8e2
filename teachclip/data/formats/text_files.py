"""Custom data without a table: one text file per video, clip.txt for clip.mp4, each non-blank line a caption.

`annotations` is the folder of the text files, searched with its sub-folders; it may be the video folder. A video is
found by the path of its text file, without .txt. All videos are for training, except those that `validation`
and `test` list; with `train` only the listed ones are. A list has one such path per line.
"""

from __future__ import annotations

from pathlib import Path

from teachclip.data.annotations.records import Annotations, Caption
from teachclip.data.formats.published import read_ids, require_folder
from teachclip.data.formats.tables import read_lines
from teachclip.errors import DataError


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the text files. Caption ids are `video:index`. Raises DataError, naming the file."""
    require_folder(annotations, "one text file per video")
    files = {
        path.relative_to(annotations).with_suffix("").as_posix(): path for path in sorted(annotations.rglob("*.txt"))
    }
    lists = {path.resolve() for path in (train, validation, test) if path is not None}
    files = {name: path for name, path in files.items() if path.resolve() not in lists}
    if not files:
        raise DataError(f"{annotations} has no file with the extension .txt")
    tested, validated = (None if path is None else _listed(path, files) for path in (test, validation))
    held_out = {*(tested or ()), *(validated or ())}
    trained = [name for name in files if name not in held_out] if train is None else _listed(train, files)
    captions = [None if names is None else _captions(names, files) for names in (trained, validated, tested)]
    return Annotations(captions[0] or [], captions[1], captions[2])


def _listed(path: Path, files: dict[str, Path]) -> list[str]:
    """Return the videos of a list. Raises DataError for one without a text file."""
    ids = read_ids(path)
    for where, video in ids:
        if video not in files:
            raise DataError(f"{where}: video {video!r} has no text file {video}.txt")
    return [line.text for line in ids]


def _captions(names: list[str], files: dict[str, Path]) -> list[Caption]:
    """Return the captions of some videos."""
    captions = []
    for name in names:
        lines = read_lines(files[name])
        captions += [Caption(f"{name}:{number}", name, line.text.strip()) for number, line in enumerate(lines)]
    return captions
