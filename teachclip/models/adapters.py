"""Residual adapters: small learned corrections of frames, pooled videos and texts in the joint space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from teachclip.models.temporal import StdLinear

ADAPTER_PLACES = ("frame", "pooled", "text")
"""Where an adapter may be: on every frame before pooling, on the pooled video, on the text."""


class ResidualAdapter(nn.Module):
    """Return N(x) + W2 GELU(W1 sqrt(dim) N(x) + b1) + b2, with N(x) = x / |x|.

    It starts as the identity on directions: W2 and b2 are zero. sqrt(dim) N(x) has entries of about unit size,
    independent of the scale of the backbone. W1 starts from N(0, 0.05): with 0.02, as in other new layers, GELU is
    nearly linear at first and the adapter learns less in the same time.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = StdLinear(width, hidden, start_std=0.05)
        self.outer = StdLinear(hidden, width, start_std=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Correct `features` (..., dim), normalised or not. Returns the same shape in float32."""
        unit = F.normalize(features.float(), dim=-1)
        scaled = (unit * math.sqrt(unit.shape[-1])).to(
            self.inner.weight.dtype
        )  # the student may be in half precision
        return unit + self.outer(F.gelu(self.inner(scaled))).float()


class ResidualAdapters(nn.ModuleDict):
    """The adapters of a student by place; without one, features are unchanged."""

    def __init__(self, places: Sequence[str], width: int, hidden: int) -> None:
        super().__init__({place: ResidualAdapter(width, hidden) for place in places})
        self._are_spared = False

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Within it gradients pass through the adapters to what they read, and none reach their own weights."""
        self._are_spared = True
        try:
            yield
        finally:
            self._are_spared = False

    def adapt(self, place: str, features: Tensor) -> Tensor:
        """Apply the adapter of a place, one of `ADAPTER_PLACES`, to features (..., dim)."""
        if place not in self:
            return features
        if not self._are_spared:
            return self[place](features)  # type: ignore[no-any-return]
        weights = {name: weight.detach() for name, weight in self[place].named_parameters()}
        return functional_call(self[place], weights, (features,))  # type: ignore[no-any-return]
