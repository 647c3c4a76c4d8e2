"""What decoding a file may raise, and how that is said in one line."""

from __future__ import annotations

import av

from teachclip.errors import VideoError

DECODING_ERRORS = (VideoError, av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError)
"""What decoding a file may raise; `is_of_the_machine` tells which of them say nothing about the file."""


def first_line(error: Exception) -> str:
    """Return an error in one line; FFmpeg's own ones name the file again."""
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
