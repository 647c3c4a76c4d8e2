"""What is odd about videos and captions: the checks of the data doctor, on decoded frames, facts and token counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.data.annotations.records import Split
from teachclip.data.video.probe import VideoFacts
from teachclip.data.video.timeline import find_part

BLACK = 12.0
"""A frame whose brightest 1 % of pixels is below this, of 255, counts as black."""

STILL = 0.75
"""Frames that differ by less than this, of 255 and on average over all pixels, count as the same picture."""

SHORT = 1.0
"""Seconds below which a video counts as short."""


@dataclass
class Finding:
    """What is known of one video. `reason`: why it cannot be used; `oddities`: what to look at.

    `facts` are the file's, `seconds` is the length of the part that is the video. `is_partial`: some of it is
    damaged.
    """

    id: str
    path: str
    split: str
    reason: str = ""
    facts: VideoFacts | None = None
    oddities: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    is_partial: bool = False


def frame_oddities(frames: Tensor) -> list[str]:
    """Return what is odd about decoded frames, uint8 (frames, 3, height, width): black or frozen pictures."""
    pixels = frames.float()
    found = []
    brightest = pixels.mean(dim=1).flatten(1).quantile(0.99, dim=1)
    black = int((brightest < BLACK).sum())
    if black == len(frames):
        found.append("black")
    elif 2 * black > len(frames):
        found.append(f"{black} of {len(frames)} frames are black")
    if len(frames) > 1 and black < len(frames):
        changes = (pixels[1:] - pixels[:-1]).abs().flatten(1).mean(dim=1)
        if bool((changes < STILL).all()):
            found.append("frozen: all its frames show the same picture")
    return found


def part_of(facts: VideoFacts, start: float | None, end: float | None) -> tuple[float, int]:
    """Return the length in seconds and the number of frames of the part of a file that is a video."""
    part = find_part(facts.timeline, start, end)
    stop = min(part.stop, len(facts.timeline.times))
    return min(part.finish, facts.timeline.duration) - part.begin, stop - part.first


def facts_oddities(facts: VideoFacts, seconds: float, frames: int, *, planned: int) -> list[str]:
    """Return what is odd about a file and the part of it that is a video: `seconds` long, of so many `frames`.

    `planned`: frames that the frame sampling asks for.
    """
    found = []
    if seconds < SHORT:
        found.append(f"short: {seconds:.2g} s")
    elif frames < planned:
        found.append(f"few frames: {frames}, the plan asks for {planned}")
    if facts.cut_off:
        found.append("cut off or damaged")
    if facts.promised_frames and abs(facts.promised_frames - facts.frames) > 1:
        found.append(f"its header promises {facts.promised_frames} frames, it has {facts.frames}")
    if facts.rotation:
        found.append(f"rotated by {facts.rotation} degrees (honoured)")
    if facts.varies:
        found.append("its frame rate varies (frames are taken by time)")
    return found


def caption_facts(split: Split, lengths: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Return the numbers of a split's captions. `lengths`: tokens of each caption before it is cut."""
    per_video = np.bincount(split.caption_videos, minlength=len(split.videos))
    tokens = np.asarray(lengths)
    homes: dict[str, set[str]] = defaultdict(set)
    for caption in split.captions:
        homes[" ".join(caption.text.lower().split())].add(caption.video_id)
    shared = [text for text, owners in homes.items() if len(owners) > 1]
    cut = tokens > max_tokens
    return {
        "videos": len(split.videos),
        "captions": len(split.captions),
        "captions_per_video": [int(per_video.min()), float(np.median(per_video)), int(per_video.max())],
        "tokens": [int(tokens.min()), float(np.median(tokens)), int(tokens.max())],
        "max_tokens": max_tokens,
        "captions_cut": int(cut.sum()),
        "tokens_cut_share": float((tokens - max_tokens)[cut].sum() / tokens.sum()),
        "captions_of_several_videos": len(shared),
        "examples_of_several_videos": shared[:5],
    }


def same_files(hashes: Mapping[str, str], files: Mapping[str, str]) -> list[list[str]]:
    """Return groups of videos whose files are different but have the same content.

    `hashes`: video id -> hash of its file; `files`: video id -> path. Segments of one file are no duplicates.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for video_id, value in hashes.items():
        if value != "unreadable":
            groups[value].setdefault(files[video_id], video_id)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def count_oddities(findings: Sequence[Finding]) -> Counter[str]:
    """Count oddities by kind, which is what stands before the colon or the first number."""
    kinds: Counter[str] = Counter()
    for finding in findings:
        kinds.update({kind_of(oddity) for oddity in finding.oddities})
    return kinds


def kind_of(oddity: str) -> str:
    """Return the kind of an oddity, for counting."""
    for start, kind in _KINDS.items():
        if oddity.startswith(start):
            return kind
    return "partly black" if "frames are black" in oddity else oddity


_KINDS = {
    "black": "black",
    "frozen": "frozen",
    "short": "too short",
    "few frames": "fewer frames than planned",
    "cut off": "cut off or damaged",
    "only a part": "only partly decodable",
    "its header": "frame count wrong",
    "rotated": "rotated",
    "its frame rate": "variable rate",
}


def thumbnails(frames: Tensor, *, height: int = 72) -> np.ndarray:
    """Return small pictures of frames, uint8 (frames, height, width, 3), from uint8 (frames, 3, height, width)."""
    scale = height / frames.shape[-2]
    size = (height, max(1, round(frames.shape[-1] * scale)))
    small = torch.nn.functional.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
