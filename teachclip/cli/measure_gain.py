"""`teachclip measure-gain`."""

from teachclip.studies.measure_gain import main

__all__ = ["main"]
