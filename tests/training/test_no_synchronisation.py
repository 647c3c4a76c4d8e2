"""No operator of a step makes the host wait for the device: on a CPU it shows in the profile of operators."""

import threading

import pytest
import torch
from tiny import TinyPixels, tiny_batches, tiny_clip, tiny_schedule, tiny_student
from torch.profiler import ProfilerActivity, profile

from teachclip.training.distributed import build_accelerator
from teachclip.training.frame_sets import FrameSetSampler, FrameSetScorer
from teachclip.training.loop import fit
from teachclip.training.optim import build_optimizer, parameter_groups
from teachclip.training.run import Run
from teachclip.training.step import prepare_step
from teachclip.training.task import DistillationTask, DistillationTerms, OnlineTeacher, Term
from teachclip.training.teacher_task import TeacherTask
from teachers.xpool import XPool

WAITING = {
    *("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"),
    *("aten::nonzero", "aten::masked_select", "aten::unique", "aten::_unique2", "aten::unique_consecutive"),
}
"""Operators whose result, or its size, the host needs to go on."""


def distillation(**options):
    terms = DistillationTerms(frame_sets=Term(1.0, end_weight=2.0))
    return DistillationTask(tiny_student(), terms, **options)


def teacher():
    return XPool.from_clip(tiny_clip(1))


TASKS = {
    "stored": lambda: distillation(stored_weights=(1.0,), by_confidence=True, frame_set_scorer=FrameSetScorer()),
    "online": lambda: distillation(online=[OnlineTeacher(teacher().eval())]),
    "a teacher's training": lambda: TeacherTask(teacher()),
}


@pytest.fixture(autouse=True)
def unchecked_ids(monkeypatch):
    """Token ids are checked on the CPU alone, where reading them is no wait."""
    for module in ("backbone", "clip"):
        monkeypatch.setattr(f"teachclip.models.{module}.check_token_ids", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("kind", "chunk_size"), [("stored", None), ("stored", 3), ("online", None), ("a teacher's training", None)]
)
def test_no_operator_of_a_step_waits(kind, chunk_size):
    task, batches = TASKS[kind](), tiny_batches(stored=kind == "stored", captions_per_video=2)
    if kind == "stored":
        batches.sets = FrameSetSampler(TinyPixels.make(), 12, 6, 1, 2, 5)
    batch = {**batches[0], "progress": torch.tensor(0.0)}
    # AdamW's fused kernel for CPUs reads its count of steps, which lies on the host: that is no wait.
    groups = parameter_groups(next(task.children()), lr=1e-3, clip_lr=1e-4, attention_lr=1e-2, weight_decay=0.2)
    accelerator = build_accelerator()
    step, optimizer = prepare_step(task, build_optimizer("bert_adam", groups), accelerator, chunk_size)

    def train():
        step(batch)
        accelerator.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.clamp_scale()

    train()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train()
    seen = {event.key for event in profiled.key_averages()}
    assert {"aten::mm", "aten::_foreach_addcdiv_"} & seen and not WAITING & seen


def test_logging_reads_all_numbers_since_the_last_time_at_once(tmp_path, monkeypatch):
    reads, item = [], torch.Tensor.item
    plain = torch.Tensor.tolist

    def read_one(self):
        assert threading.current_thread() is not threading.main_thread(), "a number is read by itself"
        return item(self)  # the thread that puts batches together has none on a device

    monkeypatch.setattr(torch.Tensor, "item", read_one)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.numel()) or plain(self))
    student, run = tiny_student(), Run(tmp_path, {})
    run.open()
    groups = parameter_groups(student, lr=1e-3, clip_lr=1e-4, attention_lr=1e-2, weight_decay=0.2)
    fit(
        DistillationTask(student, DistillationTerms(), stored_weights=(1.0,)),
        build_optimizer("bert_adam", groups),
        tiny_batches(),
        build_accelerator(),
        run,
        tiny_schedule(4, log_every=2, checkpoint_every=4),
        None,
    )
    assert reads == [10, 10]  # two steps of five numbers each
