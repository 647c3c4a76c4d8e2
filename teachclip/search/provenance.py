"""Which student vectors are of: all that they depend on besides texts and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from teachclip.errors import DataError
from teachclip.store.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from teachclip.models.modeling import StudentModel

STUDENT_SETTINGS = (
    *("temporal_layers", "temporal_heads", "temporal_activation", "pooling", "pooling_temperature", "mask_padding"),
    *("attention", "attention_input", "attention_rescale", "adapters", "vectors"),
)
BACKBONE_SETTINGS = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")
"""Settings that change vectors although the weights stay. Others, such as folders and versions, do not."""


def student_provenance(student: StudentModel) -> dict[str, Any]:
    """Return all that a student's vectors depend on, besides videos and texts. Raises DataError without processor."""
    from teachclip.scoring.token_store import weights_hash

    processor = student.processor
    if processor is None:
        raise DataError("this student has no processor, so it cannot encode files")
    sampling = {key: value for key, value in processor.frame_sampling.items() if key != "augmentation_seed"}
    return {
        "weights": weights_hash(student, rounded=True),  # exports in half precision are the same student
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
