"""The Shapes dataset with the captions of its training videos withheld: what is left is the test split.

`data.format: teachclip.shapes.withheld:read`, with `data.uncaptioned` and `data.texts` for training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats.msrvtt import read as read_all


def read(
    *, annotations: Path, train: Path | None = None, validation: Path | None = None, test: Path | None = None
) -> Annotations:
    """Read the annotations as `msrvtt`, and drop the captions of training and validation. Raises DataError."""
    found = read_all(annotations=annotations, train=train, validation=validation, test=test)
    return replace(found, train=[], validation=None)
