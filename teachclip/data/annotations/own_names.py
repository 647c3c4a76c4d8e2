"""Names of files as people have them: what is no data, and where paths of another computer may lead."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_JUNK = {"__macosx", ".ds_store", "thumbs.db", "desktop.ini"}
_JUNK_PREFIXES = ("._", "~$")
_ABOUT = re.compile(r"(read[ _-]?me|licen[cs]es?|copying|copyright|notice)([ ._-].*)?", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:/")


def is_junk(name: str) -> bool:
    """Return whether a file or folder of this name is left by an operating system or office program: no data."""
    return name.startswith(_JUNK_PREFIXES) or name.casefold() in _JUNK


def is_about(stem: str) -> bool:
    """Return whether a text of this name, without extension, is about the data: a README or a licence."""
    return _ABOUT.fullmatch(stem) is not None


def paths_below(root: Path, names: Iterable[str]) -> dict[str, Sequence[str]]:
    """Return for paths that are not relative to the folder `root` what they may be relative to it, likeliest first.

    Names have / between folders. A path below `root` loses it; one that begins with the name of `root` loses that. An
    absolute path of another place may lose what all such names share, so that files of different folders keep a
    different path.
    """
    home = os.path.abspath(root).replace("\\", "/").rstrip("/") + "/"
    found: dict[str, Sequence[str]] = {}
    elsewhere: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(home):
            found[name] = [name.removeprefix(home)]
        elif name.startswith("/") or _DRIVE.match(name):
            elsewhere[name] = [part for part in name.split("/") if part]
        elif name.casefold().startswith(f"{os.path.basename(home[:-1])}/".casefold()):
            found[name] = [name.partition("/")[2]]
    folders = [parts[:-1] for parts in elsewhere.values()]
    levels = zip(*folders, strict=False)
    shared = len([*itertools.takewhile(lambda level: len(set(level)) == 1, levels)])
    for name, parts in elsewhere.items():
        found[name] = ["/".join(parts[dropped:]) for dropped in range(shared + 1)]
    return found
