"""Which frames of a video are looked at: the published samplings, by index or by time, and their seeded jitter."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass

import numpy as np

from teachclip.data.video.timeline import TOLERANCE, Part, Timeline, find_part
from teachclip.errors import DataError, VideoError

KINDS = ("per_second", "intervals", "clip2video")

EXTRACTED_RATE = 5
"""Pictures per second that CLIP2Video's `sample_frame.py` extracts with ffmpeg's `-r`."""


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are looked at.

    `per_second` (CLIP4Clip, arXiv 2104.08860, and the models built on its code) reads `rate` frames of every whole
    second, the first one at its start. If these are more than `count`, it keeps `count` of them: evenly spread, the
    first ones (`head`) or the last ones (`tail`). A short video gives fewer frames.

    `intervals` (X-Pool, arXiv 2203.15086, its uniform sampling) cuts the video into `count` equal intervals and takes
    the middle frame of each. It always gives `count` frames: a shorter video repeats its last one.

    `clip2video` (arXiv 2106.11097) takes the pictures that ffmpeg extracts at 5 per second, keeps one in `rate` of
    them (its `feature_framerate`: 2 for MSR-VTT, 1 for MSVD and VATEX) and of these `count`, evenly spread. A short
    video gives fewer frames.

    `augmentation_seed` seeds the views above 0 of a video; view 0 is the sampling itself.
    """

    kind: str
    count: int
    rate: int = 1
    keep: str = "even"
    augmentation_seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"frame sampling: kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.keep not in ("even", "head", "tail"):
            raise DataError(f"frame sampling: keep is {self.keep!r}; allowed: even, head, tail")
        if self.count < 1 or self.rate < 1:
            raise DataError(f"frame sampling: count is {self.count} and rate is {self.rate}; both must be at least 1")


def jitter(sampling: FrameSampling, view: int, name: str, start: float | None) -> np.random.Generator | None:
    """Return what draws the frames of a view, None for view 0. It depends on nothing but the arguments.

    `name`: the file's name without folders. Raises DataError for a view below 0.
    """
    if view < 0:
        raise DataError(f"view is {view}; it must be at least 0")
    if view == 0:
        return None
    words = f"{sampling.augmentation_seed}/{view}/{'' if start is None else float(start)}/{name}"
    digest = hashlib.sha256(words.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def choose_frames(
    sampling: FrameSampling, timeline: Timeline, part: Part, draw: np.random.Generator | None
) -> list[int]:
    """Return the frame numbers that `sampling` takes of `part`, ascending, at least one and at most `sampling.count`.

    Where the rate is constant the published index formulas hold; the `per_second` one only for a part that begins at
    0, as all published ones do: it counts 29.97 frames per second as 29 and would begin a part at 200 seconds 6
    seconds early. Everywhere else, and where there are fewer frames per second than are asked for, the frame that is
    shown at the moment counts.

    `draw` jitters: `intervals` draws anywhere in the interval (X-Pool's `rand`), `clip2video` as published,
    `per_second` shifts each frame within its own 1/rate second, where no jitter is published.
    Raises VideoError if the sampling finds no frame.
    """
    if sampling.kind == "clip2video":
        return _as_clip2video(sampling, timeline, part, draw)
    if sampling.kind == "intervals":
        return _intervals(sampling, timeline, part, draw)
    if timeline.varies or part.begin > 0 or timeline.fps < sampling.rate:
        return _seconds_by_time(sampling, timeline, part, draw)
    last = int(part.finish + TOLERANCE) if math.isfinite(part.finish) else None
    indices = sample_indices(sampling, len(timeline.times), timeline.fps, start=0, end=last)
    if draw is None:
        return indices
    room = np.clip(part.stop - np.array(indices), 1, int(timeline.fps) // sampling.rate)
    return (indices + (draw.random(len(indices)) * room).astype(int)).tolist()


def sample_indices(
    sampling: FrameSampling, frame_count: int, fps: float, *, start: int | None = None, end: int | None = None
) -> list[int]:
    """Return the frame numbers that `sampling` takes of a video of constant rate, by the published formulas.

    `frame_count` and `fps` (frames per second) are the container's. `start` and `end` (seconds, whole) limit a
    `per_second` sampling to a part of the video, both ends included. Raises VideoError if the sampling finds no
    frame.
    """
    if frame_count < 1:
        raise VideoError("it has no frames")
    if sampling.kind != "per_second":
        timeline = Timeline.constant(frame_count, fps)
        return choose_frames(sampling, timeline, find_part(timeline, start, end), None)
    # As published, the rate is cut to a whole number: 29.97 frames per second count as 29.
    whole = int(fps) if math.isfinite(fps) else 0
    if whole < sampling.rate:
        raise VideoError(f"it has {fps:g} frames per second; the frame sampling reads {sampling.rate} per second")
    seconds = _seconds(math.ceil(frame_count / whole), start, end)
    within = range(0, whole, whole // sampling.rate)[: sampling.rate]
    indices = [second * whole + offset for second in seconds for offset in within]
    indices = [index for index in indices if index < frame_count]
    if not indices:
        raise VideoError(f"it has no frame between second {start} and {end}")
    return _keep(sampling, indices)


def _seconds(duration: int, start: int | None, end: int | None) -> range:
    """Return the seconds to read: an empty part is made one second long, a reversed one is turned round."""
    if start is None or end is None:
        return range(duration + 1)
    start, end = min(start, end), max(start, end)
    if start == end:
        end += 1
    return range(start, min(end, duration) + 1)


def _keep(sampling: FrameSampling, indices: list) -> list:
    """Return at most `sampling.count` of the indices, as `sampling.keep` says."""
    if len(indices) <= sampling.count:
        return indices
    if sampling.keep == "head":
        return indices[: sampling.count]
    if sampling.keep == "tail":
        return indices[-sampling.count :]
    return [indices[place] for place in np.linspace(0, len(indices) - 1, sampling.count, dtype=int)]


def _seconds_by_time(
    sampling: FrameSampling, timeline: Timeline, part: Part, draw: np.random.Generator | None
) -> list[int]:
    """Return the frames shown 0, 1, 2, ... times 1/rate seconds after the beginning of the part."""
    shown = min(part.finish + 2 * TOLERANCE, timeline.duration - TOLERANCE)  # as published, the last second counts
    moments = part.begin + np.arange(max(1, math.ceil((shown - part.begin) * sampling.rate))) / sampling.rate
    moments = np.array(_keep(sampling, moments.tolist()))
    if draw is not None:
        room = np.minimum(min(part.finish, timeline.duration) - moments, 1 / sampling.rate)
        moments = moments + draw.random(len(moments)) * np.maximum(room - 2 * TOLERANCE, 0)
    return timeline.shown_at(moments)


def _intervals(
    sampling: FrameSampling, timeline: Timeline, part: Part, draw: np.random.Generator | None
) -> list[int]:
    """Return one frame of each of `count` intervals, the last one repeated if there are too few frames."""
    frames = part.stop - part.first
    parts = min(sampling.count, frames)
    if timeline.varies:
        bounds = np.linspace(part.begin, min(part.finish, timeline.duration), parts + 1)
        places = 0.5 if draw is None else draw.random(parts)
        found = timeline.shown_at(bounds[:-1] + places * np.diff(bounds))
    else:
        edges = np.linspace(0, frames, parts + 1).astype(int) + part.first
        if draw is None:
            found = [(left + right - 1) // 2 for left, right in itertools.pairwise(edges.tolist())]
        else:
            found = draw.integers(edges[:-1], edges[1:]).tolist()
    return found + found[-1:] * (sampling.count - parts)


def _as_clip2video(
    sampling: FrameSampling, timeline: Timeline, part: Part, draw: np.random.Generator | None
) -> list[int]:
    """Return the frames as CLIP2Video's `rawframe_util.py` picks them from the extracted pictures."""
    times = np.append(timeline.times[part.first : part.stop], min(part.finish, timeline.duration))
    extracted = _extracted(times - times[0])
    # A video that gives less than `rate` pictures has no frame upstream; here it has its first one.
    kept = np.linspace(0, len(extracted) - 1, max(1, len(extracted) // sampling.rate), dtype=int)
    if len(kept) > sampling.count:
        places = np.linspace(0, len(kept) - 1, sampling.count, dtype=int)
        step = int(places[1] - places[0]) // 2 if sampling.count > 1 else 0
        if draw is not None and step > 2:
            places[1:-1] += draw.integers(-step, step, sampling.count - 2)
        kept = kept[places]
    return [part.first + extracted[place] for place in kept]


def _extracted(times: np.ndarray) -> list[int]:
    """Return which frame each picture shows that `ffmpeg -r 5` writes.

    `times`: seconds from 0, (frames + 1,), the last one the end. With a constant output rate ffmpeg writes a frame
    unless it ends 1.1 pictures before the next place, and fills places with copies from 1.1 pictures on.
    """
    pictures: list[int] = []
    for number, (begins, ends) in enumerate(itertools.pairwise((times * EXTRACTED_RATE).tolist())):
        ahead, lag = begins - len(pictures), ends - len(pictures)
        copies, earlier = (0 if lag < -1.1 else 1), 0
        if lag > 1.1:
            copies = round(lag)
            earlier = round(ahead - 0.6) if ahead > 1.1 else 0
        pictures += [max(number - (copy < earlier), 0) for copy in range(copies)]
    return pictures
