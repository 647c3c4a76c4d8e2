"""Which function a kind of loss is, and checks of what losses are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from teachclip.errors import RecipeError
from teachclip.registry import closest, resolve


def pick(what: str, kind: str, table: Mapping[str, str]) -> Callable[..., Any]:
    """Return the function of a kind of loss: a name of `table`, or `module:name`.

    Raises ValueError for an unknown name, RecipeError for a `module:name` that cannot be imported.
    """
    if kind not in table and ":" not in kind:
        known = ", ".join(table)
        raise ValueError(
            f"unknown kind of {what} loss {kind!r}; known: {known}, or module:name{closest(kind, table)}"
        )
    function: Callable[..., Any] = resolve(f"{what} loss", kind, table)
    return function


def check_distances(what: str, kind: str, values: Any, scores: Tensor) -> None:
    """Raise RecipeError unless a loss of someone's own gave a number per row or per element of `scores`."""
    allowed = scores.shape[:1], scores.shape
    if not isinstance(values, Tensor) or values.shape not in allowed:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise RecipeError(
            f"{what} loss {kind!r} returned {got}; allowed: a number per row, {tuple(allowed[0])}, or per element, "
            f"{tuple(allowed[1])}"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless a tensor is a matrix with something in it."""
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name} must be a matrix with at least one element, got shape {tuple(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless two tensors have the same shape."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but {other_name} has {tuple(other.shape)}; they must be equal"
        )


def check_mask(name: str, mask: Tensor, of: Tensor) -> None:
    """Raise ValueError unless a mask is bool and has the shape of what it masks."""
    if mask.dtype != torch.bool or mask.shape != of.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"{name} must be bool of shape {tuple(of.shape)}, got {got}")
