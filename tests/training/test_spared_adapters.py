"""Adapters that captions do not teach: the contrastive term moves everything else, and as before."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny import TinyPixels, tiny_batches, tiny_clip
from torch.testing import assert_close

from teachclip.models.student import StudentModel
from teachclip.training.chunked_step import chunked_backward
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachclip.training.task import DistillationTask, DistillationTerms, Term

Step = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Reversed:
    """Other token ids for every caption, as if its clauses were swapped."""

    def texts(self, rows):
        ids = TinyPixels.make().ids.flip(0)[rows]
        swapped = torch.arange(len(rows)) % 3 > 0
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "is_swapped": swapped}

    def videos(self, rows):
        return {}


def step(*, size: int | None = None, swapped: bool = False, vectors: int = 1, **contrastive: object) -> Step:
    """Return the losses of a step and the gradient of every parameter."""
    torch.manual_seed(5)
    options = {"adapters": ["frame", "pooled", "text"], "vectors": vectors}
    student = StudentModel.from_backbone(tiny_clip(), temporal_layers=2, frames=3, **options).eval()
    with torch.no_grad():
        for head in student.heads.values():
            head.outer.weight.normal_(std=0.1)
    batches = tiny_batches()
    batches.sets = FrameSetSampler(TinyPixels.make(), 12, 6, 1, 2, 5)
    if swapped:
        batches.extras["swapped."] = Reversed()
    terms = DistillationTerms(contrastive=Term(**{"weight": 3.0, **contrastive}), frame_sets=Term(1.0))
    task = DistillationTask(student, terms, stored_weights=(1.0,), frame_set_scorer=FrameSetScorer())
    if size is None:
        losses = task(batches[0])
        losses["loss"].backward()
    else:
        losses = chunked_backward(task, batches[0], size, autocast=nullcontext, backward=torch.Tensor.backward)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("vectors", [1, 2])
def test_captions_teach_everything_but_the_adapters(swapped, vectors):
    options = {"swapped": swapped, "vectors": vectors}
    (losses, found), (as_before, usual) = step(teaches_adapters=False, **options), step(**options)
    _, untaught = step(weight=0.0, **options)
    assert_close(losses, as_before)
    adapters = {name for name in usual if name.startswith("heads.")}
    assert len(adapters) == 12 and found.keys() == usual.keys()
    for name, gradient in found.items():
        assert_close(gradient, untaught[name] if name in adapters else usual[name], rtol=1e-4, atol=1e-5)
    assert any((usual[name] - untaught[name]).abs().max() > 1e-3 for name in adapters)


def test_chunks_give_the_gradients_of_one_pass():
    (losses, found), (parts, chunked) = (step(teaches_adapters=False, swapped=True, size=size) for size in (None, 3))
    assert_close(losses, parts, rtol=1e-5, atol=1e-6)
    assert_close(chunked, found, rtol=1e-4, atol=1e-5)
