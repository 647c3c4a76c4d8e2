"""Queries become vectors: what a query encoder must do, and the one that uses the student itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from teachclip.errors import DataError
from teachclip.store.fingerprint import describe_difference, fingerprint_of

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel

STUDENT_SETTINGS = (
    *("temporal_layers", "temporal_heads", "temporal_activation", "pooling", "pooling_temperature", "mask_padding"),
    *("attention", "attention_input", "attention_rescale", "adapters"),
)
BACKBONE_SETTINGS = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")
"""Settings that change vectors although the weights stay. Others, such as folders and versions, do not."""


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
        """See `QueryEncoder`."""
        return self.student.encode_video(list(videos), progress=False).numpy()


def load_queries(model: str, device: str | None = None) -> StudentQueries:
    """Load the query encoder of a student's folder, file or hub id. Raises CheckpointError, DataError."""
    return StudentQueries(load_for_search(model, device))


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


def student_provenance(student: StudentModel) -> dict[str, Any]:
    """Return all that a student's vectors depend on, besides videos and texts. Raises DataError without processor."""
    from teachclip.scoring.token_store import weights_hash

    processor = student.processor
    if processor is None:
        raise DataError("this student has no processor, so it cannot encode files")
    sampling = {key: value for key, value in processor.frame_sampling.items() if key != "augmentation_seed"}
    return {
        "weights": weights_hash(student),
        "student": _settings(student.config.to_dict(), (*STUDENT_SETTINGS, *BACKBONE_SETTINGS)),
        "frame sampling": sampling,
        "frame size": processor.size,
        "frame transform": processor.transform.describe(),
        "mean": list(processor.mean),
        "std": list(processor.std),
    }


def _settings(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the settings `names` of a configuration and of those in it."""
    inner = {key: _settings(value, names) for key, value in config.items() if isinstance(value, dict)}
    own = {key: value for key, value in config.items() if key in names and not isinstance(value, dict)}
    return {**own, **{key: value for key, value in inner.items() if value}}


def student_fingerprint(student: StudentModel) -> str:
    """Return the sha256 of `student_provenance`."""
    return fingerprint_of(student_provenance(student))


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
