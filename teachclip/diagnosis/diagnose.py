"""Where the gap between a student and its teacher comes from: numbers, a page, the worst queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.diagnosis.page import diagnosis_page, terminal_text
from teachclip.diagnosis.run import measure
from teachclip.errors import CheckpointError, RecipeError
from teachclip.pipeline.teachers import teacher_class
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import closest
from teachclip.scorer import reads_relevance
from teachclip.store.files import make_folder, write_atomic


def diagnose(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    student: str | Path | None = None,
    teacher: str | None = None,
    split: str = "test",
    worst: int = 20,
    out: Path | None = None,
) -> dict[str, Any] | None:
    """Diagnose a student, print the tables, write `diagnosis.json` and `diagnosis.html`, and return the report.

    `recipe`, `overrides`: as of `distill`. `student`: folder or file, default the exported one of the recipe's run.
    `teacher`: a label, default the first. `worst`: how many queries are shown. `out`: folder to write, default
    `output/diagnosis`. Returns None in every process but the main one.
    """
    recipe = load_recipe(recipe, overrides)
    section = chosen_teacher(recipe, teacher)
    source = Path(student) if student is not None else exported_student(recipe)
    out = out or recipe.output / "diagnosis"
    make_folder(out)
    measured = measure(recipe, source, section, split, worst=worst)
    if measured is None:  # not the main process
        return None
    report, videos = measured
    print(terminal_text(report), flush=True)
    write_atomic(out / "diagnosis.json", json.dumps(report, indent=1).encode())
    write_atomic(out / "diagnosis.html", diagnosis_page(report, videos).encode())
    log(f"diagnosis: {out / 'diagnosis.html'}")
    return report


def chosen_teacher(recipe: Recipe, label: str | None) -> TeacherSection:
    """Return the teacher of that label, or the recipe's first.

    Raises RecipeError if there is none, or if it reads scores from a file and so knows training pairs alone.
    """
    teachers: dict[str, Any] = {str(section.label): section for section in recipe.teachers}
    if not teachers:
        raise RecipeError(f"{recipe.name}: the recipe has no teachers; a diagnosis compares a student with one")
    chosen = label or next(iter(teachers))
    if chosen not in teachers:
        allowed = ", ".join(teachers)
        raise RecipeError(f"--teacher {chosen!r}: allowed: {allowed}{closest(chosen, teachers)}")
    section: TeacherSection = teachers[chosen]
    if reads_relevance(teacher_class(section)):
        raise RecipeError(
            f"teacher {chosen!r} reads scores of training pairs from a file, so it has none of other videos; choose "
            "another with --teacher"
        )
    return section


def exported_student(recipe: Recipe) -> Path:
    """Return the folder of the student that the recipe's run exported. Raises CheckpointError if there is none."""
    folder = recipe.output / "student"
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds no student; distil the recipe first, or give a student with --student")
    return folder
