"""Where the gap between a student and its teacher comes from: numbers, a page, the worst queries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import CheckpointError, RecipeError
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.recipe.schema import Teacher as TeacherSection
from teachclip.registry import closest
from teachclip.store.files import make_folder, write_atomic


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Diagnose a student, print the tables and write the page."""
    parser = recipe_arguments(
        "Say where the gap between a student and its teacher comes from: the choice of frames, the one vector per\n"
        "video, or what lies beyond it; how far both agree; and on which queries the student fails.\n"
        "Writes diagnosis.html, one page with pictures, and diagnosis.json."
    )
    parser.add_argument(
        "--student", type=Path, help="folder or file of a student (default: the exported one of the recipe's run)"
    )
    parser.add_argument("--teacher", metavar="LABEL", help="a teacher of the recipe (default: its first)")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--worst", type=int, default=20, metavar="N", help="how many queries are shown (20)")
    parser.add_argument("--out", type=Path, help="folder to write (default: <output>/diagnosis)")
    args = parser.parse_intermixed_args(argv)
    if args.worst < 0:
        raise RecipeError(f"--worst is {args.worst}, allowed: 0 or more")
    recipe = load_recipe(args.recipe, args.overrides)
    section = chosen_teacher(recipe, args.teacher)
    source = args.student or exported_student(recipe, args.recipe)
    from teachclip.diagnosis.run import diagnose

    out = args.out or recipe.output / "diagnosis"
    make_folder(out)
    found = diagnose(recipe, source, section, args.split, worst=args.worst)
    if found is None:  # not the main process
        return
    report, films = found
    from teachclip.diagnosis.page import diagnosis_page, terminal_text

    print(terminal_text(report), flush=True)
    write_atomic(out / "diagnosis.json", json.dumps(report, indent=1).encode())
    write_atomic(out / "diagnosis.html", diagnosis_page(report, films).encode())
    say(f"diagnosis: {out / 'diagnosis.html'}")


def chosen_teacher(recipe: Recipe, label: str | None) -> TeacherSection:
    """Return the teacher of that label, or the recipe's first.

    Raises RecipeError if there is none, or if it reads scores from a file and so knows training pairs alone.
    """
    from teachclip.pipeline.teacher_files import teacher_class
    from teachclip.scorer import reads_relevance

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


def exported_student(recipe: Recipe, path: str) -> Path:
    """Return the folder of the student that the recipe's run exported. Raises CheckpointError if there is none."""
    folder = recipe.output / "student"
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} holds no student; train it first with tools/distill.py {path}, or give one with --student"
        )
    return folder
