"""The keys of a recipe that change it where something was measured, and what they may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LATE_INTERACTION, BETTER_TEACHER = "if_late_interaction", "if_better_teacher"
CONDITIONS = (BETTER_TEACHER, LATE_INTERACTION)
"""In the order in which they are applied: of one key the last one counts."""

SECTIONS = ("student.", "losses.", "optimizer.")
FIXED = ("student.backbone", "student.text_", "student.mask_padding", "student.trust_remote_code")
"""What is measured with."""
CHOSEN = ("student.temperature_scaling", "student.wise_ft")
"""What is chosen after training: a study gives every variant the same choices."""


def check_conditions(recipe: Any) -> Iterator[str]:
    """Yield what the conditions of a recipe may not change."""
    for name in CONDITIONS:
        for override in getattr(recipe, name):
            if not override.startswith(SECTIONS) or override.startswith((*FIXED, *CHOSEN)):
                yield (
                    f"{name}: {override!r}; allowed: key=value of student, losses and optimizer, but not what texts "
                    "and frames are encoded with, nor what is chosen after training"
                )
    if getattr(recipe, BETTER_TEACHER) and not recipe.teachers:
        yield f"{BETTER_TEACHER} needs teachers; remove it"


def overlap(one: str, other: str) -> bool:
    """Whether one key of a recipe is the other, or a section that holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def undone(values: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the key of every override that a condition in `values` may undo, or of the teachers, and which."""
    keys = [override.partition("=")[0] for override in overrides]
    for name in CONDITIONS:
        changes = values.get(name)
        if name in keys or not isinstance(changes, list) or not changes:
            continue
        changed = {str(change).partition("=")[0] for change in changes}
        for key in keys:
            if any(overlap(one, key) for one in changed) or key == "teachers":
                yield key, name
