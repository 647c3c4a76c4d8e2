import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import load_golden
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from teachclip.errors import CheckpointError, RecipeError
from teachclip.training.bert_adam import BertAdam
from teachclip.training.optim import (
    FROZEN_CLIP_INPUTS,
    SCHEDULES,
    build_optimizer,
    clamp_logit_scale,
    freeze_clip_inputs,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    published_schedule,
    warmup_cosine,
)

# BertAdam.


def linear(progress: float) -> float:
    return progress / 0.1 if progress < 0.1 else max((progress - 1) / (0.1 - 1), 0)


def constant(progress: float) -> float:
    return progress / 0.1 if progress < 0.1 else 1.0


FACTORS = {
    "given": published_schedule,
    "quad": published_schedule,
    "given_linear": linear,
    "given_constant": constant,
    "given_notot": lambda progress: 1.0,
    "given_noclip": published_schedule,
    "given_fp16": published_schedule,
}


def quadratic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return 2 * first.square().sum() + 0.5 * (second - 1).square().sum() + 0.1 * first.sum() * second.sum()


@pytest.mark.parametrize("tag", list(FACTORS))
def test_bert_adam_takes_the_official_steps(tag: str) -> None:
    info, arrays = load_golden("09_optimizer")
    run = next(run for run in info["runs"] if run["tag"] == tag)
    dtype = torch.float16 if tag == "given_fp16" else torch.float32
    parameters = [nn.Parameter(torch.from_numpy(arrays[f"p{i}_init"]).to(dtype)) for i in (1, 2)]
    optimizer = BertAdam(
        [
            {"params": parameters[:1], "lr": 0.01, "initial_lr": 0.01, "weight_decay": 0.2},
            {"params": parameters[1:], "lr": 0.1, "initial_lr": 0.1, "weight_decay": 0.0},
        ],
        max_norm=max(run["max_grad_norm"], 0),
    )
    for step in range(info["steps"]):
        optimizer.zero_grad()
        if tag == "quad":
            quadratic(*parameters).backward()
        else:
            for parameter, name in zip(parameters, ("grad1", "grad2"), strict=True):
                parameter.grad = torch.from_numpy(arrays[name][step]).to(dtype)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * FACTORS[tag](step / info["steps"])
        optimizer.step()
        for number, parameter in enumerate(parameters, 1):
            expected = arrays[f"{tag}_p{number}"][step]
            tolerance = 2e-2 if dtype == torch.float16 else 5e-6
            np.testing.assert_allclose(parameter.detach().float(), expected, atol=tolerance, rtol=0)


def test_the_recorded_runs_do_clip() -> None:
    # Without this the runs above could not tell a missing clip.
    _, arrays = load_golden("09_optimizer")
    assert (arrays["given_gradnorm_before_clip"] > 1).any()
    assert np.abs(arrays["given_p1"] - arrays["given_noclip_p1"]).max() > 1e-4


def test_the_first_step_has_its_closed_form() -> None:
    parameter = nn.Parameter(torch.tensor([2.0, -1.0]))
    parameter.grad = torch.tensor([3.0, 4.0])  # norm 5, so it counts as 0.6, 0.8
    BertAdam([parameter], lr=0.1, weight_decay=0.5).step()
    ratio = 0.1 / math.sqrt(0.02)
    np.testing.assert_allclose(parameter.detach(), [2 - 0.1 * (ratio + 1), -1 - 0.1 * (ratio - 0.5)], rtol=1e-5)


def test_every_tensor_is_clipped_by_itself() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    optimizer = BertAdam(parameters)
    optimizer.step()
    np.testing.assert_allclose(optimizer.state[parameters[0]]["exp_avg"], [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(optimizer.state[parameters[1]]["exp_avg"], [0.03, 0.04], rtol=1e-5)


def test_a_rate_of_zero_moves_nothing_but_fills_the_averages() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 0.1)
    optimizer = BertAdam([parameter], lr=0.0)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert optimizer.state[parameter]["exp_avg_sq"].min() > 0


def test_parameters_without_gradient_stay_and_types_may_mix() -> None:
    parameters = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float16, torch.float32)]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer = BertAdam(parameters, lr=0.1)
    optimizer.step()
    assert torch.equal(parameters[2].detach(), torch.ones(3))
    assert not optimizer.state.get(parameters[2])
    assert parameters[0].detach().max() < 1
    np.testing.assert_allclose(parameters[1].detach().float(), parameters[0].detach(), rtol=2e-3)


def test_a_closure_is_evaluated_with_gradients() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = BertAdam([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert parameter.item() < 1


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"eps": -1e-6}, {"betas": (0.9, 1.0)}, {"max_norm": -1.0}])
def test_options_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="BertAdam"):
        BertAdam([nn.Parameter(torch.ones(1))], **options)


# Schedules.


def test_the_published_schedule_is_a_cosine_of_the_whole_progress() -> None:
    assert published_schedule(0.0) == 0
    assert published_schedule(0.05) == pytest.approx(0.5)
    assert published_schedule(0.1) == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))
    assert published_schedule(0.5) == pytest.approx(0.5)
    assert published_schedule(1.0) == pytest.approx(0, abs=1e-12)
    assert published_schedule(0.2, 0.4) == pytest.approx(0.5)


def test_the_usual_schedule_is_a_cosine_from_the_end_of_the_warm_up() -> None:
    assert warmup_cosine(0.05, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(0.1, 0.1) == pytest.approx(1)
    assert warmup_cosine(0.55, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(1.0, 0.1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_bear_no_warm_up_and_nothing_but_warm_up(name: str) -> None:
    assert SCHEDULES[name](0.0, 0.0) == 1
    assert SCHEDULES[name](0.25, 1.0) == 0.25
    for progress in np.linspace(0, 1, 11):
        assert 0 <= SCHEDULES[name](float(progress), 0.3) <= 1


# Groups, freezing, logit scale.


class TinyStudent(nn.Module):
    """The names of the student's parameters, around a CLIP of transformers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        text = {**sizes, "vocab_size": 16, "bos_token_id": 14, "eos_token_id": 15}
        vision = {**sizes, "patch_size": 8, "image_size": 16}
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
        self.frame_position_embeddings = nn.Embedding(8, 64)
        self.temporal = nn.ModuleDict({"norm": nn.LayerNorm(64), "linear": nn.Linear(64, 64)})
        self.aggregation = nn.ModuleDict({"hidden": nn.Linear(64, 64), "score": nn.Linear(64, 1)})


def groups_of(model: nn.Module, **changes) -> list[dict]:
    rates = {"lr": 1e-4, "clip_lr": 1e-7, "attention_lr": 1e-3, "weight_decay": 0.2, **changes}
    return parameter_groups(model, **rates)


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def model() -> TinyStudent:
    torch.manual_seed(0)
    return TinyStudent()


def test_groups_are_the_published_ones(model: TinyStudent) -> None:
    groups = groups_of(model)
    assert [(group["name"], group["lr"], group["initial_lr"], group["weight_decay"]) for group in groups] == [
        ("clip", 1e-7, 1e-7, 0.2),
        ("new", 1e-4, 1e-4, 0.2),
        ("clip_no_decay", 1e-7, 1e-7, 0),
        ("new_no_decay", 1e-4, 1e-4, 0),
        ("attention", 1e-3, 1e-3, 0.2),
        ("attention_no_decay", 1e-3, 1e-3, 0),
    ]
    names = names_of(model)
    members = {group["name"]: {names[parameter] for parameter in group["params"]} for group in groups}
    assert members["new"] == {"frame_position_embeddings.weight", "temporal.norm.weight", "temporal.linear.weight"}
    assert members["new_no_decay"] == {"temporal.norm.bias", "temporal.linear.bias"}
    assert members["attention"] == {"aggregation.hidden.weight", "aggregation.score.weight"}
    assert members["attention_no_decay"] == {"aggregation.hidden.bias", "aggregation.score.bias"}
    decayed = {
        "clip.logit_scale",
        "clip.text_model.encoder.layers.0.layer_norm1.weight",
        "clip.vision_model.post_layernorm.weight",
        "clip.vision_model.embeddings.class_embedding",
        "clip.vision_model.embeddings.position_embedding.weight",
    }
    assert decayed <= members["clip"]
    assert all(name.startswith("clip.") and name.endswith("bias") for name in members["clip_no_decay"])
    assert sorted(name for group in members.values() for name in group) == sorted(names.values())


@pytest.mark.parametrize(("adapter_lr", "rate"), [(None, 1e-3), (5e-3, 5e-3)])
def test_residual_heads_have_groups_and_a_rate_of_their_own(model: TinyStudent, adapter_lr, rate: float) -> None:
    plain = [group["name"] for group in groups_of(model)]
    model.heads = nn.ModuleDict({"text": nn.Linear(64, 64), "frame": nn.Linear(64, 64)})
    groups = groups_of(model, adapter_lr=adapter_lr)
    assert [group["name"] for group in groups] == [*plain, "adapters", "adapters_no_decay"]
    assert [group["lr"] for group in groups] == [1e-7, 1e-4, 1e-7, 1e-4, 1e-3, 1e-3, rate, rate]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups[-2:]] == [(rate, 0.2), (rate, 0)]
    names = names_of(model)
    members = [{names[parameter] for parameter in group["params"]} for group in groups[-2:]]
    assert members == [{f"heads.{place}.{kind}" for place in ("text", "frame")} for kind in ("weight", "bias")]


def test_frozen_parameters_are_in_no_group(model: TinyStudent) -> None:
    for parameter in model.clip.parameters():
        parameter.requires_grad_(False)
    assert [group["name"] for group in groups_of(model)] == [
        "new",
        "new_no_decay",
        "attention",
        "attention_no_decay",
    ]


def test_prefixes_fit_other_models(model: TinyStudent) -> None:
    groups = groups_of(model, clip_prefix="temporal.", attention_prefix="frame_position")
    assert {group["name"]: len(group["params"]) for group in groups}["attention"] == 1
    assert {group["name"]: len(group["params"]) for group in groups}["clip"] == 2


def test_a_wholly_frozen_model_is_refused(model: TinyStudent) -> None:
    with pytest.raises(RecipeError, match="nothing to train"):
        groups_of(model.requires_grad_(False))


def test_freezing_stops_exactly_the_inputs_of_clip(model: TinyStudent) -> None:
    frozen = freeze_clip_inputs(model)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == set(frozen)
    assert frozen == ["clip." + name for name in FROZEN_CLIP_INPUTS]
    bare = TinyStudent().clip
    assert freeze_clip_inputs(bare, clip_prefix="") == list(FROZEN_CLIP_INPUTS)


def test_freezing_a_model_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter clip\.text_model"):
        freeze_clip_inputs(nn.Linear(2, 2))


@pytest.mark.parametrize(("before", "after"), [(5.0, math.log(100)), (2.5, 2.5)])
def test_logit_scale_is_at_most_ln_100(before: float, after: float) -> None:
    scale = nn.Parameter(torch.tensor(before))
    clamp_logit_scale(scale)
    assert scale.item() == pytest.approx(after, abs=1e-6)
    assert scale.requires_grad


# Building, and checkpoints of the state.


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        noise = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = 0.1 * torch.randn(parameter.shape, generator=noise)
        optimizer.step()


@pytest.mark.parametrize("name", ["bert_adam", "adamw"])
def test_a_run_resumed_from_tensors_continues_exactly(name: str, model: TinyStudent, tmp_path: Path) -> None:
    freeze_clip_inputs(model)
    optimizer = build_optimizer(name, groups_of(model))
    train(model, optimizer, range(3))
    tensors = optimizer_tensors(optimizer, names_of(model))
    save_file({"." + key: value for key, value in model.state_dict().items()} | tensors, tmp_path / "all.safetensors")
    train(model, optimizer, range(3, 6))

    saved = load_file(tmp_path / "all.safetensors")
    other = TinyStudent()
    freeze_clip_inputs(other)
    other.load_state_dict({key[1:]: value for key, value in saved.items() if key.startswith(".")})
    resumed = build_optimizer(name, groups_of(other))
    train(other, resumed, range(0))
    load_optimizer_tensors(
        resumed, names_of(other), {key: value for key, value in saved.items() if not key.startswith(".")}
    )
    train(other, resumed, range(3, 6))
    for (key, expected), actual in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, actual), key
    after, restored = optimizer_tensors(optimizer, names_of(model)), optimizer_tensors(resumed, names_of(other))
    assert after.keys() == restored.keys()
    assert all(torch.equal(after[key], restored[key]) for key in after)
    assert [group["name"] for group in resumed.param_groups] == [group["name"] for group in optimizer.param_groups]


def small_run(name: str = "bert_adam") -> tuple[torch.optim.Optimizer, dict[nn.Parameter, str], dict]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(name, [{"params": list(layer.parameters()), "lr": 0.1}])
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    names = names_of(layer)
    return optimizer, names, optimizer_tensors(optimizer, names)


def test_state_is_named_by_parameter() -> None:
    assert set(small_run()[2]) == {"exp_avg.weight", "exp_avg.bias", "exp_avg_sq.weight", "exp_avg_sq.bias"}
    assert {"step.weight", "step.bias"} <= set(small_run("adamw")[2])


def test_loaded_state_is_a_copy() -> None:
    optimizer, names, tensors = small_run()
    tensors = {key: value.clone() for key, value in tensors.items()}
    load_optimizer_tensors(optimizer, names, tensors)
    before = tensors["exp_avg.weight"].clone()
    optimizer.step()
    assert torch.equal(tensors["exp_avg.weight"], before)


@pytest.mark.parametrize("name", ["bert_adam", "adamw"])
def test_a_parameter_that_was_never_stepped_stays_so(name: str) -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer = build_optimizer(name, [{"params": list(layer.parameters()), "lr": 0.1}])
    optimizer.step()
    tensors = optimizer_tensors(optimizer, names_of(layer))
    assert "unused.bias" in tensors
    fresh = build_optimizer(name, [{"params": list(layer.parameters()), "lr": 0.1}])
    load_optimizer_tensors(fresh, names_of(layer), tensors)
    assert not fresh.state.get(layer.bias)
    assert torch.equal(fresh.state[layer.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("exp_avg.bias"), "state of bias: got exp_avg_sq; needed exp_avg, exp_avg_sq"),
        (lambda state: state.clear(), "state of weight: got nothing"),
        (lambda state: state.update({"exp_avg.weight": torch.ones(2, 4)}), r"weight: got shape \(2, 4\); needed"),
        (lambda state: state.update({"exp_avg.other": torch.ones(1)}), "state of other: the optimizer has no such"),
        (lambda state: state.update({"step.weight": torch.tensor(1.0)}), "got exp_avg, exp_avg_sq, step; needed"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_nothing_changes(change, message: str) -> None:
    optimizer, names, tensors = small_run()
    before = {key: value.clone() for key, value in tensors.items()}
    wrong = {key: value.clone() + 1 for key, value in tensors.items()}
    change(wrong)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_optimizer_tensors(optimizer, names, wrong)
    assert "\n" not in str(caught.value)
    after = optimizer_tensors(optimizer, names)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_state_of_another_optimizer_is_refused() -> None:
    adamw, names, _ = small_run("adamw")
    with pytest.raises(CheckpointError, match="got exp_avg, exp_avg_sq; needed exp_avg, exp_avg_sq, step"):
        load_optimizer_tensors(adamw, names, small_run("bert_adam")[2])


def test_a_parameter_without_a_name_is_refused() -> None:
    optimizer, names, _ = small_run()
    with pytest.raises(ValueError, match=r"shape \(2,\) in the optimizer has no name"):
        optimizer_tensors(optimizer, {parameter: name for parameter, name in names.items() if name == "weight"})


def test_optimizers_are_built_by_name_with_their_own_defaults() -> None:
    def built(name: str, **options) -> torch.optim.Optimizer:
        return build_optimizer(name, [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.1}], **options)

    published, modern = built("bert_adam").param_groups[0], built("adamw").param_groups[0]
    assert (published["betas"], published["eps"], published["max_norm"]) == ((0.9, 0.98), 1e-6, 1.0)
    assert (modern["betas"], modern["eps"]) == ((0.9, 0.999), 1e-8)
    assert built("adamw", betas=(0.8, 0.9), eps=1e-5).param_groups[0]["betas"] == (0.8, 0.9)
    with pytest.raises(RecipeError, match="unknown optimizer 'adam'; known: adamw, bert_adam; did you mean adamw"):
        built("adam")
