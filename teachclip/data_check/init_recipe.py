"""Write a first recipe for a folder of one's own videos: `teachclip prepare init FOLDER`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

import yaml

from teachclip.console import log
from teachclip.data.annotations.catalog import SHOWN
from teachclip.data.annotations.files import find_videos, locate_videos
from teachclip.data.annotations.own_names import is_junk
from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import FORMATS
from teachclip.data.formats.subtitles import EXTENSIONS as SUBTITLES
from teachclip.data.formats.text_files import own_files
from teachclip.data_check.understanding import print_understood
from teachclip.errors import DataError, RecipeError
from teachclip.registry import resolve
from teachclip.store.files import make_folder, write_atomic

STUDENT = "openai/clip-vit-base-patch32"
TEACHER = "openai/clip-vit-large-patch14"
"""What is fetched where the hub can be reached and nothing else is there."""
NO_TEACHER = "none"
"""In place of a teacher: the student learns from captions alone."""
TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".xlsx": "xlsx"}
"""Suffix of a table of captions -> its format."""


class CaptionSource(NamedTuple):
    """The captions of a folder: their format, the file or folder that holds them, and their content.

    `uncaptioned`: how many videos of the folder have none.
    """

    format: str
    path: Path
    annotations: Annotations
    uncaptioned: int = 0


def init_recipe(
    folder: str | Path,
    *,
    captions: Path | None = None,
    out: Path | None = None,
    backbone: str = STUDENT,
    teacher: str = TEACHER,
) -> Path:
    """Write a recipe for a folder of videos and captions to `out` (default: FOLDER/recipe.yaml). Returns its path.

    Raises DataError if no captions are found, RecipeError if the recipe exists.
    """
    folder = Path(os.path.expanduser(folder)).resolve()
    out = Path(os.path.expanduser(out)) if out else folder / "recipe.yaml"
    if out.exists():
        raise RecipeError(f"{out} exists; remove it or give another --out")
    source = find_captions(folder, Path(os.path.expanduser(captions)) if captions else None)
    make_folder(out.parent)
    write_atomic(out, recipe_text(folder, source, out, backbone=backbone, teacher=teacher).encode())
    if source.uncaptioned and teacher != NO_TEACHER:
        log(f"found:  {source.uncaptioned} more videos without captions; the teacher says which texts fit them")
    elif source.uncaptioned:
        log(f"found:  {source.uncaptioned} more videos without captions; without a teacher they are not used")
    log(f"recipe: {out}")
    log(f"next:   teachclip prepare {shell_path(out)}")
    return out


def find_captions(folder: Path, captions: Path | None = None) -> CaptionSource:
    """Find and read the captions of a folder. Raises DataError if none, or several files, fit."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file, expected a folder' if folder.exists() else 'no such folder'}")
    path, format = (captions.resolve(), _format_of(captions)) if captions else _find(folder)
    annotations: Annotations = resolve("data format", format, FORMATS)(
        annotations=path, train=None, validation=None, test=None
    )
    splits = [split for split in (annotations.train, annotations.validation, annotations.test) if split is not None]
    names = list(dict.fromkeys(_file_of(annotations, caption.video_id) for split in splits for caption in split))
    if annotations.understood is not None:
        print_understood(annotations.understood)
    others = {video.file: video.other_names for video in annotations.segments.values()}
    wanted = list(dict.fromkeys(other for name in names for other in (name, *others.get(name, ()))))
    paths = locate_videos(folder, wanted, tolerant=annotations.tolerant_names)
    located = {name for name in names if any(other in paths for other in (name, *others.get(name, ())))}
    if not located:
        raise DataError(f"{path} names {len(names)} videos, such as {names[0]!r}, but none of them is below {folder}")
    rows = sum(map(len, splits))
    if missing := [name for name in names if name not in located]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        log(f"no video file for: {', '.join(missing[:SHOWN])}{more}")
    log(f"found:  {len(located)} of {len(names)} videos and {rows} captions, format {format}, in {path}")
    used = {os.path.realpath(path) for path in paths.values()}
    others_of = [video for video in find_videos(folder).values() if os.path.realpath(video) not in used]
    return CaptionSource(format, path, annotations, len(others_of))


def _file_of(annotations: Annotations, video_id: str) -> str:
    segment = annotations.segments.get(video_id)
    return video_id if segment is None else segment.file


def _format_of(path: Path) -> str:
    if path.is_dir():
        formats = [format for format, holds in _folder_formats(path).items() if holds]
        if len(formats) == 1:
            return formats[0]
        what = "text files and subtitles; keep one of them" if formats else "neither text files nor subtitles"
        raise DataError(f"{path} holds {what}")
    if path.suffix.lower() in SUBTITLES:
        return "subtitles"
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path} is not a table of captions; allowed suffixes: {', '.join((*TABLES, *SUBTITLES))}")
    return TABLES[path.suffix.lower()]


def _folder_formats(folder: Path) -> dict[str, bool]:
    """Return whether a folder holds files of captions, by their format."""
    found = {}
    for format, extensions in (("text_files", (".txt",)), ("subtitles", SUBTITLES)):
        try:
            found[format] = bool(own_files(folder, extensions))
        except DataError:
            found[format] = False
    return found


def _find(folder: Path) -> tuple[Path, str]:
    tables = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLES and not is_junk(path.name) and path.is_file()
    )
    if len(tables) == 1:
        return tables[0], _format_of(tables[0])
    if tables:
        names = ", ".join(path.name for path in tables)
        raise DataError(
            f"{folder} holds {len(tables)} tables ({names}); name the one with the captions: --captions FILE"
        )
    if any(_folder_formats(folder).values()):
        return folder, _format_of(folder)
    raise DataError(
        f"{folder} holds no captions: expected a table ({', '.join(TABLES)}) of "
        "video,caption[,start,end,split], or a file beside each video: clip.txt, clip.srt or clip.vtt"
    )


CONDITIONS = """\
if_better_teacher: ["student.adapters=[frame,pooled,text]", losses.contrastive.weight=0.5]   # measured first
if_late_interaction: ["student.adapters=[frame,pooled,text]", student.attention=sigmoid, losses.frame_sets.weight=1,
  losses.frame_text.kind=binary_cross_entropy, losses.frame_text.targets=video, losses.frame_text.saturation=0.25,
  losses.frame_text.spread=0.25, losses.video_text.weight=0, losses.contrastive.weight=10,
  losses.contrastive.teaches_adapters=false]
"""
"""Of the default recipe: what changes under which condition (RESULTS.md)."""

LOSSES = "contrastive: {weight: 3.0}, frame_sets: {weight: 0.0, frames: [1, 3], repeats: 3}"
"""Losses of the default recipe where no condition holds."""


def recipe_text(folder: Path, source: CaptionSource, out: Path, *, backbone: str, teacher: str) -> str:
    """Return the recipe, with comments on what a user may want to change."""
    name = folder.name or "videos"
    pairs = len(source.annotations.train)
    batch = max(2, min(64, pairs // 16 * 4))  # at least four steps an epoch, and a multiple of four processes
    validation = "validation: {share: 0.05}   # of the training videos, held out to select the checkpoint"
    if source.annotations.validation is not None:
        validation = "# The captions have a validation split."
    # beside a recipe that lies elsewhere: the data may be read-only
    home = folder / "teachclip" if out.resolve().parent == folder else out.resolve().parent / "teachclip" / out.stem
    teachers, more, losses, conditional = " []", "", "", ""  # adapters that nobody teaches do harm
    if teacher != NO_TEACHER:
        teachers = f"\n  - {{name: dual_encoder, checkpoint: {_quoted(teacher)}}}"
        losses = f"""
losses:   # as published but for the contrastive weight (0.2 there)
  {{{LOSSES}}}"""
        conditional = CONDITIONS
    if source.uncaptioned and teacher != NO_TEACHER:
        more = f"\n  uncaptioned: {_quoted(str(folder))}   # {source.uncaptioned} videos without captions teach too"
        losses = f"""
losses:   # as published but for the contrastive weight (0.2 there); without captions targets are of whole videos
  {{{LOSSES}, frame_text: {{targets: video}}}}"""
    return f"""# Your own videos: {name}. By `teachclip init`; every line may be changed. All keys: teachclip keys
# Check the data: teachclip prepare {shell_path(out)}; then train and export:
# accelerate launch -m teachclip distill {shell_path(out)}   (--dry-run: check the recipe alone)
name: {_quoted(name)}
output: {_quoted(str(home / "run"))}
stores: {_quoted(str(home / "stores"))}
data:
  format: {source.format}
  videos: {_quoted(str(folder))}
  annotations: {_quoted(str(source.path))}{more}
  {validation}
frames: {{sampling: intervals, count: 12}}   # 12 frames, evenly spread over each video
student: {{backbone: {_quoted(backbone)}, temporal_layers: 4}}
# A larger dual encoder is a teacher that needs no training; see the README for the other teachers.
teachers:{teachers}{losses}
{conditional}# What helps differs between data sets; on yours ask teachclip study --auto {shell_path(out)}
optimizer: {{name: adamw, lr: 3e-4, attention_lr: 3e-3, adapter_lr: 1e-3, weight_decay: 0.05,
            schedule: warmup_cosine}}
# With thousands of pairs try train.encoders=finetuned, head first (train.frozen_steps), optimizer.clip_lr=1e-6.
train: {{encoders: frozen, epochs: 20, batch_size: {batch}}}   # {pairs} training pairs
"""


def _quoted(text: str) -> str:
    """Return text as a YAML value, quoted where it must be; `$` in a path is not a variable."""
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def shell_path(path: Path) -> str:
    """Return a path as a shell takes it, relative to the working directory where it is below it."""
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
