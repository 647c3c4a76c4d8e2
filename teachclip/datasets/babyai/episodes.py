"""Episodes of MiniGrid's BabyAI levels, solved by its bot, and their frames.

The levels, the language of the missions, their verifiers and the bot are those of BabyAI (Chevalier-Boisvert et al.,
ICLR 2019) as MiniGrid ships them. Nothing of them is made up here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from teachclip.errors import DataError

try:
    from minigrid.envs.babyai.core.levelgen import LevelGen
    from minigrid.envs.babyai.core.verifier import AfterInstr, AndInstr, BeforeInstr
    from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError
except ImportError as missing:
    raise DataError(f"BabyAI needs MiniGrid ({missing}): pip install 'teachclip[datasets]'") from missing

MINI_BOSS = {"room_size": 5, "num_rows": 2, "num_cols": 2, "num_dists": 7, "locked_room_prob": 0.25}
"""The numbers of the level BabyAI-MiniBossLevel: four small rooms, seven objects, doors of which some are locked."""
COMPOSED, SINGLE = ("and", "seq"), ("action",)
"""Kinds of missions: with "and", "then" and "after you"; with one action."""
TILE = 16
"""Pixels of a grid cell. The agent sees 7 x 7 of them, so a frame has 112 pixels."""


@dataclass(frozen=True)
class Episode:
    """A mission and how the bot fulfils it. The mission's verifier succeeds at the last action, and not before."""

    seed: int
    kinds: tuple[str, ...]
    mission: str
    reworded: str | None
    """The same mission in the other word order of the language; None if it has one clause."""
    actions: tuple[int, ...]


def solve(seed: int, kinds: tuple[str, ...]) -> Episode | None:
    """Return the episode of a seed, or None if the bot does not fulfil its mission: it loses its way in a few."""
    level = _reset(seed, kinds)
    mission, reworded = str(level.mission), _reworded(level)
    bot = BabyAIBot(level)
    actions: list[int] = []
    while True:
        try:
            action = bot.replan()
        except (AssertionError, DisappearedBoxError):  # as in 1 of 200 missions
            return None
        actions.append(int(action))
        _, reward, terminated, truncated, _ = level.step(action)
        if terminated or truncated:
            return Episode(seed, kinds, mission, reworded, tuple(actions)) if reward > 0 else None


def replay(episode: Episode) -> Iterator[tuple[Any, int | None]]:
    """Yield the level at its start with None, and after each action with that action. The level is one object."""
    level = _reset(episode.seed, episode.kinds)
    yield level, None
    for action in episode.actions:
        level.step(level.actions(action))
        yield level, action


def frames(episode: Episode, *, view: str = "agent") -> np.ndarray:
    """Return what is seen at the start and after each action: uint8 (actions + 1, height, width, 3).

    `view`: `agent`, the 7 x 7 cells before the agent, what it carries in its own; `full`, the whole grid from above.
    """
    return np.stack([view_of(level, view) for level, _ in replay(episode)])


def view_of(level: Any, view: str) -> np.ndarray:
    """Return what is seen now: uint8 (height, width, 3)."""
    shown: np.ndarray = level.get_frame(highlight=view == "full", tile_size=TILE, agent_pov=view == "agent")
    return shown


def _reset(seed: int, kinds: tuple[str, ...]) -> Any:
    """Return the level of a seed at its start. MiniGrid prints which drawings it rejected; that is not shown."""
    with contextlib.redirect_stdout(io.StringIO()):
        level = LevelGen(**MINI_BOSS, instr_kinds=kinds, highlight=False)
        level.reset(seed=seed)
    return level


def _reworded(level: Any) -> str | None:
    """Return the mission with its two halves in the other order; the verifier asks for the same of both."""
    mission = level.instrs
    swapped = {AndInstr: AndInstr, BeforeInstr: AfterInstr, AfterInstr: BeforeInstr}.get(type(mission))
    return None if swapped is None else str(swapped(mission.instr_b, mission.instr_a).surface(level))
