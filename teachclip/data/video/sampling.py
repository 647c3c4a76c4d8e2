"""Frame sampling: which frames of a video are used, as published, and seeded temporal augmentation of them."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from teachclip.data.video.timeline import TOLERANCE, Span, Timeline, find_span
from teachclip.errors import DataError, VideoError

KINDS = ("per_second", "intervals", "clip2video")

EXTRACTED_RATE = 5
"""Frames per second that CLIP2Video's `sample_frame.py` extracts with ffmpeg's `-r`."""


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video are used.

    `per_second` (CLIP4Clip, arXiv 2104.08860, and the models built on its code) reads `rate` frames of every whole
    second, the first one at its start. If these are more than `count`, it keeps `count` of them: evenly spread, the
    first ones (`head`) or the last ones (`tail`). A short video gives fewer frames.

    `intervals` (X-Pool, arXiv 2203.15086, its uniform sampling) cuts the video into `count` equal intervals and takes
    the middle frame of each. It always gives `count` frames: a shorter video repeats its last one.

    `clip2video` (arXiv 2106.11097) takes the frames that ffmpeg extracts at 5 per second, keeps one in `rate` of them
    (its `feature_framerate`: 2 for MSR-VTT, 1 for MSVD and VATEX) and `count` of these, evenly spread. A short video
    gives fewer frames.

    `augmentation_seed`: seed of the views above 0 of a video; view 0 is the sampling itself. `keyframes`: in place of
    each frame the nearest one that is decoded without any other (see `VideoSource.choose`). That is fast where frames
    are large, and gives fewer different ones where keyframes are rare. `decoded_size`: pixels of the short side to
    which FFmpeg scales larger frames while it converts their colours; None: frames have the size of the file.

    Raises DataError for values that are not allowed.
    """

    kind: str
    count: int
    rate: int = 1
    keep: str = "even"
    augmentation_seed: int = 0
    keyframes: bool = False
    decoded_size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"frame sampling: kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.keep not in ("even", "head", "tail"):
            raise DataError(f"frame sampling: keep is {self.keep!r}; allowed: even, head, tail")
        if self.count < 1 or self.rate < 1:
            raise DataError(f"frame sampling: count is {self.count} and rate is {self.rate}; both must be at least 1")
        if self.decoded_size is not None and self.decoded_size < 1:
            raise DataError(f"frame sampling: decoded_size is {self.decoded_size}; allowed: 1 or more, or nothing")

    def describe(self) -> dict[str, Any]:
        """Return its fields; those for speed only where they are used: what says nothing of them stays the same."""
        unused = {"keyframes": False, "decoded_size": None}
        return {key: value for key, value in asdict(self).items() if key not in unused or value != unused[key]}


def augmentation_generator(
    sampling: FrameSampling, view: int, name: str, start: float | None
) -> np.random.Generator | None:
    """Return the random generator of a view, None for view 0; a function of its arguments alone.

    `name`: the file's name without folders. `start`: seconds. Raises DataError for a view below 0.
    """
    if view < 0:
        raise DataError(f"view is {view}; it must be at least 0")
    if view == 0:
        return None
    key = f"{sampling.augmentation_seed}/{view}/{'' if start is None else float(start)}/{name}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def choose_frames(
    sampling: FrameSampling, timeline: Timeline, span: Span, generator: np.random.Generator | None
) -> list[int]:
    """Return the frame numbers that `sampling` takes of `span`, ascending, at least one and at most `sampling.count`.

    At a constant rate the published index formulas hold; the one of `per_second` only for a span that begins at 0, as
    all published ones do: it counts 29.97 frames per second as 29 and would begin a span at 200 seconds 6 seconds
    early. Everywhere else, and where the video has fewer frames per second than `sampling.rate`, frames are chosen by
    the time at which they are shown.

    With `generator` the frames are augmented: `intervals` draws anywhere in the interval (X-Pool's `rand`),
    `clip2video` as published, `per_second` shifts each frame within its own 1/rate second, for which nothing is
    published. Raises VideoError if the sampling finds no frame.
    """
    if sampling.kind == "clip2video":
        return _as_clip2video(sampling, timeline, span, generator)
    if sampling.kind == "intervals":
        return _intervals(sampling, timeline, span, generator)
    if timeline.varies or span.begin > 0 or timeline.fps < sampling.rate:
        return _seconds_by_time(sampling, timeline, span, generator)
    last = int(span.finish + TOLERANCE) if math.isfinite(span.finish) else None
    indices = sample_indices(sampling, len(timeline.times), timeline.fps, start=0, end=last)
    if generator is None:
        return indices
    room = np.clip(span.stop - np.array(indices), 1, int(timeline.fps) // sampling.rate)
    return (indices + (generator.random(len(indices)) * room).astype(int)).tolist()


def sample_indices(
    sampling: FrameSampling, frame_count: int, fps: float, *, start: int | None = None, end: int | None = None
) -> list[int]:
    """Return the frame numbers that `sampling` takes of a video of constant rate, by the published formulas.

    `frame_count` and `fps` (frames per second) are the container's. `start` and `end` (whole seconds) limit a
    `per_second` sampling to a span of the video, both ends included. Raises VideoError if the sampling finds no
    frame.
    """
    if frame_count < 1:
        raise VideoError("it has no frames")
    if sampling.kind != "per_second":
        timeline = Timeline.constant(frame_count, fps)
        return choose_frames(sampling, timeline, find_span(timeline, start, end), None)
    # As published, the rate is truncated to an integer: 29.97 frames per second count as 29.
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
    """Return the seconds to read: an empty span becomes one second long, a reversed one is swapped."""
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
    sampling: FrameSampling, timeline: Timeline, span: Span, generator: np.random.Generator | None
) -> list[int]:
    """Return the frames shown 0, 1, 2, ... times 1/rate seconds after the beginning of the span."""
    shown = min(span.finish + 2 * TOLERANCE, timeline.duration - TOLERANCE)  # as published, the last second counts
    moments = span.begin + np.arange(max(1, math.ceil((shown - span.begin) * sampling.rate))) / sampling.rate
    moments = np.array(_keep(sampling, moments.tolist()))
    if generator is not None:
        room = np.minimum(min(span.finish, timeline.duration) - moments, 1 / sampling.rate)
        moments = moments + generator.random(len(moments)) * np.maximum(room - 2 * TOLERANCE, 0)
    return timeline.shown_at(moments)


def _intervals(
    sampling: FrameSampling, timeline: Timeline, span: Span, generator: np.random.Generator | None
) -> list[int]:
    """Return one frame of each of `count` intervals, the last one repeated if there are too few frames."""
    frames = span.stop - span.first
    intervals = min(sampling.count, frames)
    if timeline.varies:
        bounds = np.linspace(span.begin, min(span.finish, timeline.duration), intervals + 1)
        places = 0.5 if generator is None else generator.random(intervals)
        indices = timeline.shown_at(bounds[:-1] + places * np.diff(bounds))
    else:
        edges = np.linspace(0, frames, intervals + 1).astype(int) + span.first
        if generator is None:
            indices = [(left + right - 1) // 2 for left, right in itertools.pairwise(edges.tolist())]
        else:
            indices = generator.integers(edges[:-1], edges[1:]).tolist()
    return indices + indices[-1:] * (sampling.count - intervals)


def _as_clip2video(
    sampling: FrameSampling, timeline: Timeline, span: Span, generator: np.random.Generator | None
) -> list[int]:
    """Return the frames as CLIP2Video's `rawframe_util.py` picks them from the extracted ones."""
    times = np.append(timeline.times[span.first : span.stop], min(span.finish, timeline.duration))
    extracted = _extracted(times - times[0])
    # A video that gives fewer than `rate` frames has no frame in the official code; here it has its first one.
    kept = np.linspace(0, len(extracted) - 1, max(1, len(extracted) // sampling.rate), dtype=int)
    if len(kept) > sampling.count:
        places = np.linspace(0, len(kept) - 1, sampling.count, dtype=int)
        step = int(places[1] - places[0]) // 2 if sampling.count > 1 else 0
        if generator is not None and step > 2:
            places[1:-1] += generator.integers(-step, step, sampling.count - 2)
        kept = kept[places]
    return [span.first + extracted[place] for place in kept]


def _extracted(times: np.ndarray) -> list[int]:
    """Return the number of the source frame of each frame that `ffmpeg -r 5` writes.

    `times`: seconds from 0, (frames + 1,), the last one the end. With a constant output rate ffmpeg drops a frame
    that ends 1.1 output frames before the next slot, and fills slots with copies from 1.1 output frames on.
    """
    extracted: list[int] = []
    for number, (begins, ends) in enumerate(itertools.pairwise((times * EXTRACTED_RATE).tolist())):
        lead, lag = begins - len(extracted), ends - len(extracted)
        copies, earlier = (0 if lag < -1.1 else 1), 0
        if lag > 1.1:
            copies = round(lag)
            earlier = round(lead - 0.6) if lead > 1.1 else 0
        extracted += [max(number - (copy < earlier), 0) for copy in range(copies)]
    return extracted
