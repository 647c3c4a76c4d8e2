"""Readers of annotation files: a module per published format; `custom`, `text_files`, `subtitles` for one's own.

The published formats are read strictly; one's own as people have it, and what was understood is shown.

A reader is a function `read(*, annotations, train, validation, test) -> Annotations`;
see `teachclip.data.annotations.catalog.load_catalog`.
"""

from collections.abc import Mapping

FORMATS: Mapping[str, str] = {
    "activitynet": "teachclip.data.formats.activitynet:read",
    "csv": "teachclip.data.formats.custom:read_csv",
    "didemo": "teachclip.data.formats.didemo:read",
    "jsonl": "teachclip.data.formats.custom:read_jsonl",
    "lsmdc": "teachclip.data.formats.lsmdc:read",
    "msrvtt": "teachclip.data.formats.msrvtt:read",
    "msvd": "teachclip.data.formats.msvd:read",
    "parquet": "teachclip.data.formats.custom:read_parquet",
    "subtitles": "teachclip.data.formats.subtitles:read",
    "text_files": "teachclip.data.formats.text_files:read",
    "vatex": "teachclip.data.formats.vatex:read",
    "xlsx": "teachclip.data.formats.custom:read_xlsx",
}
"""The formats by the name that a recipe gives them."""
