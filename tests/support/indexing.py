"""Bring an index up to date as tests want it."""

from __future__ import annotations

from typing import Any

from teachclip.search.limits import Limits
from teachclip.search.update import Report, update_index

ONE_WORKER = Limits(workers=1)


def update(index: Any, folders: Any = (), wanted: Any = None, **options: Any) -> Report:
    """Bring an index up to date, with one worker and no progress bar."""
    return update_index(index, folders, wanted, limits=ONE_WORKER, progress=False, **options)
