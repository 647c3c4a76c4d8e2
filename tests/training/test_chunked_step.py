"""Gradients of a whole batch, computed chunk by chunk, are those of one pass."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from tiny import TinyPixels, TinyRelevance, tiny_batches, tiny_clip, tiny_student
from torch.testing import assert_close

from teachclip.models.mean_pooling import EncoderFeatures
from teachclip.models.student import StudentModel
from teachclip.registry import FRAME_TEXT_LOSSES, VIDEO_TEXT_LOSSES
from teachclip.scorer import concat_tokens
from teachclip.scoring.chunks import chunks_of
from teachclip.scoring.inputs import encode_text_batch, encode_video_batch
from teachclip.training.chunked_step import chunked_backward
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher, Term
from teachclip.training.teacher_task import TeacherTask
from teachers.xpool import XPool


def gradients(task):
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    return found


def whole(task, batch, autocast=contextlib.nullcontext):
    with autocast():
        losses = task(batch)
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()}, gradients(task)


def chunked(task, batch, size, autocast=contextlib.nullcontext):
    losses = chunked_backward(task, batch, size, autocast=autocast, backward=lambda loss: loss.backward())
    return losses, gradients(task)


def check_same(found, expected, relative=1e-4):
    (losses, given), (plain, wanted) = found, expected
    assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    assert given.keys() == wanted.keys()
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    assert_close(given, wanted, rtol=relative, atol=0.1 * relative * largest)  # float32, on any processor


def distillation(terms=None, *, teachers=1, widths=(), **options):
    student = tiny_student()
    student.config.matryoshka = list(widths)
    return DistillationTask(student.eval(), terms or DistillationTerms(), stored_weights=(1.0,) * teachers, **options)


@pytest.mark.parametrize("size", [1, 3, 8, 20])
@pytest.mark.parametrize("together", [1, 2])
def test_chunks_of_any_size_give_the_gradients_of_one_pass(size, together):
    task, batch = distillation(), tiny_batches(captions_per_video=together)[0]
    chunks = list(chunks_of(batch, size))
    assert len(chunks[0]["frame_mask"]) == min(max(1, size // together), 8 // together)
    assert torch.equal(torch.cat([chunk["input_ids"] for chunk in chunks]), batch["input_ids"])
    check_same(chunked(task, batch, size), whole(task, batch))


@pytest.mark.parametrize("video_text", VIDEO_TEXT_LOSSES)
def test_every_video_text_loss(video_text):
    terms = DistillationTerms(video_text=Term(1.0, video_text, 2.0, end_weight=3.0))
    batch = {**tiny_batches()[0], "progress": torch.tensor(0.5)}
    task = distillation(terms)
    check_same(chunked(task, batch, 3), whole(task, batch))


@pytest.mark.parametrize("frame_text", FRAME_TEXT_LOSSES)
def test_every_frame_text_loss(frame_text):
    task, batch = distillation(DistillationTerms(frame_text=Term(2.0, frame_text))), tiny_batches()[0]
    check_same(chunked(task, batch, 3), whole(task, batch))


def test_prefixes_and_two_teachers_by_confidence():
    batches = tiny_batches()
    batches.relevances = [TinyRelevance(), TinyRelevance()]
    batches.relevances[1].logits = -batches.relevances[1].logits
    task = distillation(teachers=2, by_confidence=True, widths=(32, 8))
    check_same(chunked(task, batches[0], 3), whole(task, batches[0]))


def test_online_teachers():
    online = [OnlineTeacher(XPool.from_clip(tiny_clip(1)).eval())]
    batch = tiny_batches(stored=False, captions_per_video=2)[0]
    task = distillation(teachers=0, online=online, chunk_size=3)
    check_same(chunked(task, batch, 3), whole(distillation(teachers=0, online=online), batch))


def test_a_teacher_in_training():
    batch = tiny_batches(stored=False)[0]
    task = TeacherTask(XPool.from_clip(tiny_clip(1)).eval())
    check_same(chunked(task, batch, 3), whole(task, batch))


def test_frame_sets_and_adapters():
    torch.manual_seed(5)
    student = StudentModel.from_backbone(
        tiny_clip(), temporal_layers=2, frames=3, adapters=["frame", "pooled", "text"]
    ).eval()
    with torch.no_grad():
        for head in student.heads.values():
            head.outer.weight.normal_(std=0.1)
    batches = tiny_batches()
    batches.sets = FrameSetSampler(TinyPixels.make(), 12, 6, 1, 2, 5)
    terms = DistillationTerms(frame_sets=Term(1.0))
    task = DistillationTask(student, terms, stored_weights=(1.0,), frame_set_scorer=FrameSetScorer())
    check_same(chunked(task, batches[0], 3), whole(task, batches[0]))


def test_frozen_encoders():
    batch, encoders = tiny_batches()[0], EncoderFeatures(tiny_clip())
    with torch.no_grad():
        texts, videos = encode_text_batch(encoders, batch), encode_video_batch(encoders, batch)
    batch = {name: value for name, value in batch.items() if name not in ("frames", "input_ids", "attention_mask")}
    batch |= {"text_features": texts["features"], "frame_features": videos["frame_features"]}
    task = distillation()
    for name, parameter in task.named_parameters():
        parameter.requires_grad_("backbone" not in name or "logit_scale" in name)
    check_same(chunked(task, batch, 3), whole(task, batch))


def test_under_autocast_the_gradients_are_those_of_one_pass_under_autocast():
    task, batch = distillation(), tiny_batches()[0]
    half = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    one, parts, exact = whole(task, batch, half), chunked(task, batch, 3, half), whole(task, batch)
    vectors = [torch.cat([given.flatten() for given in found[1].values()]) for found in (one, parts, exact)]
    rounding = (vectors[0] - vectors[2]).norm()
    assert one[1].keys() == parts[1].keys() and rounding > 0
    assert (vectors[1] - vectors[0]).norm() < rounding  # each chunk rounds a part of the gradient
    assert_close(parts[0], one[0], rtol=1e-5, atol=1e-6)


def test_what_is_random_is_drawn_once_and_repeated():
    task, batch = distillation(), tiny_batches()[0]
    task.train()
    for module in task.student.backbone.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5  # of the attention
    torch.manual_seed(1)
    losses = task.losses(batch, concat_tokens([task.encode(chunk) for chunk in chunks_of(batch, 3)]))
    after = torch.rand(())
    losses["loss"].backward()
    expected = {name: value.detach() for name, value in losses.items()}, gradients(task)
    torch.manual_seed(1)
    check_same(chunked(task, batch, 3), expected)
    assert torch.rand(()) == after
    torch.manual_seed(2)
    assert chunked(task, batch, 3)[0]["loss"] != expected[0]["loss"]


def test_scaled_losses_give_scaled_gradients():
    task, batch = distillation(), tiny_batches()[0]
    _, expected = whole(task, batch)
    chunked_backward(task, batch, 3, autocast=contextlib.nullcontext, backward=lambda loss: (1024 * loss).backward())
    for name, gradient in gradients(task).items():
        np.testing.assert_allclose(gradient / 1024, expected[name], rtol=1e-3, atol=1e-6)
