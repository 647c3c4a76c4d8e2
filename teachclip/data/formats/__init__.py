"""Readers of annotation files: one small module per published format, and one for own data.

A reader is a function `read(*, annotations, train, test) -> Annotations`; see `teachclip.data.catalog`.
"""

from collections.abc import Mapping

FORMATS: Mapping[str, str] = {
    "msrvtt": "teachclip.data.formats.msrvtt:read",
    "csv": "teachclip.data.formats.own:read",
}
"""The formats by the name that a recipe gives them."""
