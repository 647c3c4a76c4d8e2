"""How far from the outputs of its encoder a parameter is: what layer-wise learning rates are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"\.(?:layers?|blocks)\.(\d+)\.")
_INPUTS = (".embeddings.", ".pre_layrnorm.")


def layers_from_top(names: Iterable[str]) -> dict[str, int]:
    """Return for the parameters of encoders, by their names, how many layers lie between them and the outputs.

    What follows the last layer, such as norms and projections, is at 0, the last layer at 1, the first of L layers at
    L, embeddings at L + 1. Text and vision layers are counted separately; a tower is what its names begin with up to
    the number of the layer. A rate that falls by a factor per layer is that of Howard and Ruder (ACL 2018, section
    3.2: discriminative fine-tuning) and Clark et al. (ICLR 2020, appendix A).
    """
    names = list(names)
    count: dict[str, int] = {}
    for name in names:
        if match := _LAYER.search(name):
            tower = _tower(name)
            count[tower] = max(count.get(tower, 0), int(match[1]) + 1)
    layers_of = {}
    for name in names:
        layers, match = count.get(_tower(name), 0), _LAYER.search(name)
        is_input = any(part in name for part in _INPUTS)
        layers_of[name] = layers - int(match[1]) if match else (layers + 1 if is_input and layers else 0)
    return layers_of


def _tower(name: str) -> str:
    """Return the half of a dual encoder that a parameter belongs to."""
    return name.partition("_model.")[0]
