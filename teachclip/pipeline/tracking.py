"""What the trackers of a run get besides the losses of each step: the recipe, and the final results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from accelerate import Accelerator

from teachclip.recipe.loading import dump_recipe
from teachclip.recipe.schema import Recipe


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers of `train.trackers`, with the keys of the recipe as hyperparameters."""
    if recipe.train.trackers:
        accelerator.init_trackers(recipe.name, config=dict(_flat(yaml.safe_load(dump_recipe(recipe)))))


def track_results(accelerator: Accelerator, results: Mapping[str, Any], step: int) -> None:
    """Give the trackers the metrics of each evaluated split, at the last step."""
    for split in ("validation", "test"):
        for direction, metrics in ((name, results.get(split, {}).get(name, {})) for name in ("t2v", "v2t")):
            accelerator.log({f"{split}/{direction}_{name}": value for name, value in metrics.items()}, step=step)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of nested mappings, with dots between, and its value as trackers take it."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, bool | int | float | str) else str(value)
