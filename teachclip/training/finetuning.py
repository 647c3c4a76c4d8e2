"""How the encoders of a student or teacher move away from where they started, and how they are held back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def is_encoder_group(group: dict[str, Any]) -> bool:
    """Whether a group of `parameter_groups` is of the encoders."""
    return str(group.get("name", "")).startswith("clip")


def encoder_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of the encoders that an optimizer moves."""
    return [p for group in optimizer.param_groups if is_encoder_group(group) for p in group["params"]]


@contextmanager
def without_gradients(parameters: list[nn.Parameter], *, cut: bool) -> Iterator[None]:
    """Have a step leave `parameters` without a gradient, so that no optimizer moves them or learns of them.

    `cut`: spare the backward pass through them. Not where DistributedDataParallel waits for their gradients: there
    these are computed and dropped.
    """
    if cut:
        for parameter in parameters:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None


class StartPull:
    """Pulls encoders towards their start: p -= lr strength (p - p0), after each step, with the rate of the step.

    Decoupled from the gradient, as the weight decay in whose place it is. L2-SP (Li et al., ICML 2018, section 3.1)
    adds the square of p - p0 to the loss, which Adam would scale by its second moment. Make it before a checkpoint is
    loaded: p0 are the weights of that moment.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, strength: float) -> None:
        self._optimizer, self._strength = optimizer, strength
        self._starts = {p: p.detach().clone() for p in encoder_parameters(optimizer)} if strength else {}

    @torch.no_grad()
    def __call__(self) -> None:
        """Pull once."""
        if not self._starts:
            return
        for group in filter(is_encoder_group, self._optimizer.param_groups):  # loading a checkpoint makes new groups
            starts = [self._starts[parameter] for parameter in group["params"]]
            torch._foreach_lerp_(group["params"], starts, group["lr"] * self._strength)


class WeightAverage:
    """A running mean of the trained weights: m = d m + (1 - d) p after each step, in float32.

    Averages of the iterates of stochastic optimisation are Polyak and Juditsky's (1992); with an exponential mean
    that is evaluated in place of the weights, Tarvainen and Valpola's (NeurIPS 2017). d is at most
    (1 + steps) / (10 + steps), so that the mean does not remember the start of a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` steps in all."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        weights = [p.float() for p in self._weights.values()]
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - decay)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the mean of a checkpoint. Raises ValueError if it is of another model."""
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.tensors.items()}:
            raise ValueError("its mean of the weights is of other weights")
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model hold the mean until the block ends."""
        kept = {name: p.detach().clone() for name, p in self._weights.items()}
        self._set(self.tensors)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            parameter.copy_(tensors[name])


class FineTuning:
    """What is done around the steps of a run so that encoders keep what they know; nothing unless it is asked for.

    Make it before a checkpoint is loaded. frozen_steps: steps at first in which the encoders do not move. l2_start:
    strength of the `StartPull`. ema: decay of the `WeightAverage`, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        frozen_steps: int = 0,
        l2_start: float = 0.0,
        ema: float | None = None,
    ) -> None:
        self._frozen_steps, self._encoders = frozen_steps, encoder_parameters(optimizer)
        self._pull = StartPull(optimizer, l2_start)
        self.average = None if ema is None else WeightAverage(model, ema)

    def step(self, steps: int, *, cut: bool) -> AbstractContextManager[None]:
        """Return the context of the step after `steps` others; `cut`: see `without_gradients`."""
        return without_gradients(self._encoders, cut=cut) if steps < self._frozen_steps else nullcontext()

    def after_step(self, steps: int) -> None:
        """Do what follows a step of the optimizer, the last of `steps`."""
        self._pull()
        if self.average is not None:
            self.average.update(steps)

    def averaged(self) -> AbstractContextManager[None]:
        """Return the context in which the model is validated and kept: with its mean weights, if there are any."""
        return nullcontext() if self.average is None else self.average.in_place()
