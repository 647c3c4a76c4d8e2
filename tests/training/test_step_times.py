"""What a run logs of its learning rates, time and memory."""

import json

import psutil
import pytest
import torch
from tiny import tiny_batches, tiny_optimizer, tiny_schedule, tiny_student

from teachclip.training.distributed import build_accelerator
from teachclip.training.loop import fit
from teachclip.training.optim import published_schedule
from teachclip.training.run import Run
from teachclip.training.step_times import BACKWARD, DATA, FORWARD, OPTIMIZER, StepTimes, peak_megabytes
from teachclip.training.task import DistillationTask, DistillationTerms


def test_a_part_lasts_from_the_mark_before_it_and_is_the_mean_of_a_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("teachclip.training.step_times.time.perf_counter", lambda: now[0])
    times = StepTimes(torch.device("cpu"))
    for step in (1, 3):
        times.start()
        for part, seconds in ((DATA, 0.2), (FORWARD, 0.01), (BACKWARD, 0.02 * step), (OPTIMIZER, 0.004)):
            now[0] += seconds
            times.mark(part)
        now[0] += 50  # validation: of no part
    found = times.report()
    assert found["steps"] == 2
    assert found["seconds"] == pytest.approx({DATA: 0.2, FORWARD: 0.01, BACKWARD: 0.04, OPTIMIZER: 0.004})
    assert times.report()["seconds"] == {}


def test_the_peak_of_memory_is_at_least_what_the_process_has():
    had = psutil.Process().memory_info().rss / 1e6
    assert had - 1 <= peak_megabytes(torch.device("cpu"))["host"] < psutil.virtual_memory().total / 1e6


@pytest.mark.parametrize(("chunk_size", "parts"), [(None, ["forward", "backward"]), (3, ["forward_backward"])])
def test_the_log_has_rates_of_every_step_and_costs_of_every_report(tmp_path, chunk_size, parts):
    student, run = tiny_student(), Run(tmp_path, {})
    run.open()
    optimizer = tiny_optimizer(student)
    tops = {group["name"].removesuffix("_no_decay"): group["lr"] for group in optimizer.param_groups}
    task = DistillationTask(student, DistillationTerms(), stored_weights=(1.0,))
    schedule = tiny_schedule(5, log_every=2, checkpoint_every=5, chunk_size=chunk_size)
    fit(task, optimizer, tiny_batches(), build_accelerator(), run, schedule, None)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    for number, line in enumerate(steps):
        factor = published_schedule(number / 5, 0.1)
        assert {k: v for k, v in line.items() if k.startswith("lr.")} == pytest.approx(
            {f"lr.{name}": top * factor for name, top in tops.items()}
        )
    costs = [line for line in lines if "seconds" in line]
    assert [(line["step"], line["steps"]) for line in costs] == [(2, 2), (4, 2), (5, 1)]
    assert all(list(line["seconds"]) == ["data", *parts, "optimizer"] for line in costs)
    assert all(line["seconds"][part] > 0 and line["peak_mb"]["host"] > 50 for line in costs for part in parts)
