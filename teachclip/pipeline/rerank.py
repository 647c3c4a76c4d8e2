"""Rerank what a search found: a teacher scores the best moment of each video anew.

The teacher's tokens of a moment are kept in the index, so that they are computed once; a CrossEncoder has none and
reads the frames whenever it scores. A teacher of a recipe reads the frames that the recipe's frame sampling takes of
the moment, as in training; a CrossEncoder without a recipe those of the index's student.
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
from teachclip.data.video.sampling import FrameSampling
from teachclip.data.video.workers import Decoding
from teachclip.errors import DataError, RecipeError
from teachclip.evaluation.reranking import again_by_inputs, again_by_tokens
from teachclip.models.backbone import load_config
from teachclip.models.preprocessing import Preprocessing
from teachclip.pipeline.build import build_frame_sampling, build_processor
from teachclip.pipeline.teachers import TeacherHandle, open_teachers, reranker_section
from teachclip.processes import Processes
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.scorer import PairScorer, Tokens
from teachclip.scoring.inputs import PixelInputs, encode_text_batch, encode_video_batch, to_device
from teachclip.scoring.token_store import VIDEOS_PER_SHARD, architecture_hash, read_tokens, store_tokens, weights_hash
from teachclip.search.index import VideoIndex
from teachclip.search.results import Found
from teachclip.search.scan import date_of
from teachclip.store.fingerprint import fingerprint_of
from teachclip.store.row_plan import row_keys


class TeacherReranker:
    """Scores texts and moments by a teacher.

    how: what it reads. decoding: how frames of a moment are chosen and cut. batch_size: moments of a forward pass.
    """

    def __init__(
        self, teacher: Any, how: Preprocessing, decoding: Decoding, *, device: torch.device, batch_size: int = 32
    ) -> None:
        self.teacher, self.how, self.decoding = teacher, how, decoding
        self.device, self.batch_size = device, batch_size

    @classmethod
    def of_recipe(cls, recipe: RecipeSource, teacher: str, *, device: str | None = None) -> TeacherReranker:
        """Return a teacher of a recipe by its label, or a CrossEncoder by its folder or hub id.

        It reads the frames of the recipe's sampling. Raises RecipeError for another text, and as
        `TeacherHandle.check`.
        """
        recipe, where = load_recipe(recipe), _device(device)
        handles = open_teachers(recipe, where)
        handle = handles.get(teacher) or TeacherHandle(reranker_section(teacher, list(handles)), where)
        if handle.reads_relevance:
            raise RecipeError(f"--rerank {teacher!r} reads scores of training pairs from a file: it cannot rerank")
        handle.check(recipe)
        processor = build_processor(recipe, load_config(recipe.student.backbone))
        how = handle.traits.preprocessing or processor.preprocessing
        decoding = Decoding(build_frame_sampling(recipe), how.transform, workers=recipe.frames.workers)
        return cls(handle.model, how, decoding, device=where, batch_size=recipe.teaching.pairs_at_once)

    @classmethod
    def of_cross_encoder(cls, index: VideoIndex, source: str, *, device: str | None = None) -> TeacherReranker:
        """Return a CrossEncoder by its folder or hub id, which reads the frames that the student of `index` reads.

        Raises RecipeError for another text, CheckpointError if it cannot be loaded.
        """
        where = _device(device)
        handle = TeacherHandle(reranker_section(source, []), where)
        handle.require()
        how: Any = handle.traits.preprocessing
        sampling = FrameSampling(**index.settings.provenance["frame sampling"])
        return cls(handle.model, how, Decoding(sampling, how.transform), device=where)

    @torch.no_grad()
    def rerank(self, index: VideoIndex, text: str, found: Sequence[Found]) -> list[Found]:
        """Return what a search of `index` by `text` found in the order of the teacher's scores, with these scores.

        The score of a video is that of its best part. Raises DataError for a text that cannot be encoded or a file
        that cannot be read any more.
        """
        if not found:
            return []
        inputs = self._inputs(text, found)
        if isinstance(self.teacher, PairScorer):  # it keeps nothing of a moment but its frames
            again = again_by_inputs(self.teacher, inputs, batch_size=self.batch_size, device=self.device)
        else:
            query = encode_text_batch(self.teacher, to_device(inputs.texts(np.arange(1)), self.device))
            again = again_by_tokens(self.teacher, query, self._tokens(index, inputs, found))
        scores = again(0, torch.arange(len(found))).tolist()
        scored = [
            replace(one, score=score, parts=[replace(one.parts[0], score=score), *one.parts[1:]])
            for one, score in zip(found, scores, strict=True)
        ]
        return sorted(scored, key=lambda one: -one.score)

    def _tokens(self, index: VideoIndex, inputs: PixelInputs, found: Sequence[Found]) -> Tokens:
        """Return the teacher's tokens of the best part of each video, from the index as far as it has them."""
        provenance = self._provenance()
        store = store_tokens(
            index.generation.folder / f"rerank-{fingerprint_of(provenance)[:12]}",
            keys=row_keys(one.parts[0].id for one in found),
            encode=lambda batch: encode_video_batch(self.teacher, to_device(batch, self.device)),
            read=inputs.videos,
            provenance=provenance,
            batch_size=self.batch_size,
            rows_per_shard=VIDEOS_PER_SHARD,
            processes=Processes(),
            label="rerank",
        )
        return read_tokens(store, np.arange(len(found)), self.device)

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


def open_reranker(
    index: VideoIndex, teacher: str, *, recipe: RecipeSource | None = None, device: str | None = None
) -> TeacherReranker:
    """Return who reranks what a search of `index` finds: see `TeacherReranker`; without a recipe a CrossEncoder."""
    if recipe is not None:
        return TeacherReranker.of_recipe(recipe, teacher, device=device)
    return TeacherReranker.of_cross_encoder(index, teacher, device=device)


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_unchanged(found: Found) -> None:
    """Raise DataError if the file of a video is not the one that was indexed, by its size and time."""
    try:
        status = os.stat(found.path)
    except OSError as error:
        raise DataError(f"{found.path}: {error.strerror}; bring the index up to date") from error
    if status.st_size != found.video.bytes or date_of(status.st_mtime_ns) != found.video.date:
        raise DataError(f"{found.path} has changed since it was indexed; bring the index up to date")
