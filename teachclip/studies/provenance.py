"""What the parts of a comparison depend on in a recipe: values, but not where things lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teachclip.recipe.schema import Recipe
from teachclip.store.fingerprint import fingerprint_of

Stamps = dict[str, list[int]]


def stored_by(recipe: Recipe) -> dict[str, Any]:
    """Return what tells the stores of one recipe from those of another on the same machine."""
    frames = recipe.frames.model_dump(exclude={"workers", "memory_limit", "time_limit", "store"})
    teachers = {
        teacher.label: teacher.model_dump(include={"name", "checkpoint", "reads", "options"})
        for teacher in recipe.teachers
    }
    return {
        "data": recipe.data.model_dump(mode="json", exclude={"select_on", "max_missing"}),
        "frames": frames,
        "text": recipe.text.model_dump(),
        "backbone": recipe.student.backbone,
        "precision": recipe.teaching.precision,
        "teachers": teachers,
    }


def prepared_by(recipe: Recipe) -> dict[str, Any]:
    """Return what is made before students train depends on: values, but not where things lie."""
    values = stored_by(recipe)
    values["data"] = [recipe.data.format, Path(recipe.data.test or "").name, values["data"]["validation"]]
    del values["backbone"]
    for teacher in recipe.teachers:
        kept = values["teachers"][teacher.label]
        del kept["checkpoint"]
        kept["training"] = teacher.training and teacher.training.model_dump(mode="json", exclude={"seed"})
    return {**values, "encoders": recipe.train.encoders, "source": recipe.teaching.source}


def trained_by(recipe: Recipe) -> str:
    """Return the hash of what a student's numbers depend on in its recipe: values, but not where things lie."""
    from teachclip.pipeline.build import run_settings

    values = {key: value for key, value in run_settings(recipe).items() if key not in ("name", "seed")}
    values["data"] = [recipe.data.format, recipe.data.select_on, values["data"]["validation"]]
    del values["student"]["backbone"]
    for teacher in values["teachers"]:
        del teacher["checkpoint"]
    return fingerprint_of(values)


def unpaired_stamps(recipe: Recipe) -> Stamps:
    """Return the stamps of what frame-set distillation draws from beside the training pairs."""
    term = recipe.losses.frame_sets
    return file_stamps(term.captions, term.videos) if recipe.losses.uses_frame_sets else {}


def file_stamps(*paths: Path | None) -> Stamps:
    """Return size and time of files, and of all files below folders; what is not there is left out."""
    given = [path for path in paths if path is not None]
    files = {file for path in given for file in (path, *path.rglob("*")) if file.is_file()}
    return {str(file): [(found := file.stat()).st_size, found.st_mtime_ns] for file in sorted(files)}
