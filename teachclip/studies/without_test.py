"""The data of a recipe without its test split, so that no trial that chooses settings can read it.

`data.format=teachclip.studies.without_test:NAME` reads what `data.format=NAME` reads and drops the test split; NAME
may also be the `module:name` of a reader. The captions of test stay known as texts that nothing is taught on, so that
a text encoder learns from the same texts as where test is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from teachclip.data.annotations.records import Annotations
from teachclip.data.annotations.uncaptioned import plain_text
from teachclip.data.formats.changed import changed_reader


def without_test(format_name: str) -> str:
    """Return the name of the format that reads the same data without its test split."""
    return f"{__name__}:{format_name}"


def __getattr__(name: str) -> Callable[..., Annotations]:
    return changed_reader(name, _without_test)


def _without_test(annotations: Annotations) -> Annotations:
    excluded = {split: reasons for split, reasons in annotations.excluded.items() if split != "test"}
    texts = frozenset(plain_text(caption.text) for caption in annotations.test or ())
    return replace(annotations, test=None, excluded=excluded, hidden_texts=annotations.hidden_texts | texts)
