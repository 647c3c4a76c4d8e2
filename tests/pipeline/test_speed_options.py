"""Options that change speed and memory: compiling, activation checkpointing, precision, TensorFloat-32."""

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny import TinyPixels, tiny_batches, tiny_student
from torch.testing import assert_close

from teachclip import precompute
from teachclip.cli import precompute as precompute_command
from teachclip.errors import RecipeError, StoreError
from teachclip.pipeline.build import build_precision, run_settings
from teachclip.pipeline.encoders import set_clip_weights, speed_up
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Train
from teachclip.scorer import encoding_in
from teachclip.scoring.inputs import encode_split
from teachclip.training.distributed import build_accelerator
from teachclip.training.task import DistillationTask, DistillationTerms


def step(**options):
    """Return losses, gradients and the bytes that a step keeps for its backward pass."""
    student, kept = tiny_student(), []
    names = list(student.state_dict())
    speed_up(student, Train(steps=1, **options), backend="eager")
    assert list(student.state_dict()) == names
    task = DistillationTask(student, DistillationTerms(), stored_weights=(1.0,)).train()

    def keep(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = task(tiny_batches()[0])
    losses["loss"].backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients, sum(kept)


def test_compiled_encoders_and_activations_computed_again_give_the_same_gradients():
    losses, gradients, kept = step()
    for option in ({"compile": True}, {"activation_checkpointing": True}):
        found, again, memory = step(**option)
        assert_close(found, losses)
        assert_close(again, gradients, rtol=1e-4, atol=1e-6)
        if "activation_checkpointing" in option:
            assert memory < 0.8 * kept


def test_tensorfloat_32_is_off_unless_it_is_asked_for():
    for asked in (True, False):
        build_accelerator(tf32=asked)
        assert torch.backends.cuda.matmul.allow_tf32 == asked


def test_float16_weights_on_a_cpu_warn_of_their_cost(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_clip_weights(tiny_student(), "float16")  # fast there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_clip_weights(tiny_student(), "float32")
    assert not caplog.messages
    set_clip_weights(tiny_student(), "float16")
    assert "ten times as slowly" in caplog.text


def test_encoders_in_bfloat16_give_nearly_the_same_in_float32():
    inputs, student = TinyPixels.make(), tiny_student()
    options = {"batch_size": 4, "device": "cpu"}
    plain, half = (
        encode_split(student, inputs, **options),
        encode_split(student, inputs, **options, precision="bfloat16"),
    )
    for one, other in zip(plain, half, strict=True):
        assert one["embeds"].dtype == other["embeds"].dtype == torch.float32
        assert not torch.equal(one["embeds"], other["embeds"])
        assert (one["embeds"] * other["embeds"]).sum(1).min() > 0.999
    with (
        pytest.raises(RecipeError, match=r"precision is 'bfloat61'; allowed: float32, bfloat16"),
        encoding_in("bfloat61", "cpu"),
    ):
        pass


def test_relevance_in_bfloat16_is_verified_and_never_taken_for_that_in_float32(project, capsys):
    half = ["teaching.encoding_precision=bfloat16"]
    recipe = str(project())
    with pytest.raises(StoreError, match="encoded_in"):
        precompute(recipe, half)  # the stores are filled in float32
    project.fill = False
    again = str(project(stores=str(project.folder / "half")))
    precompute(again, half)
    assert precompute_command.main([again, *half, "--verify"]) == 0


def test_settings_of_a_run_name_the_options_where_they_are_used(project):
    plain = run_settings(load_recipe(str(project())))
    assert not {"compile", "tf32", "chunk_size", "captions_per_video"} & plain["train"].keys()
    assert "evaluation" not in plain and "encoding_precision" not in plain["teaching"]
    overrides = ["train.compile=true", "train.chunk_size=2", "evaluation.precision=bfloat16"]
    used = run_settings(load_recipe(str(project()), overrides))
    assert used["train"]["compile"] is True and used["train"]["chunk_size"] == 2
    assert used["evaluation"] == {"precision": "bfloat16"}


def pretend_gpu(monkeypatch, is_there, capability):
    """A GPU of a compute capability; those below 8.0 can hold bfloat16 but compute in float32 (V100 and T4: 7.x)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)


def test_auto_is_bfloat16_where_encoders_train_on_a_gpu_that_has_it(monkeypatch):
    finetuned = {"encoders": "finetuned", "steps": 1}
    frozen, half = {**finetuned, "encoders": "frozen"}, {**finetuned, "clip_weights": "float16"}
    for has_gpu, capability, expected in ((True, 8, "bf16"), (True, 7, "no"), (False, 8, "no")):
        pretend_gpu(monkeypatch, has_gpu, capability)
        assert build_precision(Train(**finetuned)) == expected
        assert build_precision(Train(**frozen)) == build_precision(Train(**half)) == "no"
        assert build_precision(Train(**finetuned, mixed_precision="no")) == "no"


def test_a_run_is_named_by_the_autocast_that_auto_chose(project, monkeypatch):
    recipe = load_recipe(str(project()), ["train.encoders=finetuned"])
    assert recipe.train.mixed_precision == "auto" and run_settings(recipe)["train"]["mixed_precision"] == "no"
    pretend_gpu(monkeypatch, True, 9)
    assert run_settings(recipe)["train"]["mixed_precision"] == "bf16"
