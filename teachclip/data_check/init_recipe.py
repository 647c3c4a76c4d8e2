"""`teachclip prepare init FOLDER`: look at a folder of own videos and write a recipe to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import yaml

from teachclip.console import log
from teachclip.data.annotations.catalog import SHOWN
from teachclip.data.annotations.files import locate_videos
from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import FORMATS
from teachclip.errors import DataError, RecipeError
from teachclip.registry import resolve
from teachclip.store.files import write_atomic

STUDENT = "openai/clip-vit-base-patch32"
TEACHER = "openai/clip-vit-large-patch14"
TABLES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}
"""Ending of a table of captions -> its format."""


class Proposal(NamedTuple):
    """What a folder of own data holds."""

    format: str
    annotations: Path
    read: Annotations


def init_recipe(
    folder: str | Path,
    *,
    captions: Path | None = None,
    out: Path | None = None,
    backbone: str = STUDENT,
    teacher: str = TEACHER,
) -> Path:
    """Write a recipe for a folder of videos and captions to `out` (default: FOLDER/recipe.yaml). Returns its path.

    Raises DataError if no captions are found, RecipeError if the recipe is there.
    """
    folder = Path(folder).resolve()
    out = out or folder / "recipe.yaml"
    if out.exists():
        raise RecipeError(f"{out} is there already; remove it or give another --out")
    found = propose(folder, captions)
    write_atomic(out, recipe_text(folder, found, out, backbone=backbone, teacher=teacher).encode())
    log(f"recipe: {out}")
    log(f"next:   python tools/prepare.py {_shell(out)}")
    return out


def propose(folder: Path, captions: Path | None = None) -> Proposal:
    """Find and read the captions of a folder. Raises DataError, saying what was found, if none or several fit."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file, expected a folder' if folder.exists() else 'no such folder'}")
    path, kind = (captions.resolve(), _format_of(captions)) if captions else _find(folder)
    read: Annotations = resolve("data format", kind, FORMATS)(
        annotations=path, train=None, validation=None, test=None
    )
    splits = [split for split in (read.train, read.validation, read.test) if split is not None]
    names = list(dict.fromkeys(_file_of(read, caption.video_id) for split in splits for caption in split))
    located = locate_videos(folder, names)
    if not located:
        raise DataError(f"{path} names {len(names)} videos, such as {names[0]!r}, but none of them is below {folder}")
    rows = sum(map(len, splits))
    if lost := [name for name in names if name not in located]:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        log(f"no video file for: {', '.join(lost[:SHOWN])}{more}")
    log(f"found:  {len(located)} of {len(names)} videos and {rows} captions, format {kind}, in {path}")
    return Proposal(kind, path, read)


def _file_of(read: Annotations, video_id: str) -> str:
    segment = read.segments.get(video_id)
    return video_id if segment is None else segment.file


def _format_of(path: Path) -> str:
    if path.is_dir():
        return "text_files"
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path}: the name of a table of captions ends with {', '.join(TABLES)}")
    return TABLES[path.suffix.lower()]


def _find(folder: Path) -> tuple[Path, str]:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES)
    if len(tables) == 1:
        return tables[0], _format_of(tables[0])
    if tables:
        names = ", ".join(path.name for path in tables)
        raise DataError(
            f"{folder} holds {len(tables)} tables ({names}); say which holds the captions: --captions FILE"
        )
    if next(folder.rglob("*.txt"), None) is not None:
        return folder, "text_files"
    raise DataError(
        f"{folder} holds no captions: expected a .csv, .jsonl or .parquet file of video,caption[,start,end,split], "
        "or a text file beside each video (clip.mp4 and clip.txt)"
    )


def recipe_text(folder: Path, found: Proposal, out: Path, *, backbone: str, teacher: str) -> str:
    """Return the recipe, with a comment at what a user may want to change."""
    name = folder.name or "videos"
    pairs = len(found.read.train)
    batch = max(2, min(64, pairs // 16 * 4))  # at least four steps an epoch, and a multiple of four processes
    validation = "validation: {share: 0.05}   # of the training videos, held out to pick the checkpoint"
    if found.read.validation is not None:
        validation = "# The validation split is that of the captions."
    teachers = f"\n  - {{name: dual_encoder, checkpoint: {_quoted(teacher)}}}" if teacher != "none" else " []"
    return f"""# Own videos: {name}. Written by `teachclip prepare init`; every line may be changed.
#
# Look at the data:  python tools/prepare.py {_shell(out)}
# Check everything:  python tools/distill.py {_shell(out)} --dry-run
# Train and export:  accelerate launch tools/distill.py {_shell(out)}
# All keys:          python tools/distill.py --help
name: {_quoted(name)}
output: {_quoted(str(folder / "teachclip" / "run"))}
stores: {_quoted(str(folder / "teachclip" / "stores"))}
data:
  format: {found.format}
  videos: {_quoted(str(folder))}
  annotations: {_quoted(str(found.annotations))}
  {validation}
frames: {{sampling: intervals, count: 12}}   # 12 frames, evenly spread over each video
text: {{max_tokens: 32}}
student:
  backbone: {_quoted(backbone)}
  temporal_layers: 4
# Who teaches. A larger dual encoder needs no training of its own; see the README for the other teachers.
teachers:{teachers}
optimizer: {{name: adamw, lr: 1e-4, clip_lr: 1e-6, attention_lr: 1e-3, schedule: warmup_cosine}}
train: {{encoders: finetuned, epochs: 5, batch_size: {batch}, workers: 2}}   # {pairs} training pairs
"""


def _quoted(text: str) -> str:
    """Return text as a YAML value, quoted where it must be; `$` of a path is no variable."""
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
