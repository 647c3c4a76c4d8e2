"""The data of a recipe with the captions of its training videos withheld, to see what they are worth.

`data.format=teachclip.data.formats.withheld:NAME` reads what `data.format=NAME` reads and keeps the test split alone;
training then needs `data.uncaptioned` and `data.texts`. NAME may also be the `module:name` of a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats.changed import changed_reader

PREFIX = f"{__name__}:"


def __getattr__(name: str) -> Callable[..., Annotations]:
    return changed_reader(name, _withheld)


def _withheld(annotations: Annotations) -> Annotations:
    excluded = {split: reasons for split, reasons in annotations.excluded.items() if split == "test"}
    return replace(annotations, train=[], validation=None, excluded=excluded)
