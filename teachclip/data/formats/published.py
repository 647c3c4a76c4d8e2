"""What the readers of published data sets share: files under their published names, lists of ids, captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachclip.data.annotations.records import Caption
from teachclip.data.formats.tables import Line, kind_of, read_lines
from teachclip.errors import DataError

MAX_NAMED = 10
"""How many files of a folder a message names."""


def annotations_file(annotations: Path, *names: str) -> Path:
    """Return `annotations` itself if it is not a folder, else the file in it with one of the published `names`.

    Raises DataError, with the files of the folder, if it has none of them or several.
    """
    if not annotations.is_dir():
        return annotations
    held = _files(annotations)
    present = [name for name in names if name in held]
    if len(present) > 1:
        raise DataError(f"{annotations} has {' and '.join(present)}; set data.annotations to one of them")
    return annotations / present[0] if present else _published(annotations, " or ".join(names), held)


def require_folder(annotations: Path, names: str) -> None:
    """Raise DataError unless `annotations` is a folder; `names` describes its files."""
    if not annotations.is_dir():
        problem = "is a file" if annotations.exists() else "does not exist"
        raise DataError(f"{annotations} {problem}; give the folder that holds {names}")


def list_file(annotations: Path, name: str, custom: Path | None) -> Path:
    """Return the list `custom` unless it is None, else the published one called `name`, beside or in `annotations`.

    Raises DataError, with the files of the folder, if there is no such file.
    """
    folder = _folder(annotations)
    held = _files(folder) if custom is None else [name]
    return custom or (folder / name if name in held else _published(folder, name, held))


def has_file(annotations: Path, name: str) -> bool:
    """Return whether there is a file called `name` beside or in `annotations`."""
    return name in _files(_folder(annotations))


def _folder(annotations: Path) -> Path:
    return annotations if annotations.is_dir() else annotations.parent


def _files(folder: Path) -> list[str]:
    """Return the names in a folder; listed, as some file systems do not tell vatex_data.json from VATEX_data.json."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error


def _published(folder: Path, name: str, held: Sequence[str]) -> Path:
    shown = ", ".join(held[:MAX_NAMED]) + (f" and {len(held) - MAX_NAMED} more" if len(held) > MAX_NAMED else "")
    raise DataError(f"{folder} has no {name}; found: {shown or 'nothing'}")


def read_ids(path: Path, normal: Callable[[str], str] = str.strip) -> list[Line]:
    """Return the video ids of a list, one per line, in the spelling that `normal` returns.

    Raises DataError, naming the line, for a duplicated id.
    """
    return check_ids(Line(line.where, normal(line.text.strip())) for line in read_lines(path))


def check_ids(lines: Iterable[Line]) -> list[Line]:
    """Return the ids. Raises DataError, naming the place, for a duplicated one."""
    places: dict[str, Line] = {}
    for line in lines:
        if line.text in places:
            raise DataError(f"{line.where}: video {line.text!r} is duplicated")
        places[line.text] = line
    return list(places.values())


def captions_of(
    ids: Sequence[Line],
    content: Mapping[str, Any],
    source: Path,
    texts: Callable[[str, Any], list[str]],
    excluded: dict[str, str] | None = None,
) -> list[Caption]:
    """Return the captions of the listed videos. Caption ids are `video:index`.

    `content`: the entry of each video in the file `source`; `texts(where, entry)` checks an entry and returns its
    captions. Raises DataError for a listed video without entry, unless `excluded` is given: then it is added there.
    """
    captions = []
    for where, video in ids:
        if video not in content and excluded is not None:
            excluded[video] = f"no caption in {source.name}"
            continue
        if video not in content:
            raise DataError(f"{where}: video {video!r} has no caption in {source}")
        entry = texts(f"{source}: {video!r}", content[video])
        captions += [Caption(f"{video}:{number}", video, text) for number, text in enumerate(entry)]
    return captions


def check_texts(where: str, value: Any) -> list[str]:
    """Return a list of texts, stripped. Raises DataError for anything else and for an empty text."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} must be a list of captions, found {kind_of(value)}")
    for number, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            what = "is empty" if isinstance(text, str) else f"must be text, found {kind_of(text)}"
            raise DataError(f"{where}: caption {number} {what}")
    return [text.strip() for text in value]
