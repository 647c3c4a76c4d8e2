import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_gain import made_up_results

from teachclip.errors import DataError, TrainingError
from teachclip.recipe.loading import load_recipe
from teachclip.shapes.ground_truth import weight_by_kind
from teachclip.studies import gain_trials, measure_gain
from teachclip.studies.comparison import Candidate
from teachclip.studies.gain_arms import FAMILIES, family, grid
from teachclip.studies.gain_plan import SHARPNESS, picks, whole
from teachclip.studies.gain_report import build_gain_report, gain_markdown
from teachclip.studies.gain_trials import Job, Sizes
from teachclip.studies.measure_gain import main
from teachclip.studies.trials import run_trial


@pytest.fixture
def plan(tmp_path):
    clip = tmp_path / "world" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"weights")
    return whole(tmp_path / "gain", common=tmp_path / "world", dev_seeds=2, seeds=3)


def make_job(folder: Path) -> Job:
    return Job(
        "tune", folder, Path("recipe.yaml"), 200, Sizes(10, 5), folder / "world", "arm", ("optimizer.lr=1e-4",)
    )


def test_every_arm_of_a_family_gets_equally_many_trials():
    for group in FAMILIES:
        assert len({len(arm.grid) for arm in group.arms}) == 1
        for arm in group.arms:
            assert len(set(arm.grid)) == len(arm.grid)


def test_unequal_grids_are_refused():
    with pytest.raises(ValueError, match="2 settings"):
        family(
            "f", "F", (), rates=grid({"optimizer.lr": ("1e-4", "3e-4")}), matched=grid({"optimizer.lr": ("1e-4",)})
        )


def test_every_setting_is_one_that_the_recipe_accepts(plan):
    for group in plan.families:
        for arm in group.arms:
            for setting in arm.grid:
                recipe = load_recipe(plan.recipe, [*arm.fixed, *setting])
                assert (recipe.teachers == []) == (arm.name == "undistilled")


def test_published_arm_keeps_the_published_loss(plan):
    arm = plan.families[0].arm("distilled")
    losses = load_recipe(plan.recipe, [*arm.fixed, *arm.grid[0]]).losses
    assert (losses.contrastive.weight, losses.video_text.weight, losses.frame_text.weight) == (0.2, 1.0, 2.0)
    assert (losses.frame_text.targets, losses.frame_text.temperature) == ("pair", 1.0)


def test_development_and_fresh_seeds_are_apart_and_test_is_measured_on_fresh_ones_only(plan):
    assert not set(plan.dev_seeds) & set(plan.seeds)
    assert {job.seed for job in plan.tuning()} == set(plan.dev_seeds)
    candidates = {
        (group.name, arm.name): [Candidate(arm.grid[0], factor, (1.0,)) for factor in SHARPNESS]
        for group in plan.families
        for arm in group.arms
    }
    assert {job.seed for job in plan.testing(candidates)} == set(plan.seeds)


def test_job_names_tell_settings_apart_and_follow_the_clip(plan):
    names = [job.name for job in plan.tuning()]
    assert len(set(names)) == len(names)
    job = plan.tuning()[0]
    assert replace(job, content={**job.content, "clip": "other"}).fingerprint != job.fingerprint


def test_trials_follow_the_recipe_values_that_count_and_no_others(plan, tmp_path):
    text = plan.recipe.read_text()
    assert "lr: 1e-3" in text and "attention_lr: " in text

    def fingerprints(name, changed):
        path = tmp_path / name
        path.write_text(changed)
        return pair(replace(plan, recipe=path))

    def pair(plan):
        taught = next(job for job in plan.tuning() if job.arm == "published-distilled")
        return plan.worlds()[0].fingerprint, taught.fingerprint

    world, tune = pair(plan)
    # every setting says the head's learning rate itself, so the recipe's own does not count
    assert fingerprints("head.yaml", text.replace("attention_lr: ", "attention_lr: 1")) == (world, tune)
    assert fingerprints("place.yaml", text.replace("/shapes_stores", "/elsewhere")) == (world, tune)
    changed = fingerprints("teacher.yaml", text.replace("lr: 1e-3", "lr: 2e-3", 1))
    assert changed[0] != world and changed[1] != tune
    changed = fingerprints("batch.yaml", text.replace("batch_size: 64, evaluate_every: 50}\n", "batch_size: 32}\n"))
    assert changed[1] != tune


def test_finished_trial_is_not_run_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(gain_trials._KINDS, "tune", lambda job: calls.append(job) or {"step": 7})
    job = make_job(tmp_path)
    assert run_trial(job) == run_trial(job) == {"step": 7}
    assert len(calls) == 1


def test_result_of_another_trial_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(gain_trials._KINDS, "tune", lambda job: {"step": 7})
    job = make_job(tmp_path)
    run_trial(job)
    record = json.loads(job.result_file.read_text())
    job.result_file.write_text(json.dumps({**record, "fingerprint": "other"}))
    assert job.result() is None
    job.result_file.write_text("{")
    assert job.result() is None


def test_failing_trial_is_named(tmp_path, monkeypatch):
    def fail(job):
        raise DataError("no videos")

    monkeypatch.setitem(gain_trials._KINDS, "tune", fail)
    with pytest.raises(TrainingError, match=r"tune-200-arm-\w+: no videos"):
        run_trial(make_job(tmp_path))


def test_weights_by_kind_add_up_to_one():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])
    kinds = np.array([["event", "distractor", "empty"], ["event", "event", "distractor"]])
    found = weight_by_kind(weights, kinds)
    assert found["event"] == pytest.approx((0.5 + 1.0) / 2)
    assert sum(found.values()) == pytest.approx(1)


@pytest.fixture
def results(plan):
    return made_up_results(plan)


def test_choice_is_made_over_settings_and_sharpness(plan, results):
    _, candidates, _ = results
    for group in plan.families:
        for arm in group.arms:
            found = picks(candidates[group.name, arm.name])
            assert (found["finetuned"].settings, found["finetuned"].sharpness) == (arm.grid[1], 4)
            assert (found["plain"].settings, found["plain"].sharpness) == (arm.grid[1], 1)


def test_report_pairs_seeds_and_keeps_every_trial(plan, results):
    report = build_gain_report(plan, *results)
    section = report["sections"][0]
    first = section["differences"][0]
    assert (first["arm"], first["baseline"], first["metric"]) == ("distilled", "undistilled", "R@1")
    assert first["values"] == pytest.approx([5, 5, 5])
    assert sum(len(items) for items in report["candidates"].values()) == len(SHARPNESS) * sum(
        len(arm.grid) for group in plan.families for arm in group.arms
    )
    text = gain_markdown(json.loads(json.dumps(report)), [])
    assert "| distilled as published - undistilled " in text
    assert "Every trial on validation" in text
    assert "attention as trained" in text


def test_wrong_number_of_seeds_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_second_measurement_in_the_same_folder_is_refused(tmp_path, capsys, monkeypatch):
    codes = []
    monkeypatch.setattr(measure_gain, "measure", lambda *rest: codes.append(main(["--out", str(tmp_path)])))
    assert main(["--out", str(tmp_path)]) == 0
    assert codes == [2]
    assert "another measurement runs there" in capsys.readouterr().err
