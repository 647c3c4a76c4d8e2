"""Parts of a video, such as overlapping windows of a long film, each frame of which is decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from teachclip.data.video.cutting import Cutting, Interval
from teachclip.data.video.decode import VideoSource
from teachclip.data.video.decoding_errors import DECODING_ERRORS, first_line
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.timeline import find_span
from teachclip.data.video.transform import FrameTransform
from teachclip.data.video.video_file import is_of_the_machine, machine_error
from teachclip.errors import VideoError

PARTS_PER_STRETCH = 32
"""Parts whose frames a worker returns together: at 5 seconds apart some 170 frames, 25 MB at 224 pixels."""


FROM_START = 10
"""So many times longer are the stretches of a video of which each one must be decoded from the start."""


class PartFrames(NamedTuple):
    """The frames of some parts of a video.

    frames: uint8 (frames, 3, size, size), each once. times: when each is shown, seconds, float64 (frames,).
    parts: seconds. places: the frames of each part, int64 (at most the sampling's count,), none for a part that
    cannot be decoded. errors: why not, "" for one that can be.
    """

    frames: np.ndarray
    times: np.ndarray
    parts: list[Interval]
    places: list[np.ndarray]
    errors: list[str]


class OpenedVideo(NamedTuple):
    """A video with the frames of its first parts, and what is needed to decode the others.

    duration: seconds. first: of the first stretch. rest: the parts of the other stretches. source: for
    `decode_stretch`, None if there is no other stretch.
    """

    duration: float
    first: PartFrames
    rest: list[list[Interval]]
    source: VideoSource | None


def open_parts(path: str, sampling: FrameSampling, transform: FrameTransform, cutting: Cutting) -> OpenedVideo:
    """Cut a video into parts and decode the first of them, for a worker process. Raises VideoError."""
    source = VideoSource.open(path)
    duration = source.facts.timeline.duration
    shots: list[Interval] = []
    if cutting.kind == "shots":
        from teachclip.data.video.shots import find_shots

        shots = find_shots(Path(path), duration)
    parts = cutting.cut(duration, shots)
    most = PARTS_PER_STRETCH * (FROM_START if source.from_start else 1)
    stretches = [parts[k : k + most] for k in range(0, len(parts), most)]
    first = decode_stretch(source, sampling, transform, stretches[0], len(parts) == 1)
    if len(stretches) == 1 and all(first.errors):
        raise VideoError(f"{path}: cannot be decoded ({first.errors[0]})")
    return OpenedVideo(duration, first, stretches[1:], source if stretches[1:] else None)


def decode_stretch(
    source: VideoSource,
    sampling: FrameSampling,
    transform: FrameTransform,
    parts: Sequence[Interval],
    whole: bool = False,
) -> PartFrames:
    """Decode parts of a video, each frame once, for a worker process. `whole`: the one part is the whole video.

    The frames of a part are those that `decode_frames` gives for its seconds. A part that is damaged costs no other
    one. Raises VideoError if the machine fails.
    """
    source.short_side = sampling.decoded_size
    source.shrink = _Shrink(transform)  # a stretch of full pictures would not fit in memory
    timeline = source.facts.timeline
    parts = list(parts)
    try:
        spans = [find_span(timeline, *((None, None) if whole else part)) for part in parts]
        chosen = [source.choose(sampling, span) for span in spans]
        numbers = np.unique(np.concatenate(chosen))
        try:
            frames, errors = source.take(numbers.tolist()), [""] * len(parts)
        except DECODING_ERRORS as error:
            if is_of_the_machine(error):
                raise
            numbers, frames, errors = _take_apart(source, chosen)
    except DECODING_ERRORS as error:
        if is_of_the_machine(error):
            raise machine_error(source.file, error) from error
        raise VideoError(f"{source.file}: cannot be decoded ({first_line(error)})") from error
    places = [
        np.empty(0, np.int64) if error else np.searchsorted(numbers, part)
        for part, error in zip(chosen, errors, strict=True)
    ]
    pictures = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    return PartFrames(pictures, timeline.times[numbers], parts, places, errors)


def _take_apart(source: VideoSource, chosen: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode each part on its own. Returns the frames' numbers, ascending, the frames, and the error of each part."""
    found: dict[int, np.ndarray] = {}
    errors = []
    for part in chosen:
        missing = [number for number in dict.fromkeys(part) if number not in found]
        try:
            found.update(zip(missing, source.take(missing) if missing else (), strict=True))
            errors.append("")
        except DECODING_ERRORS as error:
            if is_of_the_machine(error):
                raise
            errors.append(first_line(error))
    numbers = np.array(sorted(found), np.int64)
    size = source.shrink.transform.size if isinstance(source.shrink, _Shrink) else 0
    frames = (
        np.stack([found[number] for number in sorted(found)]) if found else np.empty((0, size, size, 3), np.uint8)
    )
    return numbers, frames, errors


@dataclass(frozen=True)
class _Shrink:
    """Transforms one picture, uint8 (height, width, 3) to (size, size, 3)."""

    transform: FrameTransform

    def __call__(self, picture: np.ndarray) -> Any:
        frame = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).unsqueeze(0)
        return self.transform(frame)[0].permute(1, 2, 0).numpy()
