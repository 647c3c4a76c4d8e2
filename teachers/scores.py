"""Relevance from a file: whatever scores pairs of captions and videos, in any language, can teach.

The file lists `caption_id, video_id, score` of the training pairs, all of them or the best of each caption; its
formats are in `teachers.score_files`. Ids are those of the catalogue: `tools/import_relevance.py RECIPE --write-ids
FOLDER` writes them with texts and video files. A second file may list `caption_id, frame, score`: how relevant frame
0, 1, ... of the caption's own video is, not negative; it is brought to sum 1, and an unlisted frame has none.

Scores are logits: students learn from their softmax (and `pearson` from its shape), so that cosines, which lie
close together, should be multiplied (`scale: 100` is CLIP's).

A pair that is not listed: `missing: lowest` gives it the lowest score that its caption lists, less `margin`. A top-k
list says of the pairs that it lacks only that none of them is above its last, and this is the highest score that
they can have: no order among them is made up, and nothing is said to be impossible, as a very low number would be
under a softmax. It holds for the caption's own video as well: a teacher that does not find it teaches just that. With
`margin: 0` nothing is invented; a caption that lists equal scores only, such as a single one, would then put all
videos level, so it is refused until a margin is given. `missing: refuse` takes whole matrices alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from teachclip.errors import DataError, RecipeError
from teachers.score_files import ENDINGS, Matrix, ids_beside, read_scores
from teachers.score_tables import Axis

BLOCK = 2048
"""Captions looked at together."""


class Scores(nn.Module):
    """A teacher that cannot encode: it reads relevance that was computed elsewhere.

    frames: file of the relevance of frames, if there is one. missing, margin: see the module. scale: all scores are
    multiplied by it, after `margin` was subtracted.
    """

    def __init__(
        self,
        path: Path,
        *,
        frames: Path | None = None,
        missing: Literal["lowest", "refuse"] = "lowest",
        margin: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value, is_fine, allowed in (
            ("missing", missing, missing in ("lowest", "refuse"), "lowest, refuse"),
            ("margin", margin, _is_number(margin) and margin >= 0, "a number, at least 0"),
            ("scale", scale, _is_number(scale) and scale > 0, "a number above 0"),
        ):
            if not is_fine:
                raise RecipeError(f"teacher 'scores': option {name} is {value!r}; allowed: {allowed}")
        for file in (path, *([frames] if frames else [])):
            if not file.is_file():
                raise DataError(f"{file}: no such file of scores")
            if file.suffix not in ENDINGS:
                raise DataError(f"{file}: the name of a file of scores ends with {', '.join(ENDINGS)}")
        self.path, self.frames_path = path, frames
        self.missing, self.margin, self.scale = missing, float(margin), float(scale)
        self.has_frame_relevance = frames is not None

    @classmethod
    def from_source(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        frames: str | os.PathLike[str] | None = None,
        missing: Literal["lowest", "refuse"] = "lowest",
        margin: float = 0.0,
        scale: float = 1.0,
    ) -> Scores:
        """Take a file of scores. Raises DataError if it is not there, RecipeError for an option out of range."""
        second = None if frames is None else Path(frames)
        return cls(Path(checkpoint), frames=second, missing=missing, margin=margin, scale=scale)

    def files(self) -> dict[str, Path]:
        """Return all files that are read, by what they are."""
        named = {"scores": self.path}
        if self.frames_path is not None:
            named["frames"] = self.frames_path
        for name, path in list(named.items()):
            for side in ("captions", "videos"):
                beside = ids_beside(path, Axis("", (), beside=side))
                if beside is not None and (name, side) != ("frames", "videos"):
                    named[f"{name}.{side}"] = beside
        return named

    def relevance_of(
        self, split: Any, *, frames: int, others: Sequence[Any] = (), scratch: Path | None = None
    ) -> GivenRelevance:
        """Read and check the relevance of a split (`teachclip.data.annotations.records.Split`).

        `frames`: frames per video. `others`: splits whose pairs may stand in the file and are skipped. `scratch`:
        folder for what does not fit into memory. Raises DataError, naming file and line, for whatever is wrong.
        """
        captions = Axis(
            "caption_id",
            [caption.id for caption in split.captions],
            frozenset(caption.id for other in others for caption in other.captions),
            f"caption of the {split.name} split",
            "captions",
        )
        videos = Axis(
            "video_id",
            [video.id for video in split.videos],
            frozenset(video.id for other in others for video in other.videos),
            f"video of the {split.name} split",
            "videos",
        )
        scores = read_scores(self.path, captions, videos, scratch=scratch)
        relevance = None
        if self.frames_path is not None:
            numbers = Axis("frame", [str(number) for number in range(frames)], kind=f"number below {frames}")
            relevance = read_scores(self.frames_path, captions, numbers, scratch=scratch)
        return GivenRelevance(self, scores, relevance, captions, split.caption_videos)


class GivenRelevance:
    """The relevance of all captions of a split, checked; `notes` say what of it is worth knowing."""

    def __init__(
        self, teacher: Scores, scores: Matrix, frames: Matrix | None, captions: Axis, caption_videos: np.ndarray
    ) -> None:
        self.teacher, self.scores, self.frames, self.captions = teacher, scores, frames, captions
        self.floor = np.empty(len(captions.ids), np.float32)
        self.notes: list[str] = []
        self._look(caption_videos)
        for start in range(0, len(captions.ids) if frames is not None else 0, BLOCK):
            self._frame_rows(slice(start, start + BLOCK))

    def rows(self, rows: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return `video_text` (rows, videos) and, if there is any, `frame_text` (rows, frames), float32."""
        block = self.scores.rows(rows)
        floor = self.floor[rows][:, None] - np.float32(self.teacher.margin)
        relevance = {"video_text": np.where(np.isnan(block), floor, block) * np.float32(self.teacher.scale)}
        if self.frames is not None:
            relevance["frame_text"] = self._frame_rows(rows)
        return relevance

    def _look(self, caption_videos: np.ndarray) -> None:
        """Find every caption's lowest score, and refuse what cannot teach."""
        listed = lost = total = 0
        for start in range(0, len(self.floor), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self.floor)))
            block = self.scores.rows(rows)
            absent = np.isnan(block)
            self._refuse(rows, absent.all(axis=1), "has no score")
            if self.teacher.missing == "refuse":
                self._refuse(rows, absent.any(axis=1), "lacks scores of some videos, and missing is 'refuse'")
            self.floor[rows] = lowest = np.nanmin(block, axis=1)
            level = absent.any(axis=1) & (lowest == np.nanmax(block, axis=1)) & (self.teacher.margin == 0)
            why = "lists equal scores only, so that every other video would tie with them; give options.margin"
            self._refuse(rows, level, why)
            listed, total = listed + int((~absent).sum()), total + absent.size
            lost += int(absent[np.arange(len(block)), caption_videos[rows]].sum())
        self.notes.append(f"{self.teacher.path}: {listed:,} of {total:,} pairs are listed")
        if lost:
            self.notes.append(f"{lost:,} of {len(self.floor):,} captions do not list their own video")

    def _refuse(self, rows: slice, wrong: np.ndarray, why: str, path: Path | None = None) -> None:
        if wrong.any():
            name = self.captions.ids[rows.start + int(np.argmax(wrong))]
            raise DataError(f"{path or self.teacher.path}: caption {name!r} {why}")

    def _frame_rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return the relevance of frames, of sum 1."""
        assert self.frames is not None
        block = np.nan_to_num(self.frames.rows(rows), nan=0.0)
        if isinstance(rows, slice):  # while all captions are looked at
            path = self.teacher.frames_path
            self._refuse(rows, (block < 0).any(axis=1), "has a negative frame score; allowed: at least 0", path)
            self._refuse(rows, block.sum(axis=1) == 0, "has no relevance on any frame", path)
        return (block / block.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
