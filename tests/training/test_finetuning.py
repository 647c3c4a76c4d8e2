"""How encoders are held back: still at first, slower in lower layers, pulled to their start, averaged."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import losses
from tiny import tiny_batches, tiny_clip, tiny_schedule, tiny_student

from teachclip.errors import CheckpointError
from teachclip.models.student import StudentModel
from teachclip.training.checkpoint import load_part, newest_checkpoint
from teachclip.training.distributed import build_accelerator
from teachclip.training.finetuning import StartPull, WeightAverage, encoder_parameters
from teachclip.training.layer_rates import layers_from_top
from teachclip.training.loop import fit
from teachclip.training.optim import build_optimizer, freeze_clip_inputs, parameter_groups
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask, DistillationTerms

RATES = {"lr": 1e-3, "clip_lr": 1e-3, "attention_lr": 1e-2, "weight_decay": 0.2}


def recall(value: float = 0.0) -> dict[str, Any]:
    return {"t2v": {"recall_at_1": value}}


def train(folder: Path, steps: int, *, name: str = "adamw", validate: Any = recall, **changes: Any) -> StudentModel:
    student = tiny_student()
    freeze_clip_inputs(student)
    groups = parameter_groups(student, **RATES, clip_decay=0.0 if changes.get("l2_start") else None)
    run = Run(folder, {"settings": "tiny"})
    run.open()
    task = DistillationTask(student, DistillationTerms(), stored_weights=(1.0,))
    schedule = tiny_schedule(steps, **changes)
    fit(task, build_optimizer(name, groups), tiny_batches(), build_accelerator(), run, schedule, validate)
    return student


def encoders(student: StudentModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.backbone.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# Head first, then everything.


@pytest.mark.parametrize("name", ["adamw", "bert_adam"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_encoders_stay_where_they_are_in_the_first_steps_and_move_after_them(tmp_path, name, chunk_size):
    start, seen = encoders(tiny_student()), []

    def validate() -> dict[str, Any]:
        seen.append(encoders(student_of[0]))
        return recall()

    student_of: list[StudentModel] = []

    def remember() -> StudentModel:
        student_of.append(tiny())
        return student_of[0]

    import test_finetuning

    tiny, test_finetuning.tiny_student = test_finetuning.tiny_student, remember
    try:
        student = test_finetuning.train(
            tmp_path, 6, name=name, validate=validate, frozen_steps=3, evaluate_every=1, chunk_size=chunk_size
        )
    finally:
        test_finetuning.tiny_student = tiny
    assert [same(start, each) for each in seen[:3]] == [True] * 3
    assert same(start, seen[3]), "the warm-up of their own begins with the rate 0"
    assert not same(seen[3], seen[4]) and not same(seen[4], seen[5])
    head = tiny().aggregation.hidden.weight
    assert not torch.equal(student.aggregation.hidden.weight, head)


def test_the_rate_of_the_encoders_takes_its_schedule_in_the_steps_that_are_left(tmp_path):
    schedule = tiny_schedule(10, frozen_steps=4)
    assert [schedule.factors(step)[0] for step in range(4)] == [0.0] * 4
    assert [schedule.factors(step)[0] for step in range(4, 10)] == [schedule.rate(step / 6) for step in range(6)]
    assert [schedule.factors(step)[1] for step in range(10)] == [schedule.rate(step / 10) for step in range(10)]
    train(tmp_path, 10, frozen_steps=4)
    logged = losses(tmp_path)
    assert [line["lr.clip"] for line in logged.values()] == [1e-3 * schedule.factors(step)[0] for step in range(10)]
    assert [line["lr.new"] for line in logged.values()] == [1e-3 * schedule.factors(step)[1] for step in range(10)]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_with_all_of_it_ends_in_the_same_weights_when_it_is_interrupted(tmp_path, stop):
    options = {"frozen_steps": 4, "ema": 0.9, "l2_start": 0.3, "evaluate_every": 3}
    whole = train(tmp_path / "whole", 9, **options)
    calls = []

    def interrupt() -> dict[str, Any]:
        calls.append(1)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return recall()

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", 9, validate=interrupt, **options)
    resumed = train(tmp_path / "resumed", 9, **options)
    assert losses(tmp_path / "whole") == losses(tmp_path / "resumed")
    assert same(whole.state_dict(), resumed.state_dict())
    ends = [newest_checkpoint(tmp_path / name / "checkpoints", "step") for name in ("whole", "resumed")]
    assert same(*(load_part(end, "average") for end in ends if end is not None))


# Layer-wise rates.


def test_layers_are_counted_from_the_outputs_in_each_tower():
    names = [name for name, _ in tiny_clip().named_parameters()]
    found = layers_from_top(names)
    assert found["logit_scale"] == found["text_projection.weight"] == 0
    assert found["text_model.final_layer_norm.weight"] == found["vision_model.post_layernorm.bias"] == 0
    for tower in ("text_model", "vision_model"):
        assert found[f"{tower}.encoder.layers.1.self_attn.q_proj.weight"] == 1
        assert found[f"{tower}.encoder.layers.0.mlp.fc1.bias"] == 2
        assert found[f"{tower}.embeddings.position_embedding.weight"] == 3
    assert found["vision_model.pre_layrnorm.weight"] == 3
    bert = layers_from_top(["text_model.encoder.layer.4.x", "text_model.pooler.x", "vision_model.head.probe"])
    assert list(bert.values()) == [1, 0, 0]


def test_rates_fall_by_the_factor_per_layer_and_nothing_else_changes():
    plain = parameter_groups(tiny_student(), **RATES)
    groups = parameter_groups(tiny_student(), **RATES, layer_decay=0.5)
    rates = {group["name"]: group["initial_lr"] for group in groups}
    for depth in range(1, 4):
        assert rates[f"clip_{depth}"] == pytest.approx(1e-3 * 0.5**depth)
    assert rates["clip"] == rates["clip_no_decay"] == 1e-3
    others = {group["name"]: group["initial_lr"] for group in plain if not group["name"].startswith("clip")}
    assert {name: rate for name, rate in rates.items() if not name.startswith("clip")} == others
    assert sum(len(group["params"]) for group in groups) == sum(len(group["params"]) for group in plain)
    assert {group["weight_decay"] for group in groups if group["name"].endswith("_no_decay")} == {0}
    optimizer = build_optimizer("adamw", groups)
    student = tiny_student()
    assert len(encoder_parameters(optimizer)) == len(list(student.backbone.parameters()))


# A pull towards the start.


def test_the_pull_goes_by_the_rate_of_the_step_towards_the_start_and_touches_nothing_else():
    student = tiny_student()
    optimizer = build_optimizer("adamw", parameter_groups(student, **RATES))
    pull, start = StartPull(optimizer, 100.0), encoders(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    head = student.aggregation.hidden.weight.clone()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    pull()
    for name, tensor in student.backbone.named_parameters():
        torch.testing.assert_close(tensor - start[name], torch.full_like(tensor, 0.9), rtol=1e-5, atol=1e-5)
    assert torch.equal(student.aggregation.hidden.weight, head)


def test_pulled_encoders_end_nearer_to_their_start(tmp_path):
    start = encoders(tiny_student())
    ends = {pull: encoders(train(tmp_path / str(pull), 6, l2_start=pull)) for pull in (0.01, 300.0)}
    moved = {pull: sum(float((end[k] - start[k]).square().sum()) for k in start) for pull, end in ends.items()}
    assert 0 < moved[300.0] < 0.8 * moved[0.01]


# Weight averaging.


def test_the_mean_follows_the_weights_as_its_formula_says():
    student, decay = tiny_student(), 0.9
    average = WeightAverage(student, decay)
    name, parameter = "aggregation.hidden.weight", student.aggregation.hidden.weight
    expected = parameter.detach().clone().double()
    for step in range(1, 25):
        with torch.no_grad():
            parameter.add_(0.01 * step)
        average.update(step)
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * parameter.detach().double()
    torch.testing.assert_close(average.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_is_what_is_validated_and_kept_and_training_goes_on_from_the_weights(tmp_path):
    plain = train(tmp_path / "plain", 6)
    with_mean = train(tmp_path / "mean", 6, ema=0.9)
    assert same(plain.state_dict(), with_mean.state_dict()), "a mean must not change what trains"
    step = newest_checkpoint(tmp_path / "mean" / "checkpoints", "step")
    best = newest_checkpoint(tmp_path / "mean" / "checkpoints", "best")
    assert step is not None and best is not None and step.name[-8:] == best.name[-8:]
    average, kept = load_part(step, "average"), load_part(best, "model")
    assert average and all(torch.equal(kept[name], tensor) for name, tensor in average.items())
    weights = load_part(step, "model")
    assert not all(torch.equal(weights[name], tensor) for name, tensor in average.items())
    assert not (newest_checkpoint(tmp_path / "plain" / "checkpoints", "step") / "average.safetensors").exists()


def test_a_checkpoint_whose_mean_is_of_other_weights_is_named(tmp_path):
    train(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"average\.safetensors|cannot read the checkpoint"):
        train(tmp_path, 6, ema=0.9)
    with pytest.raises(ValueError, match="of other weights"):
        WeightAverage(tiny_student(), 0.9).load({"x": torch.ones(1)})
