"""Which checkpoint of a run is kept: the best on the selection split, or the last where that split is too small."""

from __future__ import annotations

import logging

from teachclip.data.annotations.records import Split
from teachclip.evaluation.certainty import FEW_VIDEOS

log = logging.getLogger(__name__)

LAST_STEP = "last step"
"""What results say under `selected_by` where nothing was selected."""


def selects_last(split: Split) -> bool:
    """Return whether a selection split has too few videos to select on, and warn if so.

    With fewer than `FEW_VIDEOS` the differences between steps are mostly chance: their best is a lucky one.
    """
    few = len(split.videos) < FEW_VIDEOS
    if few:
        log.warning(
            "warning: %s has %d videos, fewer than the %d that tell steps apart: the last step is kept, not the best",
            *(split.name, len(split.videos), FEW_VIDEOS),
        )
    return few
