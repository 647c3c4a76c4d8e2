"""What processes draw: a video of an episode, or its last frame. Without torch, so that they start quickly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from teachclip.data.video.writing import encode_mp4
from teachclip.datasets.babyai.episodes import Episode, frames

RATE = 8
"""Actions per second of a video."""


def write_video(path: Path, episode: Episode, view: str) -> None:
    """Write what is seen in an episode; `view` as in `frames`."""
    encode_mp4(frames(episode, view=view), path, rate=RATE)


def last_frame(episode: Episode, view: str) -> np.ndarray:
    """Return what is seen when the mission is fulfilled: uint8 (height, width, 3)."""
    return frames(episode, view=view, last=True)[0]
