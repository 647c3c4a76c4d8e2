"""What BabyAI says of single frames: every mission of one action that its verifiers call fulfilled in them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.envs.babyai.core.verifier import (
    LOC_NAMES,
    OBJ_TYPES,
    GoToInstr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)

from teachclip.datasets.babyai.episodes import Episode, replay, view_of

SHARE = 0.5
"""Of the frames, how many stand beside a mission of one action in place of the episode's own."""
CONNECTIVES = re.compile(r", then | after you | and ")
"""What BabyAI's language joins clauses with."""


@dataclass(frozen=True)
class Moment:
    """A frame after an action, uint8 (height, width, 3), and the missions of one action that are fulfilled in it.

    `missions`: their texts by the name of their class, such as `GoToInstr`; none of them is empty.
    """

    step: int
    frame: np.ndarray
    missions: dict[str, list[str]]

    @property
    def texts(self) -> list[str]:
        """All texts."""
        return [text for texts in self.missions.values() for text in texts]


def moments(episode: Episode, *, view: str = "agent") -> list[Moment]:
    """Return the frames of an episode in which a mission of one action is fulfilled; `view` as of `frames`.

    Such a mission names any object by any description that BabyAI's language has for it, with or without its colour
    and where it was at the start. It is verified by itself, as if nothing had been fulfilled before.
    """
    shown: list[Moment] = []
    descriptions: list[tuple[ObjDesc, str]] = []
    carried = None
    for step, (level, action) in enumerate(replay(episode)):
        if action is None:
            descriptions = list(_descriptions(level))
            continue
        if action in (level.actions.pickup, level.actions.drop):  # the level looks after a drop alone
            for description, _ in descriptions:
                description.find_matching_objs(level, use_location=False)
        missions = _fulfilled_now(level, action, carried, descriptions)
        if missions:
            shown.append(Moment(step, view_of(level, view), missions))
        carried = level.carrying
    return shown


def frames_and_texts(episode: Episode, view: str, count: int) -> tuple[np.ndarray, list[str]]:
    """Return `count` frames of an episode, uint8 (count, height, width, 3), and a text of each, drawn by its seed.

    A share of `SHARE` of the texts is a mission of one action that the frame fulfils, each kind equally often. The
    others are the whole mission in either word order, beside a frame that fulfils one of its clauses: beside any
    other it would teach that long texts say nothing.
    """
    rng = random.Random(episode.seed)
    shown = moments(episode, view=view)
    kinds = sorted({kind for moment in shown for kind in moment.missions})
    whole = [episode.mission, episode.reworded or episode.mission]
    clauses = set(CONNECTIVES.split(episode.mission))
    # none fits where a clause was fulfilled by where an object had been: the level looks after a drop alone
    fitting = [moment for moment in shown if clauses & set(moment.texts)] or shown
    pairs = []
    for _ in range(count):
        if rng.random() < SHARE:
            kind = rng.choice(kinds)
            moment = rng.choice([moment for moment in shown if kind in moment.missions])
            pairs.append((moment.frame, rng.choice(moment.missions[kind])))
        else:
            pairs.append((rng.choice(fitting).frame, rng.choice(whole)))
    return np.stack([frame for frame, _ in pairs]), [text for _, text in pairs]


def frame_and_truth(episode: Episode, view: str) -> tuple[np.ndarray, str, list[str]]:
    """Return one frame of an episode, a mission of one action that it fulfils, and all that it fulfils."""
    rng = random.Random(episode.seed)
    shown = moments(episode, view=view)
    kind = rng.choice(sorted({kind for moment in shown for kind in moment.missions}))
    moment = rng.choice([moment for moment in shown if kind in moment.missions])
    return moment.frame, rng.choice(moment.missions[kind]), moment.texts


def _descriptions(level: Any) -> Iterator[tuple[ObjDesc, str]]:
    """Yield every description that fits an object of the level at its start, and its words."""
    for kind, colour, place in product(OBJ_TYPES, (None, *COLOR_NAMES), (None, *LOC_NAMES)):
        description = ObjDesc(kind, colour, place)
        if description.find_matching_objs(level)[0]:
            yield description, description.surface(level)


def _fulfilled_now(
    level: Any, action: int, carried: Any, descriptions: list[tuple[ObjDesc, str]]
) -> dict[str, list[str]]:
    """Return the missions of one action that the last action fulfilled; `carried`: what was carried before it."""

    def succeeds(mission: Any) -> bool:
        # `reset_verifier` would look for the objects anew, where they are now
        mission.env, mission.preCarrying = level, carried
        return bool(mission.verify(action) == "success")

    actions = level.actions
    movable = [item for item in descriptions if item[0].type != "door"]
    missions = {"GoToInstr": [f"go to {words}" for what, words in descriptions if succeeds(GoToInstr(what))]}
    if action == actions.toggle:
        doors = [item for item in descriptions if item[0].type == "door"]
        missions["OpenInstr"] = [f"open {words}" for what, words in doors if succeeds(OpenInstr(what))]
    elif action == actions.pickup:
        missions["PickupInstr"] = [f"pick up {words}" for what, words in movable if succeeds(PickupInstr(what))]
    elif action == actions.drop:
        missions["PutNextInstr"] = [
            f"put {words} next to {others}"
            for (what, words), (other, others) in product(movable, descriptions)
            if succeeds(PutNextInstr(what, other))
        ]
    return {kind: texts for kind, texts in missions.items() if texts}
