"""Whether frame-set distillation is worth having on some data: it teaches late interaction, which must be better."""

from __future__ import annotations

import json
from typing import Any

from teachclip.console import log
from teachclip.evaluation.comparison import compare
from teachclip.evaluation.per_query import PerQuery, per_query
from teachclip.evaluation.retrieval import Ranks
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.late_interaction import LateInteraction
from teachclip.models.mean_pooling import MeanPooling
from teachclip.pipeline import build
from teachclip.pipeline.workspace import Workspace
from teachclip.store.files import read_json, write_atomic

METRIC = "recall_at_10"
"""Text to video: of the recalls it has the least noise."""


FILE = "frame_sets.json"
"""Of a run's folder: what was chosen. A run that goes on does not choose again, on whatever machine it is."""


def kept_choice(work: Workspace) -> dict[str, Any] | None:
    """Return what the run has chosen, or choose and keep it; the main process decides for all.

    See `choose_frame_sets`.
    """
    path, processes = work.recipe.output / FILE, work.processes
    kept = processes.gather(read_json(path) if processes.is_main and path.exists() else None)[0]
    if kept is not None:
        return dict(kept)
    choice: dict[str, Any] | None = processes.gather(choose_frame_sets(work))[0]
    if choice is not None and processes.is_main:
        write_atomic(path, json.dumps(choice, indent=1).encode())
    return choice


def choose_frame_sets(work: Workspace) -> dict[str, Any] | None:
    """Return whether a recipe with `losses.frame_sets.only_if_better` uses frame sets, and why; None without the key.

    They are `used` if the scorer of the sets, the best cosine of the backbone's own text and frames, finds more
    captions of the selection split among the first ten than mean pooling, `late_interaction` than `mean_pooling` in
    percent, with a 95 % interval over the videos, `low` to `high`, above zero.
    """
    term = work.recipe.losses.frame_sets
    if not (term.is_used and term.only_if_better):
        return None
    mean, late = (_ranks(work, scorer) for scorer in (MeanPooling, LateInteraction))
    (item,) = (item for item in compare(mean, late) if (item.direction, item.metric) == ("t2v", METRIC))
    used = item.low > 0
    log(
        f"frame sets are {'' if used else 'not '}used: R@10 on the selection split is {item.second:.1f} by late "
        f"interaction, their scorer, {item.first:.1f} by mean pooling; difference {item.difference:+.1f} "
        f"[{item.low:+.1f}, {item.high:+.1f}]"
    )
    scores = {"late_interaction": item.second, "mean_pooling": item.first, "low": item.low, "high": item.high}
    return {"used": used, **scores}


def _ranks(work: Workspace, kind: type[MeanPooling]) -> PerQuery:
    split, ranks = work.selection_split(), list[Ranks]()
    inputs = work.inputs(split, work.backbone, encoders=work.recipe.train.encoders)
    scorer = kind(work.backbone).to(work.device)
    blocks = build.build_blocks(work.recipe)
    evaluate_split(scorer, inputs, split, blocks, work.device, work.processes, keep_ranks=ranks.append)
    return per_query(ranks[0], split)
