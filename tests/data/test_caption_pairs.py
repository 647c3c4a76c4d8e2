"""Which captions are joined to "A then B"."""

from __future__ import annotations

from pathlib import Path

from teachclip.data.annotations.records import Caption, Split, Video
from teachclip.data.clauses import caption_pairs


def test_clips_are_of_different_videos_and_their_texts_are_different() -> None:
    texts = [("a", "a man talks"), ("a", "a dog runs"), ("b", "A man talks."), ("c", "a  dog runs"), ("c", "a cat")]
    videos = tuple(Video(name, Path(f"{name}.mp4")) for name in "abc")
    captions = tuple(Caption(str(row), video, text) for row, (video, text) in enumerate(texts))
    found = {tuple(pair) for seed in range(20) for pair in caption_pairs(Split("train", videos, captions), seed)}
    halves = {(0, 3), (0, 4), (1, 2), (1, 4), (2, 3), (2, 4)}
    assert found == halves | {(other, one) for one, other in halves}
