"""The student, its layers and the dual encoders. Importing this package registers the student in transformers."""

from __future__ import annotations

from teachclip.models import student

__all__ = ["student"]
