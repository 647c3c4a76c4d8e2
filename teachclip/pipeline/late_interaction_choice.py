"""Whether late interaction is better than mean pooling on some data: what a recipe changes where it is.

Where the closest frame says more than the mean of all, a caption speaks of some frames of its video. There it pays to
judge every frame by itself and to teach late interaction by frame sets; elsewhere both cost recall.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.errors import CheckpointError
from teachclip.evaluation.comparison import compare
from teachclip.evaluation.per_query import PerQuery, per_query
from teachclip.evaluation.retrieval import Ranks
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.late_interaction import LateInteraction
from teachclip.models.mean_pooling import MeanPooling
from teachclip.pipeline import build
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.loading import where_late_interaction
from teachclip.recipe.schema import Recipe
from teachclip.store.files import read_json, write_atomic

METRIC = "recall_at_10"
"""Text to video: of the recalls it has the least noise."""

FILE = "late_interaction.json"
"""Of a run's folder: what was measured. A run that goes on does not measure again, on whatever machine it is."""

Measured = dict[str, Any]
"""What was measured: see `measure`."""


def kept_measurement(recipe: Recipe, folder: Path | None = None) -> Measured | None:
    """Return what a run of this recipe has measured before; None if nothing, or if the recipe asks for nothing.

    `folder`: of the run; None: the recipe's. Raises CheckpointError for a damaged file.
    """
    path = (folder or recipe.output) / FILE
    if not recipe.if_late_interaction or not path.exists():
        return None
    try:
        measured = dict(read_json(path))
        measured["better"] = bool(measured["better"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it, and the run measures again") from error
    return measured


def keep_measurement(recipe: Recipe, measured: Measured) -> None:
    """Write what was measured into the folder of a run."""
    write_atomic(recipe.output / FILE, json.dumps(measured, indent=1).encode())


def possible_recipes(recipe: Recipe, measured: Measured | None = None) -> tuple[Recipe, ...]:
    """Return what a recipe with `if_late_interaction` may turn out to be: without and with it, or what was measured.

    None of them has that key. A recipe without it is its only one.
    """
    if not recipe.if_late_interaction:
        return (recipe,)
    both = recipe.model_copy(update={"if_late_interaction": []}), where_late_interaction(recipe)
    return both if measured is None else (both[measured["better"]],)


def as_trained(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """Return the recipe that the run in its folder, or another, trained with; itself before it has a run."""
    measured = kept_measurement(recipe, folder)
    return recipe if measured is None else possible_recipes(recipe, measured)[0]


def measure(work: Workspace) -> Measured:
    """Return whether late interaction is better than mean pooling on the selection split, and by how much.

    It is `better` if the best cosine of the backbone's own text and frames finds more captions of the selection split
    among the first ten than mean pooling, `late_interaction` than `mean_pooling` in percent, with a 95 % interval
    over the videos, `low` to `high`, above zero. Nothing is trained. All processes take part, the main one decides.
    """
    mean, late = (_ranks(work, scorer) for scorer in (MeanPooling, LateInteraction))
    (item,) = (item for item in compare(mean, late) if (item.direction, item.metric) == ("t2v", METRIC))
    better = item.low > 0
    log(
        f"if_late_interaction is {'' if better else 'not '}applied: R@10 on the selection split is {item.second:.1f} "
        f"by late interaction, {item.first:.1f} by mean pooling; difference {item.difference:+.1f} "
        f"[{item.low:+.1f}, {item.high:+.1f}]"
    )
    scores = {"late_interaction": item.second, "mean_pooling": item.first, "low": item.low, "high": item.high}
    measured: Measured = work.processes.gather({"better": better, **scores})[0]
    return measured


def _ranks(work: Workspace, kind: type[MeanPooling]) -> PerQuery:
    split, ranks = work.selection_split(), list[Ranks]()
    inputs = work.inputs(split, work.backbone, encoders=work.recipe.train.encoders)
    scorer = kind(work.backbone).to(work.device)
    blocks = build.build_blocks(work.recipe)
    evaluate_split(scorer, inputs, split, blocks, work.device, work.processes, keep_ranks=ranks.append)
    return per_query(ranks[0], split)
