"""teachclip: distil heavy video-text retrieval models into a compact student for video search by text."""

from __future__ import annotations

from typing import Any

from teachclip.auto_classes import register_student

__version__ = "0.1.0"

_LAZY = {
    "StudentConfig": "teachclip.models.student",
    "StudentModel": "teachclip.models.student",
    "StudentProcessor": "teachclip.models.processing",
    "VideoIndex": "teachclip.search.index",
    "decode_frames": "teachclip.data.video.decode",
    "distill": "teachclip.pipeline.distill",
    "evaluate": "teachclip.pipeline.evaluate",
    "export_onnx": "teachclip.onnx.export",
    "export_student": "teachclip.pipeline.export",
    "load_onnx": "teachclip.onnx.student",
    "load_recipe": "teachclip.recipe.loading",
    "load_student": "teachclip.models.student",
    "precompute": "teachclip.pipeline.precompute",
    "prepare": "teachclip.data_check.prepare",
    "soup": "teachclip.pipeline.soup",
    "study": "teachclip.studies.run",
    "train_teacher": "teachclip.pipeline.train_teacher",
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import teachclip` stays light."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'teachclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_student()
