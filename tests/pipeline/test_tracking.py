"""What TensorBoard, the real one, reads of a run."""

import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from teachclip import distill


def test_tensorboard_has_the_losses_the_results_and_the_recipe(project):
    distill(project(train={"trackers": ["tensorboard"]}))
    log = project.folder / "run" / "tiny"
    events = EventAccumulator(str(log)).Reload()
    lines = [json.loads(line) for line in (project.folder / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm"):
        logged = {line["step"]: line[name] for line in lines if name in line}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(logged) and len(
            logged
        ) == 4
    results = json.loads((project.folder / "run" / "results.json").read_text())
    for split in ("validation", "test"):
        (event,) = events.Scalars(f"{split}/t2v_recall_at_1")
        assert (event.step, event.value) == (4, pytest.approx(results[split]["t2v"]["recall_at_1"]))
    (written,) = log.rglob("hparams.yml")
    hyperparameters = yaml.safe_load(written.read_text())
    assert hyperparameters["train.batch_size"] == 4 and hyperparameters["optimizer.attention_lr"] == 0.01
