"""Optimisation as published (BertAdam, its schedule and parameter groups) and its modern alternative (AdamW).

TeachCLIP takes over the settings of CLIP4Clip (Luo et al. 2021, section 4.2): a tiny rate for CLIP, a common one for
new parameters, ten times that for the frame attention.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.errors import CheckpointError, RecipeError
from teachclip.models.backbone import input_parameters
from teachclip.models.student import StudentModel
from teachclip.registry import closest
from teachclip.training.bert_adam import BertAdam
from teachclip.training.layer_rates import layers_from_top

MAX_LOGIT_SCALE = math.log(100)
"""The largest logarithm of a logit scale (CLIP, Radford et al. 2021, section 2.5)."""

FROZEN_CLIP_INPUTS = (
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.pre_layrnorm.weight",
    "vision_model.pre_layrnorm.bias",
)
"""What the published runs do not train, by the names of transformers' CLIPModel."""


def published_schedule(progress: float, warmup: float = 0.1) -> float:
    """Return the published factor of the rate: linear from 0, then a cosine over the WHOLE run.

    `progress / warmup` below `warmup`, then `0.5 (1 + cos(pi progress))`, so it drops from 1 to 0.976 where a warm-up
    of 0.1 ends. `progress`: steps made over steps in all, in [0, 1]; the first step of a run has rate 0.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(progress: float, warmup: float = 0.1) -> float:
    """Return the usual factor of the rate: linear from 0 to 1, then a cosine from the end of the warm-up to 0.

    `progress`: steps made over steps in all, in [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) if warmup < 1 else 1.0


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "published": published_schedule,
    "warmup_cosine": warmup_cosine,
}
"""Schedules by name: functions of progress and warm-up share, both in [0, 1], that return a factor of the rate."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    clip_lr: float,
    attention_lr: float,
    weight_decay: float,
    adapter_lr: float | None = None,
    layer_decay: float = 1.0,
    clip_decay: float | None = None,
    clip_prefix: str | None = None,
    attention_prefix: str = "aggregation.",
) -> list[dict[str, Any]]:
    """Return the published groups of a model's trainable parameters, in the published order, without empty ones.

    CLIP, new parameters, and the frame attention, distinguished by the prefixes of their names, each with and
    without decay; then, where there are any, the residual adapters, by default at the frame attention's rate. No
    decay is for names that end in `bias` and nothing else: the official rule also spares `LayerNorm` names, but its
    norms are called `ln_*`, so their gains do decay, and so do logit_scale and embeddings.

    Not published: with a `layer_decay` d below 1, encoder parameters that are n layers from the outputs (see
    `layers_from_top`) have the rate d^n clip_lr and are groups "clip_n"; `clip_decay` replaces `weight_decay` for the
    encoders.

    Each group has `name` ("clip", "new", "attention", "adapters", with "_no_decay" added), `params`, `lr` and
    `initial_lr` (the rate before the schedule) and `weight_decay`. `clip_prefix` None: see `encoder_prefix`. Raises
    RecipeError if no parameter is trainable.
    """
    clip_prefix = encoder_prefix(model) if clip_prefix is None else clip_prefix
    rates = {"clip": clip_lr, "new": lr, "attention": attention_lr, "adapters": adapter_lr or attention_lr}
    order = ["clip", "new", "clip_no_decay", "new_no_decay", "attention", "attention_no_decay"]
    order += ["adapters", "adapters_no_decay"]
    members: dict[str, list[nn.Parameter]] = {name: [] for name in order}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = layers_from_top(name for name in trained if name.startswith(clip_prefix)) if layer_decay < 1 else {}
    for name, parameter in trained.items():
        group = "clip" if name.startswith(clip_prefix) else "new"
        group = "attention" if name.startswith(attention_prefix) else group
        group = "adapters" if name.startswith("heads.") else group
        if group == "clip" and (depth := depths.get(name, 0)):
            group = f"clip_{depth}"
            rates[group] = clip_lr * layer_decay**depth
        members.setdefault(group + ("_no_decay" if name.endswith("bias") else ""), []).append(parameter)
    groups = []
    for name, params in ((name, params) for name, params in members.items() if params):
        rate = rates[name.removesuffix("_no_decay")]
        decay = clip_decay if name.startswith("clip") and clip_decay is not None else weight_decay
        decay = 0.0 if name.endswith("_no_decay") else decay
        groups.append({"name": name, "params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    if not groups:
        raise RecipeError("nothing to train: every parameter of the model is frozen")
    return groups


def encoder_prefix(model: nn.Module) -> str:
    """Return what the names of a model's encoders begin with: `backbone.` in students, `clip.` in teachers."""
    return "backbone." if isinstance(model, StudentModel) else "clip."


def freeze_clip_inputs(model: nn.Module, *, clip_prefix: str | None = None) -> list[str]:
    """Freeze what the published runs freeze of a CLIP inside `model`: see `FROZEN_CLIP_INPUTS`.

    Of another dual encoder in a student the same parts are frozen: see `teachclip.models.backbone.input_parameters`.
    Returns the names of the frozen parameters. Raises ValueError if the model has no such CLIP.
    `clip_prefix` None: see `encoder_prefix`.
    """
    clip_prefix = encoder_prefix(model) if clip_prefix is None else clip_prefix
    parameters = dict(model.named_parameters())
    inputs: Sequence[str] = FROZEN_CLIP_INPUTS
    if isinstance(model, StudentModel) and model.backbone.config.model_type != "clip":
        inputs = input_parameters(model.backbone)
    names = [clip_prefix + name for name in inputs]
    missing = [name for name in names if name not in parameters]
    if missing:
        raise ValueError(
            f"the model has no parameter {missing[0]}: its CLIP is not laid out as transformers' CLIPModel"
        )
    for name in names:
        parameters[name].requires_grad_(False)
    return names


@torch.no_grad()
def clamp_logit_scale(parameter: Tensor) -> None:
    """Clamp a logit scale (stored as a logarithm) in place to at most ln 100; called after each step."""
    parameter.clamp_(max=MAX_LOGIT_SCALE)


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    *,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    max_norm: float = 1.0,
) -> torch.optim.Optimizer:
    """Return an optimizer over parameter groups by name.

    `bert_adam` is the published one (betas 0.9, 0.98; eps 1e-6); `adamw` is torch's (0.9, 0.999; 1e-8), fused where
    all parameters allow it. `betas` and `eps` replace these defaults; `max_norm` is of bert_adam alone. Raises
    RecipeError on an unknown name.
    """
    if name == "bert_adam":
        return BertAdam(groups, betas=betas or (0.9, 0.98), eps=1e-6 if eps is None else eps, max_norm=max_norm)
    if name == "adamw":
        tensors = [parameter for group in groups for parameter in group["params"]]
        fused = all(tensor.is_floating_point() and tensor.device.type in ("cpu", "cuda") for tensor in tensors)
        return torch.optim.AdamW(
            groups, betas=betas or (0.9, 0.999), eps=1e-8 if eps is None else eps, fused=True if fused else None
        )
    raise RecipeError(f"unknown optimizer {name!r}; known: adamw, bert_adam{closest(name, ('adamw', 'bert_adam'))}")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors, so that a checkpoint needs no pickle.

    `names`: the name of every parameter of the optimizer. The result has one entry per state tensor, not copied:
    `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, for AdamW `step.<parameter>`. A parameter that was never stepped
    has an empty `unused.<parameter>`, so that nothing can go missing unseen. Options of groups are not state: they
    come from the recipe. Raises ValueError if a parameter of the optimizer has no name.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _named_in_order(optimizer, names):
        state = optimizer.state.get(parameter) or {"unused": torch.empty(0)}
        tensors.update({f"{key}.{name}": value.detach() for key, value in state.items()})
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned, exactly; the tensors are copied to each parameter's device.

    Raises CheckpointError, before anything is changed, if a parameter has not the state that this optimizer keeps, a
    shape differs, or a state belongs to no parameter.
    """
    needed = {"exp_avg", "exp_avg_sq"}
    if isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.AdamW):  # Accelerate wraps optimizers
        needed.add("step")
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        found[name][kind] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(_named_in_order(optimizer, names)):
        entry = found.pop(name, {})
        if set(entry) == {"unused"}:
            continue
        if set(entry) != needed:
            got = ", ".join(sorted(entry)) or "nothing"
            raise CheckpointError(f"optimizer state of {name}: got {got}; needed {', '.join(sorted(needed))}")
        for kind, tensor in entry.items():
            wanted = torch.Size() if kind == "step" else parameter.shape
            if tensor.shape != wanted:
                shapes = f"{tuple(tensor.shape)}; needed {tuple(wanted)}"
                raise CheckpointError(f"optimizer state {kind} of {name}: got shape {shapes}")
        state[index] = {kind: tensor.clone() for kind, tensor in entry.items()}
    if found:
        raise CheckpointError(f"optimizer state of {next(iter(found))}: the optimizer has no such parameter")
    # Torch's own loading puts each tensor on the device and in the type that the optimizer's kernels need.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _named_in_order(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter in the optimizer's own order."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} in the optimizer has no name")
            yield names[parameter], parameter
