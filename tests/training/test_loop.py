import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import start
from safetensors.torch import load_file, save_file
from tiny import tiny_batches, tiny_optimizer, tiny_schedule, tiny_student

from teachclip.errors import CheckpointError, TrainingError
from teachclip.store.files import file_hash
from teachclip.store.fingerprint import seal
from teachclip.training.checkpoint import newest_checkpoint
from teachclip.training.distributed import build_accelerator
from teachclip.training.loop import fit
from teachclip.training.run import Run
from teachclip.training.task import DistillationTask, DistillationTerms

SCRIPT = Path(__file__).parents[1] / "support" / "train_tiny.py"


def train(folder, steps, *, validate=None, stored=True, settings=None, **changes):
    student = tiny_student()
    task = DistillationTask(student, DistillationTerms(), stored_weights=(1.0,) if stored else ())
    run = Run(folder, settings or {"settings": "tiny"})
    run.open()
    progress = fit(
        task,
        tiny_optimizer(student),
        tiny_batches(stored=stored),
        build_accelerator(),
        run,
        tiny_schedule(steps, **changes),
        validate or (lambda: {"t2v": {"recall_at_1": 0.0}}),
    )
    return student, progress


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps)), "a step is logged more than once"
    return {line["step"]: line for line in lines if "loss" in line}


def finish(process):
    done = process.finish()
    assert done.returncode == 0, done.stderr


def test_the_loss_falls_and_every_step_is_logged(tmp_path):
    train(tmp_path, 30)
    found = losses(tmp_path)
    assert list(found) == list(range(1, 31))
    assert sum(found[n]["loss"] for n in range(25, 31)) < sum(found[n]["loss"] for n in range(1, 7)) - 0.5
    assert {"contrastive", "video_text", "frame_text", "grad_norm"} <= set(found[1])


def test_total_is_the_weighted_sum_of_the_terms(tmp_path):
    train(tmp_path, 2)
    for line in losses(tmp_path).values():
        total = 0.2 * line["contrastive"] + line["video_text"] + 2 * line["frame_text"]
        assert math.isclose(line["loss"], total, rel_tol=1e-5)


def test_without_teachers_only_the_contrastive_term_is_used(tmp_path):
    train(tmp_path, 2, stored=False)
    line = losses(tmp_path)[1]
    assert line["loss"] == line["contrastive"] and "video_text" not in line


def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(tmp_path):
    whole, _ = train(tmp_path / "whole", 9)
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return {"t2v": {"recall_at_1": 0.0}}

    with pytest.raises(KeyboardInterrupt, match="stopped and saved after step 7 of 9"):
        train(tmp_path / "resumed", 9, validate=interrupt)
    resumed, _ = train(tmp_path / "resumed", 9)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_log_of_a_resumed_run_holds_no_step_twice(tmp_path):
    train(tmp_path, 6, checkpoint_every=4)
    (newest_checkpoint(tmp_path / "checkpoints", "step") / "state.json").unlink()
    train(tmp_path, 6, checkpoint_every=4)
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_keeps_the_best_weights_from_before_the_interruption(tmp_path):
    values = iter([10.0, 90.0, 20.0])

    def interrupt():
        value = next(values)
        if value == 20.0:
            os.kill(os.getpid(), signal.SIGINT)
        return {"t2v": {"recall_at_1": value}}

    with pytest.raises(KeyboardInterrupt, match="saved after step 7 of 9"):
        train(tmp_path, 9, validate=interrupt, evaluate_every=2)
    best = tmp_path / "checkpoints" / "best-00000004" / "model.safetensors"
    before = best.read_bytes()
    _, progress = train(tmp_path, 9, validate=lambda: {"t2v": {"recall_at_1": 30.0}}, evaluate_every=2)
    assert (progress.best, progress.best_step) == (90.0, 4)
    assert best.read_bytes() == before
    kept = Run(tmp_path, {"settings": "tiny"}).best_weights()
    for name, tensor in load_file(best).items():
        assert torch.equal(kept[name], tensor), name


class NoisyTask(DistillationTask):
    """Draws a random number in every step, as dropout does."""

    def forward(self, batch):
        return {**super().forward(batch), "noise": torch.rand(())}


def test_random_draws_of_a_step_differ_between_steps_and_repeat_on_resume(tmp_path, monkeypatch):
    import test_loop

    monkeypatch.setattr(test_loop, "DistillationTask", NoisyTask)
    test_loop.train(tmp_path / "whole", 6)
    drawn = {step: line["noise"] for step, line in losses(tmp_path / "whole").items()}
    assert len(set(drawn.values())) == 6
    test_loop.train(tmp_path / "resumed", 6, checkpoint_every=4)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000006")
    test_loop.train(tmp_path / "resumed", 6, checkpoint_every=4)
    assert {step: line["noise"] for step, line in losses(tmp_path / "resumed").items()} == drawn
    test_loop.train(tmp_path / "other", 6, seed=1)
    assert not set(drawn.values()) & {line["noise"] for line in losses(tmp_path / "other").values()}


def test_killed_at_random_moments_training_ends_in_the_same_weights(tmp_path):
    finish(start(SCRIPT, tmp_path / "whole", 8, "", 0.05))
    for attempt in range(3):
        process = start(SCRIPT, tmp_path / "killed", 8, "", 0.3)
        deadline = time.time() + 60
        wanted = 1 + 2 * attempt + random.Random(attempt).random()
        while process.poll() is None and time.time() < deadline:
            newest = newest_checkpoint(tmp_path / "killed" / "checkpoints", "step")
            if newest is not None and int(newest.name[-8:]) >= wanted:
                break
            time.sleep(0.01)
        time.sleep(random.Random(attempt).random() * 0.2)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    finish(start(SCRIPT, tmp_path / "killed", 8, "", 0))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")  # says in which step they differ first
    ends = [newest_checkpoint(tmp_path / name / "checkpoints", "step") for name in ("whole", "killed")]
    assert ends[0].name == ends[1].name
    weights = [load_file(end / "model.safetensors") for end in ends]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []


@pytest.mark.parametrize("online", ["", "online"])
def test_two_processes_give_the_losses_of_one(tmp_path, online):
    runs = [start(SCRIPT, tmp_path / name, 5, online, processes=n) for n, name in enumerate(("one", "two"), 1)]
    for run in runs:
        finish(run)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4, 5]
    for step in one:
        for name in ("loss", "contrastive", "video_text", "frame_text"):
            assert abs(one[step][name] - two[step][name]) < 1e-5, (step, name)
        assert math.isclose(one[step]["grad_norm"], two[step]["grad_norm"], rel_tol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(tmp_path):
    class Broken(DistillationTask):
        def forward(self, batch):
            losses = super().forward(batch)
            return {**losses, "loss": losses["loss"] * (float("nan") if broken[0] else 1.0)}

    broken = [False]

    def validate():
        broken[0] = True
        return {"t2v": {"recall_at_1": 0.0}}

    student = tiny_student()
    run = Run(tmp_path, {})
    run.open()
    with pytest.raises(TrainingError, match=r"step 4: loss is nan.*nonfinite-step-4.json") as error:
        fit(
            Broken(student, DistillationTerms(), stored_weights=(1.0,)),
            tiny_optimizer(student),
            tiny_batches(),
            build_accelerator(),
            run,
            tiny_schedule(6),
            validate,
        )
    assert "\n" not in str(error.value)
    record = json.loads((tmp_path / "nonfinite-step-4.json").read_text())
    assert len(record["pairs"]) == 8 and record["pairs"][0]["video"].startswith("video")
    newest = newest_checkpoint(tmp_path / "checkpoints", "step")
    weights = load_file(newest / "model.safetensors")
    assert newest.name == "step-00000003" and all(tensor.isfinite().all() for tensor in weights.values())


def test_the_best_weights_by_validation_are_kept(tmp_path):
    values = iter([10.0, 30.0, 20.0])
    _, progress = train(tmp_path, 9, validate=lambda: {"t2v": {"recall_at_1": next(values)}})
    assert (progress.best, progress.best_step) == (30.0, 6)
    assert newest_checkpoint(tmp_path / "checkpoints", "best").name == "best-00000006"


def test_the_last_weights_are_kept_where_nothing_can_be_selected_before_and_after_an_interruption(tmp_path):
    values = iter([90.0, 10.0, 20.0])

    def interrupt():
        if (value := next(values)) == 10.0:
            os.kill(os.getpid(), signal.SIGINT)
        return {"t2v": {"recall_at_1": value}}

    with pytest.raises(KeyboardInterrupt, match="saved after step 7 of 9"):
        train(tmp_path, 9, validate=interrupt, select_last=True)
    assert newest_checkpoint(tmp_path / "checkpoints", "best").name == "best-00000006"
    student, progress = train(tmp_path, 9, validate=interrupt, select_last=True)
    assert (progress.best, progress.best_step) == (20.0, 9)
    kept = Run(tmp_path, {"settings": "tiny"}).best_weights()
    for name, tensor in student.state_dict().items():
        assert torch.equal(kept[f"student.{name}"], tensor), name


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path):
    train(tmp_path, 2, settings={"optimizer": {"lr": 1e-3}})
    with pytest.raises(CheckpointError, match=r"other settings: .*optimizer\.lr.*0\.001.*0\.01"):
        train(tmp_path, 2, settings={"optimizer": {"lr": 1e-2}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(folder, 4)
    return folder


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:100])),
        ("model.safetensors", lambda file: flip(file, -3)),
        ("optimizer.safetensors", lambda file: flip(file, -3)),
        ("optimizer.safetensors", lambda file: shutil.copy(file.with_name("model.safetensors"), file)),
        ("model.safetensors", lambda file: file.unlink()),
        ("state.json", lambda file: file.write_text(file.read_text().replace('"step": 4', '"step": 3'))),
        ("state.json", lambda file: file.write_text('{"progress": {"step": 4}}')),
        ("state.json", lambda file: file.write_text("[" * 100_000)),
        ("state.json", lambda file: file.write_bytes(b"\xff")),
    ],
)
def test_a_damaged_checkpoint_is_named_and_never_gone_on_from(tmp_path, trained, name, damage):
    shutil.copytree(trained, tmp_path / "run")
    path = newest_checkpoint(tmp_path / "run" / "checkpoints", "step") / name
    damage(path)
    with pytest.raises(CheckpointError) as error:
        train(tmp_path / "run", 6)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot read the checkpoint: ") and "\n" not in message
    assert f"delete {path.parent.name} and run again" in message
    shutil.rmtree(path.parent)  # the remedy that the message names
    _, progress = train(tmp_path / "run", 6)
    assert progress.step == 6


def with_state(change):
    """Change the state in a checkpoint in a way that no checksum shows."""

    def apply(folder):
        file = newest_checkpoint(folder / "checkpoints", "step") / "state.json"
        content = json.loads(file.read_text())
        del content["seal"]
        change(content)
        file.write_text(json.dumps(seal(content)))

    return apply


def progress(**values):
    return with_state(lambda content: content["state"].update(progress=values))


def other_weights(folder):
    file = newest_checkpoint(folder / "checkpoints", "step") / "model.safetensors"
    save_file({"x": torch.ones(1)}, file)
    with_state(lambda content: content["sha256"].update({file.name: file_hash(file)}))(folder)


def pipe(folder):
    (folder / "settings.json").unlink()
    os.mkfifo(folder / "settings.json")


HOSTILE = {
    "settings: empty": lambda folder: (folder / "settings.json").write_text(""),
    "settings: a list": lambda folder: (folder / "settings.json").write_text("[]"),
    "settings: nested": lambda folder: (folder / "settings.json").write_text("[" * 100_000),
    "settings: not UTF-8": lambda folder: (folder / "settings.json").write_bytes(b"\xff"),
    "settings: a pipe": pipe,
    "settings: gone": lambda folder: (folder / "settings.json").unlink(),
    "log: a folder": lambda folder: ((folder / "log.jsonl").unlink(), (folder / "log.jsonl").mkdir()),
    "state: none": with_state(lambda content: content.update(state=None)),
    "state: a list": with_state(lambda content: content.update(state=[1])),
    "progress: none": with_state(lambda content: content.update(state={})),
    "progress: too little": progress(step=4),
    "progress: text": progress(step="x", best=0.0, best_step=0),
    "progress: negative": progress(step=-5, best=0.0, best_step=0),
    "progress: half a step": progress(step=2.5, best=0.0, best_step=0),
    "progress: no best": progress(step=4, best=None, best_step=0),
    "weights of another model": other_weights,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_in_a_run_folder_is_said_in_one_line(tmp_path, trained, name):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    HOSTILE[name](folder)
    with pytest.raises(CheckpointError) as error:
        train(folder, 6)
    message = str(error.value)
    assert message.startswith(str(folder)) and "delete" in message
    assert "\n" not in message and len(message) < 700


def test_lines_that_are_no_log_and_folders_that_are_no_checkpoints_are_passed_over(tmp_path, trained):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    with open(folder / "log.jsonl", "ab") as file:
        for line in (b"[]", b"3", b"null", b'{"step": "x"}', b'{"step": null}', b"[" * 100_000, b'"step"', b"\xff"):
            file.write(line + b"\n")
    (folder / "checkpoints" / "best-0x").mkdir()
    (folder / "checkpoints" / "step-00000009").write_text("")
    _, progress = train(folder, 6)
    assert progress.step == 6 and list(losses(folder)) == [1, 2, 3, 4, 5, 6]


def test_the_logit_scale_never_exceeds_ln_100(tmp_path):
    student = tiny_student()
    with torch.no_grad():
        student.backbone.logit_scale.fill_(math.log(100))
    run = Run(tmp_path, {})
    run.open()
    fit(
        DistillationTask(student, DistillationTerms(), stored_weights=(1.0,)),
        tiny_optimizer(student),
        tiny_batches(),
        build_accelerator(),
        run,
        tiny_schedule(4),
        None,
    )
    assert student.backbone.logit_scale.item() <= math.log(100) + 1e-6
