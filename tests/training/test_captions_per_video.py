"""Captions that share the encoding of their video: the loss and gradient of batches that repeat the video."""

import json

import pytest
import torch
from processes import start
from tiny import TinyRelevance, tiny_batches, tiny_clip, tiny_student
from torch.testing import assert_close
from train_tiny import __file__ as SCRIPT

from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.scoring.inputs import encode_text_batch, encode_video_batch
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher
from teachclip.training.teacher_task import TeacherTask
from teachers.xpool import XPool

OF_VIDEOS = ("frames", "frame_mask", "frame_features")


def repeated(batch):
    """The same batch with each video repeated for its captions, as it is without sharing."""
    return {name: value.repeat_interleave(2, 0) if name in OF_VIDEOS else value for name, value in batch.items()}


def frozen(batch):
    """The same batch as stored features."""
    encoders = EncoderFeatures(tiny_clip())
    with torch.no_grad():
        texts, videos = encode_text_batch(encoders, batch), encode_video_batch(encoders, batch)
    kept = {name: value for name, value in batch.items() if name not in ("frames", "input_ids", "attention_mask")}
    return {**kept, "text_features": texts["features"], "frame_features": videos["frame_features"]}


def step(task, batch):
    losses = task(batch)
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()}, {
        name: p.grad for name, p in task.named_parameters() if p.grad is not None
    }


def distillation(**options):
    return DistillationTask(tiny_student().eval(), DistillationTerms(), **options)


TASKS = {
    "finetuned": lambda: distillation(stored_weights=(1.0,)),
    "frozen": lambda: distillation(stored_weights=(1.0,)),
    "two teachers by confidence": lambda: distillation(stored_weights=(1.0, 2.0), by_confidence=True),
    "online": lambda: distillation(online=[OnlineTeacher(XPool.from_clip(tiny_clip(1)).eval())]),
    "a teacher's training": lambda: TeacherTask(XPool.from_clip(tiny_clip(1)).eval()),
}


@pytest.mark.parametrize("kind", TASKS)
def test_loss_and_gradient_are_those_of_the_batch_that_repeats_its_videos(kind):
    batches = tiny_batches(captions_per_video=2, stored="online" not in kind and "training" not in kind)
    if "confidence" in kind:
        batches.relevances = [TinyRelevance(), TinyRelevance()]
        batches.relevances[1].logits = -batches.relevances[1].logits
    batch = batches[0]
    batch = frozen(batch) if kind == "frozen" else batch
    assert len(batch["frame_mask"]) == 4 and len(batch["rows"]) == 8
    (losses, gradients), (plain, expected) = step(TASKS[kind](), batch), step(TASKS[kind](), repeated(batch))
    assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert_close(gradients, expected, rtol=1e-4, atol=1e-6 * largest)


def test_matching_is_by_video_as_ever():
    batch = tiny_batches(captions_per_video=2)[0]
    same = batch["video_rows"][:, None] == batch["video_rows"][None]
    assert (same.sum(1) >= 2).all()
    assert torch.equal(batch["video_text.0"][:, ::2], batch["video_text.0"][:, 1::2])


@pytest.mark.slow
@pytest.mark.parametrize("online", ["", "online"])
def test_two_processes_give_the_losses_of_one_in_one_pass_and_in_chunks(tmp_path, online):
    runs = {
        f"{n} {size}": start(SCRIPT, tmp_path / f"{n} {size}", 4, online, "0", "float32", 2, size, processes=n)
        for n, size in ((1, ""), (2, ""), (2, 2))
    }
    found = {}
    for name, run in runs.items():
        done = run.finish()
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        found[name] = [json.loads(line) for line in lines if '"loss"' in line]
    plain, *others = found.values()
    assert len(plain) == 4
    for other in others:
        for first, second in zip(plain, other, strict=True):
            assert first == pytest.approx(second, rel=1e-3, abs=1e-5)
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
