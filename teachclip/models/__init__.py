"""The student and its parts. Importing this package makes transformers' Auto classes know the student."""

from __future__ import annotations

from teachclip.models import student

__all__ = ["student"]
