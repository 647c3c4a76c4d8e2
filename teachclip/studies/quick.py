"""A comparison of the same shape that takes a minute or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from teachclip.studies.gain_arms import Settings
from teachclip.studies.plan import Plan


def quick(plan: Plan) -> Plan:
    """Return a plan of the same shape that takes a minute or two and shows nothing but that it runs."""
    made = plan.comparison
    base = plan.load(made.common)
    common, world = list(made.common), plan.world
    if world is not None:
        world = replace(world, train_videos=60, test_videos=30)
    for index, teacher in enumerate(base.teachers):
        if teacher.training is None or (world is None and Path(teacher.checkpoint).exists()):
            continue
        common += [f"teachers.{index}.training.train.{text}" for text in ("steps=20", "epochs=null")]
        if world is not None:
            common.append(f"teachers.{index}.training.train.batch_size=16")
        else:  # a teacher of 20 steps is not left where a real one belongs
            ending = Path(teacher.checkpoint).suffix
            common.append(f"teachers.{index}.checkpoint={plan.folder / 'teachers' / teacher.folder}{ending}")
            common.append(f"stores={plan.folder / 'stores'}")
    last = ["train.steps=20", "train.epochs=null", "train.evaluate_every=10"]
    if world is not None:
        last += ["train.batch_size=16", "data.validation={videos: 20, seed: 0}"]
    grids = [_different(arm.grid) for arm in made.arms]
    count = min(2, *map(len, grids))
    small = replace(
        made,
        tune_seeds=made.tune_seeds[:1],
        seeds=made.seeds[:2],
        common=tuple(common),
        arms=tuple(replace(arm, grid=tried[:count]) for arm, tried in zip(made.arms, grids, strict=True)),
    )
    return replace(plan, comparison=small, world=world, last=tuple(last))


def _different(tried: tuple[Settings, ...]) -> tuple[Settings, ...]:
    """Return the settings that are still different when all are equally long."""
    length = ("train.steps=", "train.epochs=", "train.evaluate_every=", "train.batch_size=")
    return tuple(dict.fromkeys(tuple(text for text in setting if not text.startswith(length)) for setting in tried))
