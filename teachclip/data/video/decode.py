"""The frames of a video file that a frame sampling takes, as a player shows them.

PyAV, which is FFmpeg, decodes every file. To be fast, packets that no sampled frame needs are skipped. Nothing is
guessed: where a frame is missing, damaged or out of order, the file is decoded from its start.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from torch import Tensor

from teachclip.data.video.decoder import Found, Run, damaged, decode_packets, runs_for
from teachclip.data.video.decoding_errors import DECODING_ERRORS, first_line
from teachclip.data.video.orientation import orientation_of
from teachclip.data.video.probe import REORDERED, Packets, VideoFacts, read_facts
from teachclip.data.video.sampling import FrameSampling, augmentation_generator, choose_frames
from teachclip.data.video.timeline import Span, find_span
from teachclip.data.video.video_file import check_video_file, is_of_the_machine, machine_error
from teachclip.errors import VideoError

HINT = "; frames.on_error=use_decodable (in Python on_error) uses what can be decoded of a damaged file"
"""What ends the error of a damaged file that `skip` refuses."""


def decode_frames(
    path: str | os.PathLike[str],
    sampling: FrameSampling,
    *,
    start: float | None = None,
    end: float | None = None,
    on_error: Literal["skip", "use_decodable"] = "skip",
    view: int = 0,
) -> Tensor:
    """Decode the frames that `sampling` takes of the file `path`.

    Returns uint8 RGB (frames, 3, height, width) as a player shows them: rotated and mirrored as the file says, with
    square pixels, deinterlaced, and smaller if the sampling says so; frames is at most `sampling.count`. `start` and
    `end` are seconds. `view` 0 is the sampling itself, views above 0 are augmented (see `choose_frames`).

    What a player shows is used. What is missing, by the duration in the header of the file, or what FFmpeg marks as
    corrupt, and all that depends on it, is not: `skip` raises an error if a frame of the sampling is among it.
    `use_decodable` then treats the file as the shorter video of its other frames. Raises VideoError with the path and
    the first error; never returns a made-up frame. The result depends on the bytes of the file alone; if the machine
    fails (memory, open files, a disk), the error says so.
    """
    source = VideoSource.open(path)
    source.short_side = sampling.decoded_size
    generator = functools.partial(augmentation_generator, sampling, view, source.file.name, start)
    try:
        span = find_span(source.facts.timeline, start, end)
        indices = source.choose(sampling, span, generator())
        distinct, places = np.unique(indices, return_inverse=True)
        try:
            frames = source.take(distinct.tolist())
        except DECODING_ERRORS as error:
            if is_of_the_machine(error):
                raise
            if on_error == "skip":
                raise VideoError(f"{first_line(error)}{HINT}") from error
            problem = first_line(error)
            try:
                frames, places = source.take_decodable(sampling, span, generator())
            except VideoError as other:
                raise VideoError(f"{problem}; and of its decodable frames: {other}") from other
    except DECODING_ERRORS as error:
        if is_of_the_machine(error):
            raise machine_error(path, error) from error
        raise VideoError(f"{path}: cannot be decoded ({first_line(error)})") from error
    return torch.from_numpy(frames[places] if len(places) > len(frames) else frames).permute(0, 3, 1, 2)


class VideoSource:
    """A file whose packets have been read. Frames are numbered in the order in which they are shown.

    `short_side`: see `FrameSampling.decoded_size`. `shrink`: what makes a smaller image of each frame, uint8
    (height, width, 3), as soon as it is decoded.
    """

    def __init__(self, file: Path, facts: VideoFacts, packets: Packets):
        self.file, self.facts, self.packets = file, facts, packets
        self.short_side: int | None = None
        self.shrink: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> VideoSource:
        """Read the packets of a file. Raises VideoError, with the path, if it is not a video."""
        file = check_video_file(path)
        return cls(file, *read_facts(file))

    @property
    def from_start(self) -> bool:
        """Whether a frame is found only by decoding all before it: interlaced, or times give no order."""
        return self.facts.interlaced or not self.packets.in_order

    def choose(self, sampling: FrameSampling, span: Span, generator: np.random.Generator | None = None) -> list[int]:
        """Return the frame numbers that `sampling` takes of `span`, ascending; some may repeat.

        With its `keyframes` they are the keyframes of the span that are shown nearest to those frames. Where there is
        none, or times give no order, they are the frames themselves. Raises as `choose_frames` does.
        """
        timeline = self.facts.timeline
        chosen = choose_frames(sampling, timeline, span, generator)
        if not sampling.keyframes or self.from_start:
            return chosen
        keys = np.flatnonzero(np.isin(self._shown_packets(), self.packets.keys))
        keys = keys[(keys >= span.first) & (keys < span.stop)]
        if not len(keys):
            return chosen
        away = np.abs(timeline.times[chosen][:, None] - timeline.times[keys])
        return keys[away.argmin(axis=1)].tolist()

    def take(self, numbers: Sequence[int]) -> np.ndarray:
        """Decode frames by number, ascending and distinct: uint8 (frames, height, width, 3).

        Raises VideoError if one of them is missing, damaged, or depends on a damaged one.
        """
        facts, total = self.facts, len(self.facts.timeline.times)
        if facts.truncated and facts.frames == total:
            whole = facts.declared_frames if facts.declared_frames > total else "an unknown number"
            raise VideoError(f"the file is truncated or damaged: it has {total} frames of {whole}")
        # frames are stored out of order: which of the last ones is missing is not known
        most = facts.frames - REORDERED if facts.truncated else facts.frames
        if numbers[-1] >= most:
            raise VideoError(f"frame {max(numbers[-1], most)} of {total} is missing; the file is truncated")
        if self.from_start:
            return self._in_output_order(numbers)
        frames = self._by_packet(numbers, only_needed=True)
        if frames is None:
            frames = self._by_packet(numbers, only_needed=False)
        return self._in_output_order(numbers) if frames is None else frames

    def _packets_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the packet of each frame; `packets` must be in order."""
        return self._shown_packets()[list(numbers)].tolist()

    def _shown_packets(self) -> np.ndarray:
        """Return the packets of all frames, in the order of showing; `packets` must be in order."""
        stamps, hidden = self.packets.stamps, self.packets.hidden
        shown = np.array([stamp for number, stamp in enumerate(stamps) if number not in hidden])
        numbered = np.array([number for number in range(len(stamps)) if number not in hidden])
        return numbered[np.argsort(shown)]

    def _by_packet(self, numbers: Sequence[int], *, only_needed: bool) -> np.ndarray | None:
        """Decode frames by the time stamps of their packets, uint8 (frames, height, width, 3).

        With `only_needed`, packets that are not needed are skipped, and anything unusual gives None. Without it None
        means that the time stamps do not give the order of showing, and a frame that is damaged or missing raises
        VideoError.
        """
        wanted = self._packets_of(numbers)
        runs = runs_for(self.packets, wanted) if only_needed else [Run(0, max(wanted) + 1)]
        found, frames = Found(), dict.fromkeys(wanted)
        kept = wanted if only_needed else None
        for number, frame in decode_packets(str(self.file), self.packets, runs, found, kept):
            if number in frames and frames[number] is None:
                frames[number] = self._as_shown(frame)
        bad = damaged(self.packets, found)
        lost = [number for number in wanted if frames[number] is None or number in bad]
        stamps = [self.packets.stamps[number] or 0 for number in found.shown]
        if any(later <= earlier for earlier, later in itertools.pairwise(stamps)) and not found.broken:
            return None
        if only_needed and (lost or found.broken or not {run.start for run in runs if run.start} <= found.whole):
            return None
        if lost:
            raise VideoError(self._what_is_wrong(lost[0], numbers[wanted.index(lost[0])], found))
        return np.stack([frames[number] for number in wanted])  # type: ignore[misc]

    def _in_output_order(self, numbers: Sequence[int]) -> np.ndarray:
        """Decode frames from the start, counting them. Raises VideoError at the first damage."""
        found, taken, wanted = Found(), [], set(numbers)
        runs = [Run(0, len(self.packets.stamps))]
        output = decode_packets(str(self.file), self.packets, runs, found)
        pictures = (frame for _, frame in output)
        for place, frame in enumerate(self._deinterlaced(pictures)):
            if place in wanted:
                taken.append(self._as_shown(frame))
            if place >= numbers[-1]:
                break
        if bad := damaged(self.packets, found):
            raise VideoError(self._what_is_wrong(min(bad), None, found))
        if len(taken) < len(numbers):
            raise VideoError(f"frame {numbers[len(taken)]} of {len(self.facts.timeline.times)} is missing")
        return np.stack(taken)

    def take_decodable(
        self, sampling: FrameSampling, span: Span, generator: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode the frames that `sampling` takes of the shorter video of the decodable frames in `span`.

        Returns distinct frames, uint8 (n, height, width, 3), and the index of each frame of the sampling among them.
        Raises VideoError if there is none.
        """
        found, runs = Found(), [Run(0, len(self.packets.stamps))]
        for _ in decode_packets(str(self.file), self.packets, runs, found):
            pass
        bad = damaged(self.packets, found)
        good = [number for number in found.shown if number not in bad]
        if not good:
            raise VideoError("there is none")
        numbers = self._numbers_of(good)
        inside = np.flatnonzero((numbers >= span.first) & (numbers < span.stop))
        shorter = self.facts.timeline.without_gaps(numbers[inside])
        indices = choose_frames(sampling, shorter, find_span(shorter, None, None), generator)
        distinct, places = np.unique(inside[indices], return_inverse=True)
        kept, wanted, taken = set(good), set(distinct.tolist()), []
        output = decode_packets(str(self.file), self.packets, runs, Found())
        pictures = (frame for number, frame in output if number in kept)
        for place, frame in enumerate(self._deinterlaced(pictures)):
            if place in wanted:
                taken.append(self._as_shown(frame))
            if place >= distinct[-1]:
                break
        return np.stack(taken), places

    def _numbers_of(self, packets: list[int]) -> np.ndarray:
        """Return the number of the frame of each packet, int64 (packets,): by time if it is known, or counted."""
        ranks = np.array([self.packets.stamps[number] or 0 for number in packets])
        if not self.packets.in_order or (np.diff(ranks) <= 0).any():
            return np.arange(len(packets))
        return np.searchsorted(np.array(self.packets.times), ranks)

    def _what_is_wrong(self, packet: int, place: int | None, found: Found) -> str:
        """Return the error for a frame that is lost: its number if it is known, and the damage it depends on."""
        causes = [number for number in found.broken if number <= packet]
        number = packet if place is None else place
        total = len(self.facts.timeline.times)
        if packet in found.broken:
            return f"frame {number} of {total} cannot be decoded ({found.broken[packet]})"
        if causes:
            return f"frame {number} of {total} depends on a damaged one ({found.broken[max(causes)]})"
        if packet in found.shown:
            return f"frame {number} of {total} depends on a keyframe that is missing"
        return f"frame {number} of {total} is missing"

    def _deinterlaced(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Deinterlace the frames that are marked as interlaced, one frame for each (FFmpeg's yadif)."""
        if not self.facts.interlaced:
            yield from frames
            return
        graph = None
        for frame in itertools.chain(frames, [None]):  # None flushes the filter
            if graph is None:
                if frame is None:
                    return
                graph = _yadif(frame)
            graph.vpush(frame)
            while True:
                try:
                    yield graph.vpull()
                except (av.BlockingIOError, av.EOFError):
                    break

    def _as_shown(self, frame: Any) -> np.ndarray:
        """Return uint8 (height, width, 3) with square pixels, rotated and mirrored as the container says."""
        width, height = self.facts.shown_width, self.facts.shown_height
        how = {}
        if self.short_side is not None and (short := min(width, height)) > self.short_side:
            width, height = (int(self.short_side * side / short) for side in (width, height))
            how["interpolation"] = "BICUBIC"  # as published for frames of full size
        image = orientation_of(frame).apply(frame.to_ndarray(format="rgb24", width=width, height=height, **how))
        return image if self.shrink is None else self.shrink(image)


def _yadif(frame: Any) -> Any:
    """Return FFmpeg's filter for frames like this one."""
    graph = av.filter.Graph()
    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(buffer, graph.add("yadif", "deint=interlaced"), graph.add("buffersink")).configure()
    return graph
