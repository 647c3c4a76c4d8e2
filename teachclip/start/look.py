"""What there is: the videos and captions of a folder, this machine, and the models that need no download."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from teachclip.data.annotations.files import find_videos
from teachclip.data.annotations.own_names import is_junk
from teachclip.data.formats.subtitles import EXTENSIONS as SUBTITLES
from teachclip.data.video.tags import read_seconds
from teachclip.data_check.init_recipe import TABLES
from teachclip.models.families import FAMILIES
from teachclip.models.hub import cached_models, why_unreachable
from teachclip.processes import usable_cores

SAMPLED = 200
"""The most files whose headers are read for the hours of a folder."""

TEXTS = ("texts.txt", "queries.txt")
"""Files of a folder that are taken for texts, one per line."""


@dataclass(frozen=True)
class Films:
    """The videos of a folder: files by their path below it, their bytes, and hours by the headers of a sample."""

    folder: Path
    files: Mapping[str, Path]
    size: int
    hours: float

    def sample(self, count: int) -> list[str]:
        """Return the names of at most `count` files, from the smallest to the largest in equal steps."""
        names = sorted(self.files, key=lambda name: self.files[name].stat().st_size)
        steps = min(count, len(names))
        return [names[(2 * step + 1) * len(names) // (2 * steps)] for step in range(steps)]


@dataclass(frozen=True)
class Machine:
    """This computer: what it trains on, and which models of the hub's cache can be loaded, by bytes on the disk.

    `offline`: why the hub cannot be reached; "" if it can.
    """

    device: str
    cores: int
    memory: int
    free: int
    models: Mapping[str, int]
    offline: str


def look_at_films(folder: Path) -> Films:
    """Find the videos of a folder and read the headers of some. Raises DataError if there is none."""
    files = find_videos(folder)
    size = sum(path.stat().st_size for path in files.values())
    names = list(files)[:: max(1, len(files) // SAMPLED)]
    seconds = [found for name in names if (found := read_seconds(files[name])) is not None]
    hours = sum(seconds) / max(1, len(seconds)) * len(files) / 3600
    return Films(folder, files, size, hours)


def has_captions(films: Films) -> bool:
    """Whether there is a table in the folder, or a text or subtitles beside a video, of the same name."""
    if any(path.suffix.lower() in TABLES and not is_junk(path.name) for path in films.folder.iterdir()):
        return True
    stems = {os.path.splitext(name)[0] for name in films.files}
    below = (path for path in films.folder.rglob("*") if path.suffix.lower() in (".txt", *SUBTITLES))
    for path in below:
        name = str(path.relative_to(films.folder).with_suffix(""))
        if name in stems or os.path.splitext(name)[0] in stems:  # film.en.srt
            return True
    return False


def texts_in(folder: Path) -> Path | None:
    """Return the file of texts in a folder, if there is one of the usual name."""
    return next((folder / name for name in TEXTS if (folder / name).is_file()), None)


def look_at_machine(folder: Path) -> Machine:
    """Return what this machine has; `free` is of the disk of a folder."""
    models = {name: size for name, (kind, size) in cached_models().items() if kind in FAMILIES}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return Machine(
        device,
        usable_cores(),
        psutil.virtual_memory().total,
        shutil.disk_usage(folder).free,
        dict(sorted(models.items(), key=lambda item: item[1])),
        why_unreachable(),
    )
