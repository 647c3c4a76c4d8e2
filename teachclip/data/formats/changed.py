"""Formats that read what another one reads and change it: `module:NAME`, where NAME is the other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from teachclip.data.annotations.records import Annotations
from teachclip.data.formats import FORMATS
from teachclip.errors import RecipeError
from teachclip.registry import resolve


def changed_reader(name: str, change: Callable[[Annotations], Annotations]) -> Callable[..., Annotations]:
    """Return a reader of what the format `name` reads, changed; for the `__getattr__` of a module.

    `name` may also be the `module:name` of a reader. Raises AttributeError for a format that is not there.
    """
    try:
        read = resolve("data format", name, FORMATS)
    except RecipeError as error:
        raise AttributeError(str(error)) from error

    def read_changed(**files: Any) -> Annotations:
        return change(read(**files))

    return read_changed
