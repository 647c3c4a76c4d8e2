"""The data of a recipe with the captions of its training videos withheld, to see what they are worth.

`data.format=teachclip.data.formats.withheld:NAME` reads what `data.format=NAME` reads and keeps the test split alone;
training then needs `data.uncaptioned` and `data.texts`. NAME may also be the `module:name` of a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import FORMATS
from teachclip.errors import RecipeError
from teachclip.registry import resolve

PREFIX = f"{__name__}:"


def __getattr__(name: str) -> Callable[..., Annotations]:
    try:
        read = resolve("data format", name, FORMATS)
    except RecipeError as error:
        raise AttributeError(str(error)) from error

    def read_withheld(**files: Any) -> Annotations:
        annotations: Annotations = read(**files)
        excluded = {split: reasons for split, reasons in annotations.excluded.items() if split == "test"}
        return replace(annotations, train=[], validation=None, excluded=excluded)

    return read_withheld
