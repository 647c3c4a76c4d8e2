"""The data of a recipe without its test split, so that no trial that chooses settings can read it.

`data.format=teachclip.studies.without_test:NAME` reads what `data.format=NAME` reads and drops the test split; NAME
may also be the `module:name` of a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import FORMATS
from teachclip.errors import RecipeError
from teachclip.registry import resolve


def without_test(format_name: str) -> str:
    """Return the name of the format that reads the same data without its test split."""
    return f"{__name__}:{format_name}"


def __getattr__(name: str) -> Callable[..., Annotations]:
    try:
        read = resolve("data format", name, FORMATS)
    except RecipeError as error:
        raise AttributeError(str(error)) from error

    def read_without_test(**files: Any) -> Annotations:
        annotations: Annotations = read(**files)
        excluded = {split: reasons for split, reasons in annotations.excluded.items() if split != "test"}
        return replace(annotations, test=None, excluded=excluded)

    return read_without_test
