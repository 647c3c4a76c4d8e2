"""The checks of a dataset: what is suspicious about decoded frames, video files and captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from teachclip.data.annotations.records import Split
from teachclip.data.video.probe import VideoFacts
from teachclip.data.video.timeline import find_span

BLACK = 12.0
"""A frame whose brightest 1 % of pixels is below this, of 255, counts as black."""

FROZEN = 0.75
"""Frames that differ by less than this, of 255 and averaged over all pixels, count as the same image."""

SHORT = 1.0
"""Seconds below which a video counts as short."""


class Suspicion(NamedTuple):
    """Something about a video that a user should look at: its kind, for counting, and the whole message."""

    kind: str
    message: str


@dataclass
class VideoCheck:
    """What is known of one video after the check."""

    id: str
    path: str
    split: str
    error: str = ""
    """Why the video cannot be used; empty if it can."""
    is_missing: bool = False
    """Whether it has no file or no captions."""
    facts: VideoFacts | None = None
    """What the file's packets say; None if the file cannot be read."""
    suspicions: list[Suspicion] = field(default_factory=list)
    frames: int = 0
    """Number of sampled frames."""
    seconds: float = 0.0
    """Length of the part of the file that is the video."""
    is_partially_decoded: bool = False

    @property
    def name(self) -> str:
        """Split and id, as reports name the video."""
        return f"{self.split} {self.id}"


def frame_suspicions(frames: Tensor) -> list[Suspicion]:
    """Return what is suspicious about decoded frames, uint8 (frames, 3, height, width): black or frozen ones."""
    pixels = frames.float()
    suspicions = []
    brightest = pixels.mean(dim=1).flatten(1).quantile(0.99, dim=1)
    black = int((brightest < BLACK).sum())
    if black == len(frames):
        suspicions.append(Suspicion("black", "black"))
    elif 2 * black > len(frames):
        suspicions.append(Suspicion("partly black", f"{black} of {len(frames)} frames are black"))
    if len(frames) > 1 and black < len(frames):
        changes = (pixels[1:] - pixels[:-1]).abs().flatten(1).mean(dim=1)
        if bool((changes < FROZEN).all()):
            suspicions.append(Suspicion("frozen", "frozen: all frames show the same image"))
    return suspicions


def segment_extent(facts: VideoFacts, start: float | None, end: float | None) -> tuple[float, int]:
    """Return the length in seconds and the number of frames of the part of a file from `start` to `end` seconds.

    None: from the beginning, to the end of the file.
    """
    span = find_span(facts.timeline, start, end)
    stop = min(span.stop, len(facts.timeline.times))
    return min(span.finish, facts.timeline.duration) - span.begin, stop - span.first


def file_suspicions(facts: VideoFacts, seconds: float, frames: int, *, sampled: int) -> list[Suspicion]:
    """Return what is suspicious about a file and the part of it that is the video.

    `seconds`, `frames`: length of this part. `sampled`: number of frames that the recipe samples.
    """
    suspicions = []
    if seconds < SHORT:
        suspicions.append(Suspicion("short", f"short: {seconds:.2g} s"))
    elif frames < sampled:
        suspicions.append(Suspicion("few frames", f"few frames: {frames}, and the recipe samples {sampled}"))
    if facts.truncated:
        suspicions.append(Suspicion("truncated or damaged", "truncated or damaged"))
    if facts.declared_frames and abs(facts.declared_frames - facts.frames) > 1:
        message = f"its header declares {facts.declared_frames} frames, it has {facts.frames}"
        suspicions.append(Suspicion("wrong frame count", message))
    if facts.rotation:
        suspicions.append(Suspicion("rotated", f"rotated by {facts.rotation} degrees (applied)"))
    if facts.mirrored:
        suspicions.append(Suspicion("mirrored", "mirrored (applied)"))
    if facts.varies:
        message = "its frame rate varies (frames are sampled by time)"
        suspicions.append(Suspicion("variable frame rate", message))
    return suspicions


def caption_statistics(split: Split, lengths: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Return the statistics of a split's captions. `lengths`: tokens of each caption before truncation.

    Triples are minimum, median and maximum.
    """
    per_video = np.bincount(split.caption_videos[: split.pairs], minlength=len(split.videos))
    tokens = np.asarray(lengths)
    videos_of: dict[str, set[str]] = defaultdict(set)
    for caption in split.captions:
        videos_of[" ".join(caption.text.lower().split())].add(caption.video_id)
    shared = [text for text, videos in videos_of.items() if len(videos) > 1]
    truncated = tokens > max_tokens
    return {
        "videos": len(split.videos),
        "captions": len(split.captions),
        "captions_per_video": [int(per_video.min()), float(np.median(per_video)), int(per_video.max())],
        "tokens": [int(tokens.min()), float(np.median(tokens)), int(tokens.max())],
        "max_tokens": max_tokens,
        "captions_truncated": int(truncated.sum()),
        "tokens_truncated_share": float((tokens - max_tokens)[truncated].sum() / tokens.sum()),
        "captions_of_several_videos": len(shared),
        "examples_of_several_videos": shared[:5],
    }


def duplicates(hashes: Mapping[str, str], files: Mapping[str, str]) -> list[list[str]]:
    """Return groups of videos from different files with the same content.

    `hashes`: video id -> hash of its file; `files`: video id -> path. Segments of one file are not duplicates.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for video_id, value in hashes.items():
        if value != "unreadable":
            groups[value].setdefault(files[video_id], video_id)
    return [list(group.values()) for group in groups.values() if len(group) > 1]
