"""Take relevance that was computed elsewhere into a store, or write the ids that it must name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.errors import RecipeError
from teachclip.pipeline.build import without_text_backbone
from teachclip.pipeline.relevance import teacher_relevance
from teachclip.pipeline.teachers import TeacherHandle, open_teachers
from teachclip.pipeline.workspace import build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import closest
from teachclip.store.files import write_atomic
from teachclip.training.distributed import build_accelerator, processes_of


def _choose(recipe: Recipe, label: str | None) -> TeacherSection:
    """Return the teacher with this label, or the only one that reads scores."""
    handles = open_teachers(recipe, torch.device("cpu"))
    readers = {name: handle.section for name, handle in handles.items() if handle.reads_relevance}
    if label is None and len(readers) == 1:
        return next(iter(readers.values()))
    if label not in readers:
        known = ", ".join(readers) or "none; add {name: scores, checkpoint: FILE} to the teachers"
        got = f"--teacher {label!r}" if label else "--teacher is missing"
        raise RecipeError(f"{got}: teachers of the recipe that read scores: {known}{closest(label or '', readers)}")
    return readers[label]


def import_relevance(
    recipe: RecipeSource, overrides: Sequence[str] = (), *, teacher: str | None = None, file: str | None = None
) -> None:
    """Write the relevance store of a teacher that reads scores, from `file` or from its checkpoint.

    `recipe`, `overrides`: as of `distill`. `teacher`: its label; None if only one reads scores. Raises RecipeError if
    none or several fit, DataError for a file that does not fit the training pairs.
    """
    recipe = without_text_backbone(load_recipe(recipe, overrides))
    section = _choose(recipe, teacher)
    chosen = section.model_copy(update={"checkpoint": file}) if file else section
    accelerator = build_accelerator()
    handle = TeacherHandle(chosen, accelerator.device)
    handle.check(recipe)
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    store = teacher_relevance(work, handle)
    log(f"{section.label}: {store.path} ({store.rows} captions, {', '.join(store.arrays)})")
    if chosen.checkpoint != section.checkpoint:
        number = recipe.teachers.index(section)
        log(f"to distil with it, give: teachers.{number}.checkpoint={chosen.checkpoint}")


def write_ids(recipe: RecipeSource, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Write `captions.csv` and `videos.csv` of the training split, in its order, to `folder`."""
    recipe = without_text_backbone(load_recipe(recipe, overrides))
    accelerator = build_accelerator()
    work = build_workspace(recipe, processes_of(accelerator), accelerator.device)
    if work.processes.is_main:
        for path, rows in _id_tables(work.catalog.train).items():
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows(rows)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / path, text.getvalue().encode())
            log(f"ids: {folder / path}")
    work.processes.wait()


def _id_tables(split: Split) -> dict[str, Iterable[Sequence[str]]]:
    captions = [(caption.id, caption.video_id, caption.text) for caption in split.captions]
    parts = [["" if time is None else repr(time) for time in (video.start, video.end)] for video in split.videos]
    videos = [(video.id, str(video.path), *part) for video, part in zip(split.videos, parts, strict=True)]
    return {
        "captions.csv": [("caption_id", "video_id", "text"), *captions],
        "videos.csv": [("video_id", "path", "start", "end"), *videos],
    }
