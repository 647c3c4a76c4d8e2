"""Queries become vectors: what a query encoder must do, and the one that uses the student itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from teachclip.errors import CheckpointError, DataError
from teachclip.onnx.folder import is_onnx_folder
from teachclip.onnx.student import OnnxStudent, load_onnx
from teachclip.search.provenance import student_fingerprint, student_provenance
from teachclip.store.fingerprint import describe_difference, fingerprint_of

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel

TEXT_TOWER = "text-tower"
"""The folder of a generation with the student's text tower as ONNX, where that could be written."""

VIDEO_TOWER = "video"


class QueryEncoder(Protocol):
    """Turns texts, and perhaps videos, into vectors of one student.

    An index takes any object of this kind, for example one that runs an exported text encoder without torch.
    """

    @property
    def fingerprint(self) -> str:
        """Of the student, `student_fingerprint`; an index of another student refuses the vectors."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 (texts, dim), L2-normalised. Raises DataError for a text that cannot be encoded."""

    def videos(self, videos: Sequence[Any]) -> np.ndarray:
        """Return float32 (videos, dim) of files, parts of files or arrays of frames, as `encode_video` takes them.

        Raises DataError if there is no video encoder, VideoError for a video that cannot be read.
        """


class StudentQueries:
    """Encodes queries with a student."""

    def __init__(self, student: StudentModel):
        self.student = student
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """See `QueryEncoder`; computed at the first use, in a second for 150 million parameters."""
        if self._fingerprint is None:
            self._fingerprint = student_fingerprint(self.student)
        return self._fingerprint

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `QueryEncoder`."""
        return self.student.encode_text(list(texts), progress=False).numpy()

    def videos(self, videos: Sequence[Any]) -> np.ndarray:
        """See `QueryEncoder`; of several vectors per video their mean direction."""
        vectors = self.student.encode_video(list(videos), progress=False)
        if vectors.ndim == 3:
            vectors = vectors.mean(dim=1)
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        return vectors.numpy()


class OnnxQueries:
    """Encodes queries with a student that was exported as ONNX: texts need neither torch nor transformers.

    `student_for_videos` loads the student itself for example videos, if the folder has no video tower.
    """

    def __init__(self, student: OnnxStudent, student_for_videos: Callable[[], StudentModel] | None = None):
        self.student = student
        self._load = student_for_videos
        self._videos: StudentQueries | None = None

    @property
    def fingerprint(self) -> str:
        """See `QueryEncoder`; it is in the folder."""
        return self.student.config.fingerprint

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `QueryEncoder`."""
        return self.student.encode_text(list(texts), progress=False)

    def videos(self, videos: Sequence[Any]) -> np.ndarray:
        """See `QueryEncoder`."""
        if VIDEO_TOWER in self.student.config.towers or self._load is None:
            return np.asarray(self.student.encode_video(list(videos), progress=False))
        if self._videos is None:
            self._videos = StudentQueries(self._load())
        return self._videos.videos(videos)


def load_queries(model: str, device: str | None = None) -> QueryEncoder:
    """Load the query encoder of a student's folder (an ONNX folder too), file or hub id.

    Raises CheckpointError, DataError.
    """
    if is_onnx_folder(model):
        return OnnxQueries(load_onnx(model))
    return StudentQueries(load_for_search(model, device))


def write_text_tower(student: StudentModel, folder: Path) -> str:
    """Write the text tower of a student to `folder` as ONNX, so that a query needs no torch.

    Returns why that is not possible, "" if it was.
    """
    from teachclip.onnx.export import export_onnx

    try:
        export_onnx(student, folder, only="text")
    except CheckpointError as error:
        return str(error)
    return ""


def queries_of(folder: Path, model: str, device: str | None = None) -> QueryEncoder:
    """Return what encodes the queries of a generation: the text tower in its folder, or else the student.

    Raises CheckpointError, DataError.
    """
    tower = folder / TEXT_TOWER
    if is_onnx_folder(tower) and find_spec("onnxruntime") is not None:
        return OnnxQueries(load_onnx(tower), lambda: load_for_search(model, device))
    return load_queries(model, device)


def load_for_search(model: str, device: str | None = None) -> StudentModel:
    """Load a student that can encode texts and files, on `device`, None for a GPU if there is one."""
    import torch  # late, here and below: a query encoder of one's own may do without

    from teachclip.models.student import load_student

    student = load_student(model)
    if student.processor is None:
        raise DataError(
            f"{model}: has no tokenizer and frame settings; give the folder that `teachclip export` wrote"
        )
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        student.to(torch.device(chosen))
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device {chosen!r} cannot be used: {str(error).splitlines()[0]}") from error
    return student


def check_fingerprint(index: Path, made_by: dict[str, Any], model: str, queries: QueryEncoder) -> None:
    """Raise DataError if the vectors of an index were made by another student than the queries would be."""
    if queries.fingerprint == fingerprint_of(made_by):
        return
    what = ""
    if isinstance(queries, StudentQueries):
        now = student_provenance(queries.student)
        if now["weights"] == made_by["weights"]:
            what = f" ({describe_difference(made_by, now)})"
    raise DataError(
        f"{index}: was made by another student than this one{what}; search with the one of the index, {model}, or "
        f"re-encode the videos: teachclip index --index {os.fspath(index)} --model STUDENT"
    )
