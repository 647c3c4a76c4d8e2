"""Which missions an episode fulfils, by the missions' own verifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minigrid.envs.babyai.core.verifier import (
    AfterInstr,
    AndInstr,
    BeforeInstr,
    GoToInstr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)

from teachclip.datasets.babyai.episodes import Episode, replay

Description = tuple[str | None, str | None, str | None]
"""Type, colour and place of an object; None: any."""
Mission = tuple[Any, ...]
"""A mission as plain values: the name of its class, then descriptions or missions."""

_ACTIONS = {kind.__name__: kind for kind in (GoToInstr, OpenInstr, PickupInstr, PutNextInstr)}
_JOINED = {kind.__name__: kind for kind in (AndInstr, BeforeInstr, AfterInstr)}


def mission_of(episode: Episode) -> Mission:
    """Return the mission of an episode as plain values."""
    level, _ = next(replay(episode))
    return _plain(level.instrs)


def fulfilled(episode: Episode, missions: Iterable[Mission]) -> dict[Mission, int]:
    """Return the missions that an episode fulfils, and after how many actions each is fulfilled first.

    A mission is verified as if it had been given at the start of the episode: "on your left" is left of the agent
    then. A description that fits no object is never fulfilled; "the" and "a" are the same to a verifier.
    """
    first_steps: dict[Mission, int] = {}
    waiting: dict[Mission, Any] = {}
    for step, (level, action) in enumerate(replay(episode)):
        if action is None:
            for mission in missions:
                verifier = _verifier(mission)
                verifier.reset_verifier(level)
                if _can_be_fulfilled(verifier):
                    waiting[mission] = verifier
            continue
        for mission, verifier in list(waiting.items()):
            if action == level.actions.drop:
                level.update_objs_poss(verifier)
            if verifier.verify(action) == "success":
                first_steps[mission] = step
                del waiting[mission]
    return first_steps


def oracle_recall_at_1(
    missions: Sequence[Mission], fulfilments: Sequence[Mapping[Mission, int]], lengths: Sequence[int] | None = None
) -> float:
    """Return the text-to-video recall at 1, in percent, of a model that knows which videos fulfil a mission.

    Mission i is that of video i, whose fulfilled missions are `fulfilments[i]`. Among the videos that fulfil a
    mission the model can only guess. With `lengths`, the number of actions of each video, it knows more: a bot stops
    when its mission is fulfilled, so only videos count that fulfil it with their last action.
    """
    chances = []
    for mission in missions:
        steps = [first_steps.get(mission) for first_steps in fulfilments]
        fitting = [step is not None and (lengths is None or step == lengths[i]) for i, step in enumerate(steps)]
        chances.append(1 / sum(fitting))
    return 100 * sum(chances) / len(chances)


def _plain(instruction: Any) -> Mission:
    name = type(instruction).__name__
    if name in _JOINED:
        return (name, _plain(instruction.instr_a), _plain(instruction.instr_b))
    objects = [getattr(instruction, key) for key in ("desc", "desc_move", "desc_fixed") if hasattr(instruction, key)]
    return (name, *((item.type, item.color, item.loc) for item in objects))


def _verifier(mission: Mission) -> Any:
    name, *parts = mission
    if name in _JOINED:
        return _JOINED[name](*map(_verifier, parts))
    return _ACTIONS[name](*(ObjDesc(*part) for part in parts))


def _can_be_fulfilled(verifier: Any) -> bool:
    """Whether every description fits an object of the level."""
    if isinstance(verifier, AndInstr | BeforeInstr | AfterInstr):
        return _can_be_fulfilled(verifier.instr_a) and _can_be_fulfilled(verifier.instr_b)
    objects = [getattr(verifier, key) for key in ("desc", "desc_move", "desc_fixed") if hasattr(verifier, key)]
    return all(item.obj_set for item in objects)
