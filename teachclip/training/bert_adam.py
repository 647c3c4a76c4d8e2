"""The optimizer of the published runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class BertAdam(torch.optim.Optimizer):
    """Adam as the official BERT code wrote it: no bias correction, decay added to the update.

    For a parameter p with gradient g, first scaled to norm 1 at most by itself (`g min(1, max_norm / (|g| + 1e-6))`):
    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr (m / (sqrt(v) + eps) + weight_decay p)`.

    Without bias correction the first steps are not of length lr: for a steady gradient 0.7 lr at first, 1.55 lr
    around the 15th, lr in the end. State and arithmetic are in the parameter's type. In float16 `v` underflows below
    |g| = 1.2e-3 and the update becomes `m / eps`: the official runs train CLIP so.

    The rate of a step is the group's `lr`; whoever calls `step` sets it. Gradients are scaled in place. Options of a
    group: `lr`, `betas`, `eps`, `weight_decay`, `max_norm` (0 switches the clipping of single tensors off). Raises
    ValueError on options out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_norm": max_norm}
        )
        for group in self.param_groups:
            if min(group["lr"], group["eps"], group["weight_decay"], group["max_norm"]) < 0:
                raise ValueError("lr, eps, weight_decay and max_norm of BertAdam must not be negative")
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"betas of BertAdam must be in [0, 1), got {group['betas']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step with every gradient there is; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # The fast foreach kernels need lists of one device and type.
            buckets: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    buckets[parameter.device, parameter.dtype].append(parameter)
            for parameters in buckets.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update parameters of one device and type with a handful of kernels for all of them together."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        averages = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        if group["max_norm"] > 0:
            # The factors stay on the device: reading them would make the host wait for the backward pass.
            norms = torch.stack(torch._foreach_norm(grads))
            torch._foreach_mul_(grads, list((group["max_norm"] / (norms + 1e-6)).clamp(max=1.0).unbind()))
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(averages, beta1)
        torch._foreach_add_(averages, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, group["eps"])
        # The update is (m + decay p d) / d. A number as small as a rate can only be the `value` of addcdiv:
        # the CPU rounds any other scalar to the parameters' type, in float16 1e-7 to 1.2e-7 and 2e-8 to 0.
        updates = averages
        if group["weight_decay"] > 0:
            updates = list(torch._foreach_addcmul(averages, parameters, divisors, value=group["weight_decay"]))
        torch._foreach_addcdiv_(parameters, updates, divisors, value=-group["lr"])
