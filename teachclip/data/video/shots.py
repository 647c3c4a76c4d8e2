"""The shots of a video, found by PySceneDetect."""

from __future__ import annotations

from pathlib import Path

from teachclip.errors import DataError, VideoError

SHORTEST = 1.0
"""Seconds; a shorter shot belongs to its neighbour."""


def find_shots(path: Path, duration: float) -> list[tuple[float, float]]:
    """Return the seconds at which each shot of a video of `duration` seconds starts and ends, without gaps.

    Cuts are where the content changes suddenly (PySceneDetect's ContentDetector with its defaults). Raises DataError
    if the package is missing, VideoError for a video that it cannot read.
    """
    try:
        from scenedetect import ContentDetector, detect
    except ImportError as error:
        raise DataError("shots need PySceneDetect: pip install 'teachclip[shots]'") from error
    try:
        scenes = detect(str(path), ContentDetector())
    except Exception as error:  # of OpenCV, PyAV or the detector, in many types
        raise VideoError(f"{path}: its shots cannot be found ({str(error).splitlines()[0][:200]})") from error
    cuts = [start.seconds for start, _ in scenes[1:]]
    edges = [0.0]
    for cut in cuts:
        if cut - edges[-1] >= SHORTEST and duration - cut >= SHORTEST:
            edges.append(cut)
    return list(zip(edges, [*edges[1:], duration], strict=True))
