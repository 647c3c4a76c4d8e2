"""`teachclip measure-teachers`."""

from teachclip.studies.measure_teachers import main

__all__ = ["main"]
