"""Videos of episodes. Without torch, so that the processes that write them start quickly."""

from __future__ import annotations

from pathlib import Path

from teachclip.data.video.writing import encode_mp4
from teachclip.datasets.babyai.episodes import Episode, frames

RATE = 8
"""Actions per second of a video."""


def write_video(path: Path, episode: Episode, view: str) -> None:
    """Write what is seen in an episode; `view` as in `frames`."""
    encode_mp4(frames(episode, view=view), path, rate=RATE)
