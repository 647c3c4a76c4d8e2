"""What a recipe changes where a condition holds that is measured before training.

`if_better_teacher`: a teacher that is no better than mean pooling of the student's own backbone cannot say what
residual adapters should learn, and the captions themselves should weigh more beside it.

`if_late_interaction`: where the closest frame says more than the mean of all, a caption speaks of some frames of its
video. There it pays to judge every frame by itself and to teach late interaction by frame sets; elsewhere both cost
recall.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from teachclip.console import log
from teachclip.data.annotations.records import Split
from teachclip.errors import CheckpointError, RecipeError
from teachclip.evaluation.certainty import FEW_VIDEOS
from teachclip.evaluation.comparison import compare
from teachclip.evaluation.per_query import PerQuery, per_query
from teachclip.evaluation.retrieval import Ranks
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.late_interaction import LateInteraction
from teachclip.models.mean_pooling import MeanPooling
from teachclip.pipeline import build
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.pipeline.workspace import Workspace
from teachclip.recipe.conditions import BETTER_TEACHER, CONDITIONS, LATE_INTERACTION
from teachclip.recipe.loading import with_conditions
from teachclip.recipe.schema import Recipe
from teachclip.scoring.inputs import Inputs
from teachclip.store.files import read_json, write_atomic

METRIC = "recall_at_10"
"""Text to video: of the recalls it has the least noise."""

LEAD = 0.5
"""Where late interaction finds half as many again as mean pooling, options that teach it pay (RESULTS.md)."""

MOST = 2000
"""Training videos with which late interaction is measured; with more there are enough to select on."""

FILE = "conditions.json"
"""Of a run's folder: what was measured. A run that goes on does not measure again, on whatever machine it is."""

Measured = dict[str, dict[str, Any]]
"""What was measured, by condition: see `measure`."""


def kept_measurement(recipe: Recipe, folder: Path | None = None) -> Measured | None:
    """Return what a run of this recipe has measured before; None if nothing, or if the recipe asks for nothing.

    `folder`: of the run; None: the recipe's. Raises CheckpointError for a damaged file, or one of other conditions.
    """
    path, asked = (folder or recipe.output) / FILE, conditions_of(recipe)
    if not asked or not path.exists():
        return None
    try:
        kept = read_json(path)
        return {name: {**kept[name], "holds": bool(kept[name]["holds"])} for name in asked}
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; delete it, and the run measures again") from error


def keep_measurement(recipe: Recipe, measured: Measured) -> None:
    """Write what was measured into the folder of a run."""
    write_atomic(recipe.output / FILE, json.dumps(measured, indent=1).encode())


def conditions_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the conditions under which a recipe changes something."""
    return tuple(name for name in CONDITIONS if getattr(recipe, name))


def possible_recipes(recipe: Recipe, measured: Measured | None = None) -> tuple[Recipe, ...]:
    """Return what a recipe may turn out to be: from no condition that holds to all, or what was measured.

    None of them has a condition. A recipe without any is its only one.
    """
    asked = conditions_of(recipe)
    if not asked:
        return (recipe,)
    ways = list(product((False, True), repeat=len(asked)))
    if measured is not None:
        ways = [tuple(measured[name]["holds"] for name in asked)]
    return tuple(
        with_conditions(recipe, [name for name, holds in zip(asked, way, strict=True) if holds]) for way in ways
    )


def as_trained(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """Return the recipe that the run in its folder, or another, trained with; itself before it has a run."""
    measured = kept_measurement(recipe, folder)
    return recipe if measured is None else possible_recipes(recipe, measured)[0]


def measure(work: Workspace) -> Measured:
    """Return which conditions of the recipe hold, and by how much. Nothing is trained.

    `if_late_interaction` holds if the best cosine of the backbone's own text and frames finds more captions among
    the first ten than mean pooling, by more than `LEAD` of what that finds: a smaller lead is gone once a student
    trains. It is measured on the training split, which the backbone does not know, up to `MOST` videos, else on the
    selection split; by the lower end of the 95 % interval over the videos. `if_better_teacher` holds if one of the
    teachers finds more on the selection split, by more than a standard error over the videos: a selection split is
    small, and by an interval a good teacher would often be missed; one of no worth is taken for better one time in
    six. By condition: `holds`; `measured` and `mean_pooling` in percent; `low` and `high` of their difference. Fewer
    than `FEW_VIDEOS` videos show nothing. All processes take part, the main one decides. Raises RecipeError for
    teachers none of which scores any text with any video.
    """
    measured: Measured = {}
    mean_pooling: dict[str, PerQuery] = {}
    for name in conditions_of(work.recipe):
        split, scorers = _measured_on(work, name), _scorers(work, name)
        if len(split.videos) < FEW_VIDEOS:
            log(
                f"{name} is taken not to hold: {split.name} has {len(split.videos)} videos, fewer than the "
                f"{FEW_VIDEOS} that tell"
            )
            measured[name] = {"holds": False, "videos": len(split.videos)}
            continue
        own = work.inputs(split, work.backbone, encoders=work.recipe.train.encoders)
        if split.name not in mean_pooling:
            mean_pooling[split.name] = _ranks(work, MeanPooling(work.backbone), own, split)
        others = {}
        for label, handle in scorers.items():  # a teacher reads what it says, late interaction what the backbone does
            scorer = LateInteraction(work.backbone) if handle is None else handle.model
            others[label] = _ranks(work, scorer, own if handle is None else work.inputs_for(scorer, split), split)
        measured[name] = work.processes.gather(_decide(name, mean_pooling[split.name], others, split.name))[0]
    return measured


def _measured_on(work: Workspace, name: str) -> Split:
    train = work.catalog.train
    if name == LATE_INTERACTION and train.is_paired and len(train.videos) <= MOST:
        return train
    return work.selection_split()


def _scorers(work: Workspace, name: str) -> dict[str, TeacherHandle | None]:
    """Return what is compared with mean pooling, by its label: teachers, or None for late interaction."""
    if name == LATE_INTERACTION:
        return {"late interaction": None}
    handles = work.teachers.values()
    found = {handle.label: handle for handle in handles if not handle.reads_relevance and not handle.scores_shortlist}
    if not found:
        raise RecipeError(
            f"{BETTER_TEACHER}: no teacher scores any text with any video, so that none can be measured; remove it"
        )
    return dict(found)


def _decide(name: str, mean: PerQuery, others: dict[str, PerQuery], split: str) -> dict[str, Any]:
    """Return what was measured of the best of the others, and log it."""
    items = {
        label: item
        for label, ranks in others.items()
        for item in compare(mean, ranks)
        if (item.direction, item.metric) == ("t2v", METRIC)
    }
    if name == LATE_INTERACTION:
        label, item = max(items.items(), key=lambda entry: entry[1].low)
        lead = LEAD * item.first
        holds, ask = item.low > lead, f"{lead:+.1f}"
    else:
        label, item = max(items.items(), key=lambda entry: entry[1].difference - entry[1].standard_error)
        holds = item.difference > item.standard_error
        ask = f"its standard error, {item.standard_error:.1f}"
    what = f"{name} {'holds' if holds else 'does not hold'}: R@10 on {split} is"
    log(
        f"{what} {item.second:.1f} by {label}, {item.first:.1f} by mean pooling; difference {item.difference:+.1f} "
        f"[{item.low:+.1f}, {item.high:+.1f}], to be above {ask}"
    )
    return {
        "holds": holds,
        "of": label,
        "measured": item.second,
        "mean_pooling": item.first,
        "low": item.low,
        "high": item.high,
    }


def _ranks(work: Workspace, scorer: Any, inputs: Inputs, split: Split) -> PerQuery:
    ranks, blocks = list[Ranks](), build.build_blocks(work.recipe)
    scorer.to(work.device)
    evaluate_split(scorer, inputs, split, blocks, work.device, work.processes, keep_ranks=ranks.append)
    return per_query(ranks[0], split)
