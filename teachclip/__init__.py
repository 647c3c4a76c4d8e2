"""teachclip: distil heavy video-text retrieval models into a compact student for video search by text."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load_student": "teachclip.models.student",
    "StudentModel": "teachclip.models.student",
    "StudentConfig": "teachclip.models.student",
    "StudentProcessor": "teachclip.models.processing",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import the public models on first use, so that `import teachclip` stays light."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'teachclip' has no attribute {name!r}")
