import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from teachclip.errors import DataError, LaunchError, StoreError, TrainingError
from teachclip.studies import trials
from teachclip.studies.trials import Trial, run_trial, run_trials


@dataclass(frozen=True)
class Square(Trial):
    """A trial that needs no training; numbers below 0 fail."""

    folder: Path
    number: int
    settings: tuple[str, ...] = ()

    @property
    def name(self):
        return f"square-{self.number}"

    @property
    def fingerprint(self):
        return str(self.number)

    def places(self):
        return {}

    def run(self):
        if self.number < 0:
            raise DataError("no videos")
        with open(self.folder / f"ran-{self.number}", "a") as file:
            file.write("x")
        return {"square": self.number**2}


def test_trials_run_in_other_processes_once_each_and_a_failing_one_is_named(tmp_path, monkeypatch, capsys):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    calls = []
    squares = [Square(tmp_path, 2), Square(tmp_path, 3), Square(tmp_path, 2), Square(tmp_path, -1)]
    with pytest.raises(TrainingError, match="square--1: no videos"):
        run_trials(squares, 1, "squares", on_progress=lambda done, seconds: calls.append(done))
    assert calls == [1, 2]
    monkeypatch.setattr(trials, "ProcessPoolExecutor", None)
    assert run_trials(squares[:3], 1, "squares") == {"square-2": {"square": 4}, "square-3": {"square": 9}}
    assert "2 of 2 skipped: already done" in capsys.readouterr().err
    assert (tmp_path / "ran-2").read_text() == (tmp_path / "ran-3").read_text() == "x"
    kept = json.loads((tmp_path / "trials" / "square-2.json").read_text())
    assert kept.pop("seconds") >= 0
    assert kept == {"name": "square-2", "settings": [], "fingerprint": "2", "result": {"square": 4}}
    assert "== square-2" in next((tmp_path / "logs").iterdir()).read_text()


def test_a_trial_does_not_run_with_other_code_than_its_caller(tmp_path):
    assert run_trial(Square(tmp_path, 2), trials.code_hash()) == {"square": 4}
    with pytest.raises(TrainingError, match="square-2: the code was changed meanwhile"):
        run_trial(Square(tmp_path, 2), "other code")


@dataclass(frozen=True)
class OnShapes(Square):
    """A trial on a Shapes dataset, which reports whether the network is shut off."""

    @property
    def name(self):
        return f"shapes-{self.number}"

    def places(self):
        return {"SHAPES_ROOT": "shapes"} if self.number else {}

    def run(self):
        return {"offline": os.environ.get("HF_HUB_OFFLINE")}


def test_only_trials_on_shapes_are_cut_off_from_the_network(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert run_trials([OnShapes(tmp_path, 1)], 1, "shapes") == {"shapes-1": {"offline": "1"}}
    assert run_trials([OnShapes(tmp_path, 0)], 1, "own") == {"shapes-0": {"offline": None}}


def test_the_result_of_another_trial_or_a_damaged_one_is_not_taken(tmp_path):
    trial = Square(tmp_path, 2)
    run_trial(trial)
    record = json.loads(trial.result_file.read_text())
    trial.result_file.write_text(json.dumps({**record, "fingerprint": "other"}))
    assert trial.result() is None
    same = {"fingerprint": record["fingerprint"]}
    wrong = [same, {**same, "result": 3, "seconds": []}, [], None]
    for content in ("{", "[" * 10**5, *map(json.dumps, wrong)):
        trial.result_file.write_text(content)
        assert trial.result() is None
        assert trials.seconds_by_kind(tmp_path) == {}


def test_a_folder_is_free_again_after_a_study_and_held_during_it(tmp_path):
    refused = pytest.raises(LaunchError, match="another study runs there")
    with trials.only_one(tmp_path), refused, trials.only_one(tmp_path):
        pass
    with trials.only_one(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: cannot create the folder"), trials.only_one(tmp_path / "file"):
        pass


@dataclass(frozen=True)
class Stopped(Square):
    """A trial that is interrupted, as the training loop is by a signal."""

    def run(self):
        (self.folder / f"ran-{self.number}").write_text("x")
        raise KeyboardInterrupt


def test_a_worker_that_is_interrupted_does_not_start_the_next_trial(tmp_path):
    with pytest.raises(TrainingError, match="a worker process died"):
        run_trials([Stopped(tmp_path, number) for number in range(3)], 1, "stopped")
    assert [path.name for path in tmp_path.glob("ran-*")] == ["ran-0"]
