"""Show a moment of a video in a program of the computer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from teachclip.errors import DataError

PLAYERS = {"mpv": "--start={start:.1f}", "vlc": "--start-time={start:.1f}", "ffplay": "-ss {start:.1f}"}
"""Players that begin at a moment, and how they are told."""


def open_moment(path: str, start: float) -> None:
    """Open a video at `start` seconds, or at its beginning where no such player is installed, and do not wait.

    Raises DataError if nothing can open it.
    """
    for name, option in PLAYERS.items():
        if program := shutil.which(name):
            _start([program, *option.format(start=start).split(), path])
            return
    if sys.platform == "win32":
        os.startfile(path)
        return
    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if opener is None:
        raise DataError(f"no program is found that opens {path}; installed players are used: {', '.join(PLAYERS)}")
    _start([opener, path])


def _start(command: list[str]) -> None:
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
