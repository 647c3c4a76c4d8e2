"""`teachclip ablate`."""

from teachclip.studies.study import main

__all__ = ["main"]
