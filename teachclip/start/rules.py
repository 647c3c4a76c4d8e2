"""How a first recipe is chosen for videos without captions: rules, each with the measurement that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from teachclip.data_check.init_recipe import NO_TEACHER, STUDENT, TEACHER
from teachclip.errors import CheckpointError, DataError
from teachclip.start.look import Films, Machine

FEWEST = 4
"""Fewer videos leave none to hold out."""


class Rule(NamedTuple):
    """What is done, the heading of `recipes/RESULTS.md` it rests on, and the words there that say so."""

    done: str
    table: str
    line: str


OPTIONS, PRESETS = "What the options add", "Other presets"

RULES: Mapping[str, Rule] = {
    "frozen": Rule(
        "encoders stay frozen: fast, and better than encoders that train from the first step",
        "Finetuned encoders",
        "The student with frozen encoders and all options (63.0) is ahead of all of these, and trains in a third of",
    ),
    "frame_sets": Rule(
        "frame-set distillation, 512 sets and texts a step",
        OPTIONS,
        "frame-set distillation | 49.2 ± 1.2 | +13.8 [+12.8, +14.7] 8/8",
    ),
    "adapters": Rule(
        "residual adapters of frames, videos and texts",
        OPTIONS,
        "residual adapter of texts | 50.8 ± 1.4 | +12.2 [+11.4, +12.9] 8/8",
    ),
    "sigmoid": Rule(
        "every frame is judged by itself, against targets of the whole video",
        OPTIONS,
        "sigmoid attention, binary cross-entropy: softmax, cross-entropy | 56.9 ± 2.1 | +6.0 [+4.6, +7.4] 8/8",
    ),
    "temporal": Rule(
        "no temporal transformer: only texts that tell the order of events need it",
        PRESETS,
        "`order` needs the temporal transformer",
    ),
    "steps": Rule(
        "1,200 steps of up to 64 texts and videos, one validation at the end",
        OPTIONS,
        "Training takes 75 s in place of 7 to 19 s.",
    ),
    "video_text": Rule(
        "no video-text term: it cost most of the gain",
        "Without captions",
        "**The video-text term costs most of it** in this setting",
    ),
    "spread": Rule(
        "what a dual encoder says of frames is sharpened: as it is it says nearly nothing",
        "Without captions",
        "**A folder of videos, one CLIP and nobody's captions: twice the R@1**, +8.6 [+7.5, +9.7]",
    ),
    "late": Rule(
        "the only model there is teaches by its closest frame (late interaction); a better one teaches more",
        "Without captions",
        "It is still a third of its teacher, which keeps every frame",
    ),
    "teacher": Rule(
        "the largest model there is teaches: stronger teachers leave better students",
        "Every teacher",
        "every teacher raises the mean, X-Pool most",
    ),
}
"""By name. A test finds each line in the file."""


@dataclass(frozen=True)
class Choice:
    """What is written into the recipe. `fetched`: models that must come from the hub. `rules`: names in `RULES`."""

    backbone: str
    teacher: str
    pooling: str
    batch_size: int
    held_out: int
    steps: int
    rules: tuple[str, ...]
    fetched: tuple[str, ...] = ()


def choose(films: Films, machine: Machine, *, backbone: str | None = None, teacher: str | None = None) -> Choice:
    """Choose by the rules; `backbone` and `teacher` are taken as they are given.

    Raises DataError for too few videos, CheckpointError if a model is needed that is neither here nor can be fetched.
    """
    count = len(films.files)
    if count < FEWEST:
        raise DataError(
            f"{films.folder} has {count} videos; {FEWEST} are the fewest: some are held out to measure on; cut long "
            "films into scenes, or search them with an index alone: teachclip index"
        )
    cached = list(machine.models)  # from small to large
    backbone = backbone or (cached[0] if cached else STUDENT)
    if teacher is None:
        larger = [name for name in cached if machine.models[name] > machine.models.get(backbone, 0)]
        teacher = larger[-1] if larger and backbone in machine.models else None
        if teacher is None and backbone == STUDENT and (not machine.offline or STUDENT not in cached):
            teacher = TEACHER
    rules = ["frozen", "frame_sets", "adapters", "sigmoid", "spread", "temporal", "video_text", "steps"]
    rules.append("late" if teacher in (None, backbone) else "teacher")
    teacher = teacher or backbone
    held_out = min(300, count // 10) if count >= 50 else max(2, count // 5)
    fetched = tuple(name for name in dict.fromkeys((backbone, teacher)) if _is_absent(name, machine))
    if fetched and machine.offline:
        raise CheckpointError(how_to_fetch(films.folder, machine, fetched, backbone, teacher))
    return Choice(
        backbone,
        teacher,
        "max" if teacher == backbone else "mean",
        min(64, count - held_out),
        held_out,
        1200,
        tuple(rules),
        fetched,
    )


def captioned_models(
    machine: Machine, *, backbone: str | None = None, teacher: str | None = None
) -> tuple[str, str, tuple[str, ...]]:
    """Choose the backbone and the teacher of videos with captions, and say which of them are not here.

    They are the usual ones, which the hub gives; where it cannot be reached the smallest and the largest model of the
    cache, and without a larger one no teacher: the student then learns from captions alone. `none` is no teacher.
    """
    cached = list(machine.models)  # from small to large
    if machine.offline and STUDENT not in cached and cached and backbone is None:
        backbone = cached[0]
    backbone = backbone or STUDENT
    if teacher is None and machine.offline and TEACHER not in cached:
        size = machine.models.get(backbone, 0)
        larger = [name for name in cached if name != backbone and machine.models[name] > size]
        teacher = larger[-1] if larger else TEACHER if _is_absent(backbone, machine) else NO_TEACHER
    teacher = teacher or TEACHER
    wanted = [backbone] if teacher == NO_TEACHER else [backbone, teacher]
    return backbone, teacher, tuple(name for name in dict.fromkeys(wanted) if _is_absent(name, machine))


def _is_absent(name: str, machine: Machine) -> bool:
    """Whether a model is the id of one on the hub that is not in the cache."""
    return name not in machine.models and not Path(name).exists()


def how_to_fetch(folder: Path, machine: Machine, fetched: tuple[str, ...], backbone: str, teacher: str) -> str:
    """Say what must be fetched elsewhere, how, and where to put it."""
    folders = {name: name.rsplit("/", 1)[-1] for name in fetched}
    lines = [f"{' and '.join(fetched)}: not here, and the hub cannot be reached ({machine.offline})"]
    lines += [f"  elsewhere:  hf download {name} --local-dir {folder}" for name, folder in folders.items()]
    lines.append("  then copy it here and give its path (recipes/README.md lists other dual encoders):")
    options = f"--backbone {folders.get(backbone, backbone)}"
    if teacher != backbone:
        options += f" --teacher {folders.get(teacher, teacher)}"
    return "\n".join([*lines, f"  here:       teachclip init {folder} {options}"])
