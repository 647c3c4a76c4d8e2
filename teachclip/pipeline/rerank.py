"""Rerank what a search found: a teacher of a recipe scores the best moment of each video anew.

The teacher's tokens of a moment are kept in the index, so that they are computed once. The teacher reads the frames
that the recipe's frame sampling takes of the moment, as in training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachclip.data.annotations.records import Caption, Video
from teachclip.data.batches import Tokenized
from teachclip.data.frames.live import LiveFrames
from teachclip.data.video.workers import Decoding
from teachclip.errors import DataError, RecipeError
from teachclip.models.backbone import load_config
from teachclip.pipeline.build import build_frame_sampling, build_processor
from teachclip.pipeline.teachers import open_teachers
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.registry import closest
from teachclip.scorer import teacher_traits
from teachclip.scoring.inputs import PixelInputs, encode_text_batch, encode_video_batch, to_device
from teachclip.scoring.token_store import VIDEOS_PER_SHARD, architecture_hash, read_tokens, store_tokens, weights_hash
from teachclip.search.index import VideoIndex
from teachclip.search.results import Found
from teachclip.search.scan import date_of
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.row_plan import row_keys


class TeacherReranker:
    """Scores texts and moments by a teacher of a recipe."""

    def __init__(self, recipe: RecipeSource, teacher: str, *, device: str | None = None) -> None:
        """`teacher`: its label. Raises RecipeError for an unknown one, and as `TeacherHandle.check`."""
        self.recipe = load_recipe(recipe)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        handles = open_teachers(self.recipe, self.device)
        if teacher not in handles:
            allowed = ", ".join(handles) or "the recipe has no teachers"
            raise RecipeError(f"--rerank {teacher!r}: allowed: {allowed}{closest(teacher, handles)}")
        if handles[teacher].reads_relevance:
            raise RecipeError(f"--rerank {teacher!r} reads scores of training pairs from a file: it cannot rerank")
        handles[teacher].check(self.recipe)
        self.teacher = handles[teacher].model
        processor = build_processor(self.recipe, load_config(self.recipe.student.backbone))
        self.how = teacher_traits(self.teacher).preprocessing or processor.preprocessing
        sampling, workers = build_frame_sampling(self.recipe), self.recipe.frames.workers
        self.decoding = Decoding(sampling, self.how.transform, workers=workers)

    @torch.no_grad()
    def rerank(self, index: VideoIndex, text: str, found: Sequence[Found]) -> list[Found]:
        """Return what a search of `index` by `text` found in the order of the teacher's scores, with these scores.

        The score of a video is that of its best part. Raises DataError for a text that cannot be encoded or a file
        that cannot be read any more.
        """
        if not found:
            return []
        inputs = self._inputs(text, found)
        parts = [one.parts[0].id for one in found]
        provenance = self._provenance()
        videos = store_tokens(
            index.generation.folder / f"rerank-{fingerprint_of(provenance)[:12]}",
            keys=row_keys(parts),
            encode=lambda rows: encode_video_batch(self.teacher, to_device(inputs.videos(rows), self.device)),
            provenance=provenance,
            batch_size=self.recipe.teaching.batch_size,
            rows_per_shard=VIDEOS_PER_SHARD,
            processes=Processes(),
            label="rerank",
        )
        query = encode_text_batch(self.teacher, to_device(inputs.texts(np.arange(1)), self.device))
        scores = self.teacher.score(query, read_tokens(videos, np.arange(len(found)), self.device))[0].tolist()
        scored = [
            replace(one, score=score, parts=[replace(one.parts[0], score=score), *one.parts[1:]])
            for one, score in zip(found, scores, strict=True)
        ]
        return sorted(scored, key=lambda one: -one.score)

    def _inputs(self, text: str, found: Sequence[Found]) -> PixelInputs:
        """Return the text and the best part of each video as the teacher reads them."""
        videos = []
        for one in found:
            whole = one.video.parts == 1
            span = (None, None) if whole else (one.parts[0].start, one.parts[0].end)
            videos.append(Video(one.parts[0].id, Path(one.path), *span))
        for one in found:
            _check_unchanged(one)  # tokens are kept under the content that was indexed
        frames = LiveFrames(videos, self.decoding, {})
        tokenized = Tokenized.from_captions(
            [Caption("query", videos[0].id, text)],
            self.how.tokenizer,
            max_tokens=self.how.max_tokens,
            pad_id=self.how.pad_id,
            pad_to=self.how.pad_to,
        )
        rows = frames.rows_of([video.id for video in videos])
        return PixelInputs(tokenized, frames, rows, torch.tensor(self.how.mean), torch.tensor(self.how.std))

    def _provenance(self) -> dict[str, Any]:
        """Return what a teacher's tokens of a moment depend on besides the moment."""
        return {
            "of": "moments",
            "model": {
                "class": type(self.teacher).__name__,
                "settings": architecture_hash(self.teacher),
                "weights": weights_hash(self.teacher),
            },
            "preprocessing": self.how.describe(),
            "frames": self.decoding.provenance(),
        }


def _check_unchanged(found: Found) -> None:
    """Raise DataError if the file of a video is not the one that was indexed, by its size and time."""
    try:
        status = os.stat(found.path)
    except OSError as error:
        raise DataError(f"{found.path}: {error.strerror}; bring the index up to date") from error
    if status.st_size != found.video.bytes or date_of(status.st_mtime_ns) != found.video.date:
        raise DataError(f"{found.path} has changed since it was indexed; bring the index up to date")
