"""`teachclip study --auto`: successive halving over the standing recipes, and test read once at the end."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_study import metrics
from test_study import InThisProcess

from teachclip import load_recipe
from teachclip.cli.study import main
from teachclip.errors import RecipeError
from teachclip.pipeline.build import build_catalog, check_student_training
from teachclip.processes import Processes
from teachclip.studies import auto as auto_module
from teachclip.studies import trials
from teachclip.studies.auto import BASELINE, STANDING, Candidate, auto, auto_plan, halve, whole_steps
from teachclip.studies.halving import Budget, fit_halving, rounds
from teachclip.studies.jobs import Train
from teachclip.studies.variants import Variant

ALL = [BASELINE, *STANDING]


def trainings(total: float, steps: int = 400) -> Budget:
    return Budget(total, "trainings", lambda count, length: count * length / steps)


def test_rounds_halve_the_candidates_and_double_the_steps():
    found = [(each.count, each.steps) for each in rounds(15, 400, 2)]
    assert found == [(15, 100), (8, 200), (4, 400)]
    assert [(each.count, each.steps) for each in rounds(2, 3, 3)] == [(2, 1), (2, 1), (2, 2), (2, 3)]


def test_a_budget_buys_long_runs_first_and_then_seeds():
    least, some, more = (fit_halving(15, 400, 6, trainings(total)) for total in (11, 20, 45))
    assert [len(found.rounds) for found in (least, some, more)] == [6, 3, 3]
    assert [found.seeds for found in (least, some, more)] == [1, 1, 3]
    for found, total in ((least, 11), (some, 20), (more, 45)):
        spent = 6 + found.seeds * sum(each.count * each.steps / 400 for each in found.rounds)
        assert found.cost == pytest.approx(spent) and spent <= total
    with pytest.raises(RecipeError, match=r"budget of 8 trainings is too small for 15 candidates; the least is 11"):
        fit_halving(15, 400, 6, trainings(8))


def candidate(name: str, recall: float, total: float = 0.0) -> Candidate:
    return Candidate(Variant(name, name, (), ()), (), ((99.0, 0.0), (recall, total)))


def test_the_last_round_decides_then_all_recalls_and_the_baseline_always_stays():
    tried = [candidate("a", 5), candidate("b", 7, 1), candidate("c", 7, 2), candidate(BASELINE, 1), candidate("d", 6)]
    assert [each.variant.name for each in halve(tried, 3)] == ["c", "b", BASELINE]
    assert [each.variant.name for each in halve(tried, 5)] == ["c", "b", "d", "a", BASELINE]


def test_recipes_that_need_a_teacher_are_not_tried_without_one(project):
    with_teacher = auto_plan(project.folder / "out", project(), [1e-3], 2)
    assert sorted(variant.name for variant in with_teacher.study.variants) == sorted(ALL)
    assert with_teacher.study.test_seeds == (300, 301)
    without = auto_plan(project.folder / "out", project("none.yaml", teachers=[]), [1e-3, 1e-2], 2)
    assert [variant.name for variant in without.study.variants] == [BASELINE, "adapters"]
    assert without.study.variants[0].grid == (("optimizer.lr=0.001",), ("optimizer.lr=0.01",))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frames": {"store": "none"}, "train": {"encoders": "finetuned"}}, "losses.frame_sets reads frames of many"),
        ({"frames": {"count": 2}}, "losses.frame_sets.frames is [1, 3], but videos have 2 frames"),
        ({"losses": {"frame_sets": {"videos": "{videos}"}}}, "losses.frame_sets.videos is {videos}, which may hold"),
    ],
)
def test_a_standing_recipe_that_does_not_fit_is_left_out_in_one_line(project, capsys, changes, problem):
    videos = str(project.root / "videos")
    changes = json.loads(json.dumps(changes).replace("{videos}", videos))
    recipe = str(project(**changes))
    assert main(["--auto", recipe, "--dry-run", "--out", str(project.folder / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "not tried" in line]
    assert [line.split(" does not fit to recipe.yaml and is not tried: ")[0] for line in told] == [
        "default recipe",
        "all options",
    ]
    assert all(problem.replace("{videos}", videos) in line for line in told)
    assert any(line.startswith("candidate published losses + adapters:") for line in lines), "in its stead"


def test_a_problem_of_the_recipe_itself_is_raised(project, capsys):
    recipe = str(project(data={"select_on": "test"}))
    assert main(["--auto", recipe, "--dry-run", "--out", str(project.folder / "out")]) == 2
    told = capsys.readouterr().err
    assert "data.select_on is test: the checkpoint would be chosen on test" in told and "not tried" not in told


def test_a_rate_that_is_given_twice_is_tried_once(project):
    plan = auto_plan(project.folder / "out", project(), [1e-3, 0.001, 1e-2], 1)
    assert plan.study.variants[0].grid == (("optimizer.lr=0.001",), ("optimizer.lr=0.01",))


def test_epochs_are_counted_in_steps(project):
    recipe = project(train={"steps": None, "epochs": 3})
    assert whole_steps(auto_plan(project.folder / "out", recipe, [1e-3], 1)) == 3 * 4


@pytest.fixture
def made_up(monkeypatch):
    """Trials without training: validation prefers `best`, which is also 5 better on test; names what was run."""
    ran: list[Any] = []

    def use(best: str, rate: str) -> list[Any]:
        def run(jobs: Any, processes: int, label: str, **options: Any) -> dict[str, Any]:
            ran.append((label, list(jobs)))
            return {job.name: result(job) for job in jobs}

        def result(job: Any) -> dict[str, Any]:
            if not isinstance(job, Train):
                parts = ["train", "selection", "test", "teacher xpool"]
                content = dict.fromkeys(parts, "x")
                return {"content": {stores: content for stores, _ in job.readers}, "splits": {"test": [60, 120]}}
            good = (job.variant == best) + (f"optimizer.lr={rate}" in job.settings)
            if job.kind == "tune":
                return {"validation": metrics(20.0 + good)}
            return {"test": metrics(20.0 + 5 * (job.variant == best) + job.seed % 3 / 10)}

        monkeypatch.setattr(auto_module, "run_trials", run)
        return ran

    return use


def test_the_best_on_validation_is_written_and_test_is_read_for_it_and_the_baseline_alone(project, made_up, capsys):
    ran = made_up("default", "0.003")
    found = auto(project(train={"steps": 8}), rates=[1e-3, 3e-3], trainings=30, out=project.folder / "out")
    assert found["chosen"]["variant"] == "default"
    assert found["chosen"]["settings"] == ["optimizer.lr=0.003"]
    labels = [label for label, _ in ran]
    assert [label.partition(":")[0] for label in labels] == ["prepare", "round 1/3", "round 2/3", "round 3/3", "test"]
    steps = [{text for job in jobs for text in job.settings if "train.steps" in text} for _, jobs in ran[1:4]]
    assert steps == [{"train.steps=2"}, {"train.steps=4"}, {"train.steps=8"}]
    assert not ran[0][1][0].measure, "teachers would be measured on test"
    assert all(job.kind == "tune" for _, jobs in ran[1:4] for job in jobs)
    tests = {(job.variant, job.seed) for job in ran[4][1] if job.kind == "test"}
    assert tests == {(name, seed) for name in (BASELINE, "default") for seed in (300, 301, 302)}
    assert not any("train.steps=2" in job.settings for job in ran[4][1])
    chosen = load_recipe(project.folder / "out" / "recipe.yaml")
    assert (
        chosen.if_better_teacher == ["student.adapters=[frame,pooled,text]", "losses.contrastive.weight=0.5"]
        and chosen.optimizer.lr == 3e-3
    )
    assert chosen.losses.video_text.weight == 1 and chosen.train.steps == 8
    (difference,) = [item for item in found["differences"] if item["metric"] == "R@1"]
    assert difference["mean"] == pytest.approx(5) and not difference["touches_zero"]
    printed = capsys.readouterr().out
    assert printed.startswith("# Take: default recipe, optimizer.lr=0.003")
    assert "Clear of zero: better." in printed and printed.count("| undistilled") >= 2
    assert json.loads((project.folder / "out" / "auto.json").read_text())["chosen"] == found["chosen"]
    counts = [len(row["recall_at_1"]) for row in found["candidates"]]
    assert len(counts) == 10 and counts == sorted(counts, reverse=True) and counts[-1] == 1


def test_where_teaching_does_not_help_the_report_says_so(project, made_up, capsys):
    made_up(BASELINE, "0.001")
    found = auto(project(), rates=[1e-3], out=project.folder / "out")
    assert found["chosen"]["variant"] == BASELINE and found["differences"] == []
    told = capsys.readouterr().out
    assert "The undistilled student itself is the best on validation: nothing else that was tried helped." in told
    assert load_recipe(project.folder / "out" / "recipe.yaml").teachers == []


@pytest.mark.parametrize(
    ("best", "says"),
    [
        ("all_options", "It learns from data.uncaptioned, {folder}, too, which this comparison excluded."),
        ("published", "It excludes data.uncaptioned, {folder}, which it cannot learn from: "),
        ("adapters", "It excludes data.uncaptioned, {folder}, which it cannot learn from: "),
    ],
)
def test_videos_without_captions_are_of_no_trial_but_of_the_chosen_recipe_if_it_can_learn_from_them(
    project, made_up, capsys, best, says
):
    ran = made_up(best, "0.001")
    folder = project.folder / "more # videos"
    folder.mkdir()
    shutil.copy(project.root / "videos" / "clip0.mp4", folder / "other.mp4")
    losses = {"contrastive": {"weight": 0.2}, "frame_text": {"targets": "video"}}
    recipe = project(data={"uncaptioned": str(folder)}, losses=losses)
    auto(recipe, rates=[1e-3], out=project.folder / "out")
    assert all("data.uncaptioned=null" in job.settings for _, jobs in ran for job in jobs)
    printed = capsys.readouterr()
    assert says.format(folder=folder) in printed.out
    assert "data.uncaptioned is excluded from the comparison" in printed.err
    chosen = load_recipe(project.folder / "out" / "recipe.yaml")
    assert chosen.data.uncaptioned == (folder if best == "all_options" else None)
    check_student_training(chosen, build_catalog(chosen), Processes())


def test_a_whole_run_goes_on_where_it_stopped(project, monkeypatch, capsys):
    monkeypatch.setattr(trials, "ProcessPoolExecutor", InThisProcess)
    recipe, out = project(train={"steps": 4}), project.folder / "out"
    command = ["--auto", str(recipe), "--rates", "1e-3", "--test-seeds", "1", "--trainings", "7", "--out", str(out)]
    trained: list[str] = []
    run = Train.run

    def stopping(job: Train) -> dict[str, Any]:
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append(job.name)
        return run(job)

    monkeypatch.setattr(Train, "run", stopping)
    assert main(command) == 130
    assert not (out / "recipe.yaml").exists()
    monkeypatch.setattr(Train, "run", lambda job: (trained.append(job.name), run(job))[1])
    assert main(command) == 0, capsys.readouterr().err
    assert len(trained) == len(set(trained)) == 5 + 3 + 2 + len({name for name in trained if "test-" in name})
    before = json.loads((out / "auto.json").read_text())
    monkeypatch.setattr(Train, "run", None)
    assert main(command) == 0
    assert json.loads((out / "auto.json").read_text()) == before
    assert before["warnings"], "six queries and one seed are too few"


def test_a_round_lasts_as_long_as_its_busiest_process():
    """15, then 8, then 4 candidates in 4 processes train 4, 2 and 1 times one after another, and 6 tests twice."""
    minutes = Budget(200.0, "minutes", lambda count, length: math.ceil(count / 4) * length / 10)
    for total, seeds, cost in ((200, 1, 40 + 40 + 40 + 80), (320, 2, 80 + 80 + 80 + 80)):
        found = fit_halving(15, 400, 6, replace(minutes, total=total))
        assert (len(found.rounds), found.seeds, found.cost) == (3, seeds, cost)


def test_minutes_are_turned_into_trainings_by_short_ones_as_many_at_once_as_candidates_will_be(
    project, made_up, monkeypatch
):
    ran = made_up("published", "0.001")
    plan = auto_plan(project.folder / "out", project(train={"steps": 320}), [1e-3], 1)
    seconds = {10: 12.0, 40: 18.0}

    def read(path: Path) -> dict[str, Any]:
        job = next(job for _, jobs in ran for job in jobs if job.result_file == path)
        return {"seconds": next(s for n, s in seconds.items() if f"train.steps={n}" in job.settings)}

    monkeypatch.setattr(auto_module, "read_json", read)
    prepared = auto_module.run_trials(plan.preparing(), 1, "prepare")
    price = auto_module._price(plan, 320, prepared, processes=2)
    one = (10 + 0.2 * 320) / 60
    assert [price(count, 320) for count in (1, 2, 3, 15)] == pytest.approx([one, one, 2 * one, 8 * one])
    for _, jobs in ran[-2:]:
        assert {(job.variant, job.seed) for job in jobs} == {("all_options", 1), ("all_options", 2)}
    auto_module._price(plan, 320, prepared, processes=64)
    assert len(ran[-1][1]) == 5, "no more than there are candidates"


def made_plan(project, **train: Any) -> Any:
    return auto_plan(project.folder / "out", project(train={"steps": 400, **train}), [1e-3], 1)


def lengths(plan: Any, *steps: int) -> list[Any]:
    """The training sections of the costliest candidate, cut to so many of 400 steps."""
    variant = plan.study.variants[-1]
    tried = Candidate(variant, variant.grid[0])
    found = [auto_module._length(plan, tried, count, 400) for count in steps]
    return [plan.load(plan.settings(variant, (*variant.grid[0], *length))).train for length in found]


def test_steps_at_rest_are_shortened_with_a_round(project):
    found = lengths(made_plan(project, encoders="finetuned", frozen_steps=100), 13, 100, 400)
    assert [train.frozen_steps for train in found] == [3, 25, 100]
    assert [train.steps for train in found] == [13, 100, 400]


def test_a_round_validates_as_often_as_the_recipe_says(project):
    assert [train.evaluate_every for train in lengths(made_plan(project, evaluate_every=None), 100, 400)] == [
        None
    ] * 2
    assert [train.evaluate_every for train in lengths(made_plan(project, evaluate_every=50), 25, 400)] == [25, 50]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_short_training_that_was_interrupted_is_timed_anew(project, made_up, monkeypatch, is_kept):
    made_up("published", "0.001")
    plan = made_plan(project)
    prepared = auto_module.run_trials(plan.preparing(), 1, "prepare")

    def run(jobs: Any, processes: int, label: str) -> None:
        for job in jobs:
            seconds = None if job.output.exists() else 20.0
            if job.result() is None:
                record = {"fingerprint": job.fingerprint, "seconds": 20.0 if seconds else 1.0}
                job.result_file.parent.mkdir(parents=True, exist_ok=True)
                job.result_file.write_text(json.dumps({**record, "result": {"seconds": seconds}}))
            (job.output / "checkpoints").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(auto_module, "run_trials", run)
    assert auto_module._price(plan, 400, prepared, 1)(1, 400) == pytest.approx(20 / 60)
    for path in (plan.folder / "trials").iterdir():
        path.unlink()
    if is_kept:
        variant = plan.study.variants[-1]
        tried = Candidate(variant, variant.grid[0])
        run([auto_module._job(plan, "tune", 1, tried, prepared, auto_module._length(plan, tried, 50, 400))], 1, "")
    assert auto_module._price(plan, 400, prepared, 1)(1, 400) == pytest.approx(20 / 60)


def test_the_folder_of_another_recipe_is_refused(project, made_up, monkeypatch):
    made_up("published", "0.001")
    monkeypatch.setenv("TEACHCLIP_RUNS", str(project.folder / "runs"))
    first = auto(project(), rates=[1e-3])
    assert (project.folder / "runs" / "studies" / f"auto-{project.folder.name}" / "auto.json").exists()
    out = project.folder / "runs" / "studies" / f"auto-{project.folder.name}"
    assert auto(project(), rates=[1e-3], out=out) == first
    with pytest.raises(RecipeError, match=r"has the result for .*recipe\.yaml; give another folder as --out"):
        auto(project("other.yaml"), rates=[1e-3], out=out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["own_data", "--trainings", "9"], "--trainings is for --auto RECIPE"),
        (["own_data", "--test-seeds", "9"], "--test-seeds is for --auto RECIPE"),
        (["own_data", "--auto", "r.yaml"], "STUDY is not for --auto"),
        (["--auto", "r.yaml", "--quick"], "--quick is not for --auto"),
        (["--auto", "r.yaml", "--minutes", "5", "--trainings", "5"], "give --trainings or --minutes, not both"),
        (["--auto", "r.yaml", "--minutes", "-1"], "'-1' is not a number above 0"),
        ([], "STUDY is missing"),
    ],
)
def test_options_that_do_not_go_together_are_named(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_plan_is_printed_and_a_small_budget_refused_before_anything_runs(project, capsys):
    recipe = str(project(train={"steps": 400}))
    assert main(["--auto", recipe, "--dry-run", "--out", str(project.folder / "out")]) == 0
    printed = capsys.readouterr().err
    assert "at most 15 x 100 steps, then 8 x 200 steps, then 4 x 400 steps" in printed.replace("\n", " ")
    assert not (project.folder / "out").exists()
    assert main(["--auto", recipe, "--trainings", "3", "--out", str(project.folder / "out")]) == 2
    assert "the budget of 3 trainings is too small" in capsys.readouterr().err
