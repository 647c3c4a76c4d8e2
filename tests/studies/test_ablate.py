import json
import os
import shutil
import statistics
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from teachclip.errors import RecipeError
from teachclip.evaluation.intervals import t_quantile
from teachclip.pipeline.build import build_catalog
from teachclip.recipe.loading import load_recipe
from teachclip.studies import study as ablate
from teachclip.studies.checks import check_plan
from teachclip.studies.jobs import Train
from teachclip.studies.plan import build_plan
from teachclip.studies.quick import quick
from teachclip.studies.report import ablation_markdown, build_ablation_report
from teachclip.studies.study import main
from teachclip.studies.study_file import load_comparison
from teachclip.studies.without_test import without_test

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "recipes" / "shapes_xpool.yaml"
UNDISTILLED = {"name": "undistilled", "set": ["teachers=[]", "losses.contrastive.weight=1"]}
FILE = {
    "title": "A title",
    "tune_seeds": [1, 2],
    "seeds": [5, 6, 7],
    "grid": {"optimizer.attention_lr": [1e-3, 3e-3], "train.steps": [4, 6]},
    "arms": [UNDISTILLED, {"name": "published", "label": "as published"}],
}


@pytest.fixture
def arms(tmp_path):
    """Write a file of arms; `changes` replace its sections. Returns its path."""

    def write(**changes):
        path = tmp_path / "arms.yaml"
        path.write_text(yaml.safe_dump({**FILE, **changes}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def worlds(tmp_path, arms):
    """A plan on embedded worlds; `changes` as in `arms`."""
    clip = tmp_path / "world" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"weights")

    def plan(**changes):
        path = arms(**{"worlds": {"train_videos": 40, "test_videos": 20}, **changes})
        return build_plan(tmp_path / "out", SHAPES, load_comparison(path), tmp_path / "world")

    return plan


class InThisProcess:
    """Runs what is submitted at once: starting processes takes longer than the trials here."""

    def __init__(self, *options):
        pass

    def submit(self, run, *given):
        future = Future()
        future.set_result(run(*given))
        return future

    def shutdown(self, **options):
        pass


def lines(path):
    with pytest.raises(RecipeError) as caught:
        load_comparison(path)
    return str(caught.value).splitlines()


def content(**more):
    return {"train": "a", "selection": "b", "test": "c", "teacher xpool": "d", **more}


def metrics(value):
    recalls = {"recall_at_1": value, "recall_at_5": value + 10, "recall_at_10": value + 20}
    return {"t2v": recalls, "v2t": recalls, "sum_of_recalls": 6 * value + 60, "videos": 20, "captions": 20}


COST = {"bytes_per_video": 512.0, "flops_per_query": 256e3, "ms_per_query": 0.5, "candidates": 1000}


def made_up(plan):
    """Made-up results: the second setting is the best of every arm, and `published` gains 4, 6 and 8."""
    prepared = {}
    for job in plan.preparing():
        measured = {**metrics(10.0 + job.seed), "cost": COST}
        prepared[job.name] = {
            **{"content": {"": content()}, "splits": {"train": [400, 3200], "test": [300, 1500]}},
            **{"zero_shot": measured, "teachers": {"xpool": measured}},
        }
    tuned, tests = {}, {}
    for job in plan.tuning(prepared):
        second = any(" ".join(arm.grid[1]) in " ".join(job.settings) for arm in plan.comparison.arms)
        tuned[job.name] = {"step": 1, "validation": metrics(20.0 + 3 * second + job.seed)}
    candidates = plan.candidates(tuned, prepared)
    for job in plan.testing(plan.chosen(candidates), prepared):
        place = plan.comparison.seeds.index(job.seed)
        value = 30.0 + 5 * place + (4 + 2 * place) * (job.arm == "published")
        tests[job.name] = {
            **{"step": 1, "seconds": 10.0 + place, "parameters": 1234, "validation": metrics(1.0)},
            "test": {**metrics(value), "cost": COST},
            **({"temperature_scaling": {"factor": 4.0, "tried": {}}} if job.arm == "published" else {}),
        }
    return prepared, candidates, tests


def test_all_problems_of_a_file_are_told_at_once_with_the_nearest_name(arms):
    found = lines(arms(titel="x", worlds={"presets": "plain"}, seeds=0, arms=[UNDISTILLED, {"nmae": "b"}]))
    text = "\n".join(found)
    assert "arms.yaml: titel is unknown; did you mean title?" in found
    assert "arms.yaml: worlds.presets is unknown; did you mean worlds.preset?" in found
    assert "arms.yaml: arms.1.nmae is unknown; did you mean arms.1.name?" in found
    assert "arms.1.name is missing" in text
    assert "seeds: must be a number of seeds, 1 or more, or a list of seeds, got 0" in text


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "arms.yaml"
    path.write_text("title: a\ntitle: b\n")
    assert lines(path) == [f"{path}, line 2: not valid YAML: key 'title' stands twice"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baseline": "undistiled"}, "baseline: no arm 'undistiled'; did you mean undistilled?"),
        ({"compare": [["published", "nobody"]]}, "compare: no arm 'nobody'"),
        ({"tune_seeds": [1, 1]}, "tune_seeds: 1 stands twice"),
        ({"seeds": [True, 2]}, "seeds: must be a number of seeds"),
        ({"seeds": []}, "seeds: give at least one seed"),
        ({"worlds": {}, "seeds": [2, 3]}, "seeds: 2 also in tune_seeds"),
        ({"set": ["seed=3"]}, "set: seed is set by the comparison itself"),
        ({"grid": {"output": ["a"]}}, "grid: output is set by the comparison itself"),
        ({"set": ["steps"]}, "set: 'steps': write it as section.key=value"),
        ({"settings": [["a=1"]]}, "settings: give a grid or settings, not both"),
        ({"arms": [UNDISTILLED, UNDISTILLED]}, "arms: name 'undistilled' stands twice"),
        (
            {"arms": [{"name": "a", "label": "one"}, {"name": "b", "label": "one"}]},
            "arms: label 'one' stands twice; tables tell arms apart by it",
        ),
        ({"arms": [UNDISTILLED, {"name": "teacher_xpool"}]}, "arms.teacher_xpool: the report calls another model so"),
        ({"arms": [UNDISTILLED, {"name": "zero_shot"}]}, "arms.zero_shot: the report calls another model so"),
        (
            {"arms": [{"name": "a", "like": "b"}, {"name": "b", "like": "a"}]},
            "arms.a.like: goes in a circle: a -> b -> a",
        ),
        (
            {"arms": [UNDISTILLED, {"name": "b", "grid": {"train.steps": [4, 6, 8]}}]},
            "every arm must have as many settings to choose from as the others, got undistilled 4, b 3",
        ),
        ({"settings": [["a=1"], ["a=1"]], "grid": None}, "arms.undistilled: the setting 'a=1' stands twice"),
    ],
)
def test_a_comparison_that_would_not_be_fair_is_refused(arms, changes, told):
    assert any(told in line for line in lines(arms(**changes)))


def test_an_arm_like_another_starts_from_its_overrides_and_its_settings(arms):
    own = [["optimizer.lr=1e-3"], ["optimizer.lr=1e-4"]]
    plus = {"name": "plus", "set": ["a=1"], "settings": own}
    minus = {"name": "minus", "like": "plus", "set": ["a=0"]}
    least = {"name": "least", "like": "minus", "settings": own[::-1]}
    found = load_comparison(arms(arms=[least, minus, plus]))
    known = {arm.name: arm for arm in found.arms}
    assert known["minus"].fixed == known["least"].fixed == ("a=1", "a=0")
    assert known["minus"].grid == known["plus"].grid == (("optimizer.lr=1e-3",), ("optimizer.lr=1e-4",))
    assert known["least"].grid == known["plus"].grid[::-1]
    assert found.tune_seeds == (1, 2) and found.seeds == (5, 6, 7)
    assert found.pairs == (("minus", "least"), ("plus", "least"))


@pytest.mark.parametrize("value", [1e-3, 3e-05, 4, True, None, "pearson", "true", "", "{", [1, "a"], {"a": [0.5]}])
def test_values_of_a_grid_reach_the_recipe_as_they_are(value, arms, tmp_path):
    path = arms(grid={"teachers.0.options.x": [value]})
    setting = load_comparison(path).arms[0].grid[0]
    assert load_recipe(SHAPES, setting).teachers[0].options == {"x": value}


def test_the_files_of_arms_that_come_along_fit_their_recipe(tmp_path):
    files = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
    assert files
    for path in files:
        command = next(line for line in path.read_text(encoding="utf-8").splitlines() if "teachclip ablate" in line)
        named = command.split()[3]
        recipe = ROOT / named if named.startswith("recipes/") else SHAPES  # own data: any recipe
        check_plan(build_plan(tmp_path / "out", recipe, load_comparison(path), tmp_path / "world"))


def test_every_override_is_checked_before_anything_runs(worlds):
    plan = worlds(arms=[UNDISTILLED, {"name": "b", "set": ["optimizer.lrr=1"]}, {"name": "c", "set": ["seeed=1"]}])
    with pytest.raises(RecipeError) as caught:
        check_plan(plan)
    assert str(caught.value).splitlines() == [
        "arm b: shapes_xpool.yaml: optimizer.lrr is unknown; did you mean optimizer.lr?",
        "arm c: shapes_xpool.yaml: seeed is unknown; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.select_on=test", "data.select_on is test: the checkpoint would be chosen on test"),
        ("data.validation=null", "there is no validation split to choose on"),
        ("data.annotations=elsewhere.json", "data.annotations is elsewhere.json for every seed"),
        ("data.test=test.csv", "data.test is test.csv for every seed"),
        ("data.train=train.csv", "data.train is train.csv for every seed"),
        ("stores=common", "stores is common for every seed"),
        ("teachers.0.checkpoint=t.pth", "teachers.xpool.checkpoint is t.pth for every seed"),
    ],
)
def test_worlds_whose_choice_would_see_test_or_mix_seeds_are_refused(worlds, override, told):
    plan = worlds(arms=[{"name": "a", "set": []}, {"name": "b", "like": "a"}])
    plan = replace(plan, comparison=replace(plan.comparison, common=(override,)))
    with pytest.raises(RecipeError, match=told):
        check_plan(plan)


def test_a_problem_of_all_arms_is_told_once(worlds):
    with pytest.raises(RecipeError) as caught:
        check_plan(worlds(set=["data.select_on=test", "data.validation={videos: 5}"]))
    assert str(caught.value).startswith("data.select_on is test") and "\n" not in str(caught.value)


def test_preparing_a_seed_makes_its_world_and_teacher_with_that_seed_and_deletes_nothing(worlds, monkeypatch):
    calls = []
    monkeypatch.setattr("teachclip.shapes.dataset.make_shapes", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(
        "teachclip.pipeline.train_teacher.train_teacher", lambda recipe, section: calls.append(section.training.seed)
    )
    monkeypatch.setattr("teachclip.studies.jobs._store", lambda recipe: (content(), {"train": [2, 4]}))
    measured = {"zero_shot": 1, "teachers": {}}
    monkeypatch.setattr("teachclip.studies.jobs._measure", lambda recipe: measured)
    for name in ("default", "noisy"):
        sizes = {"train_videos": 40, "test_videos": 20} if name == "default" else {}
        job = worlds(worlds={"preset": name, **sizes}).preparing()[-1]
        kept = job.folder / "seed-7" / "kept"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("here before")
        for key, value in job.places().items():
            monkeypatch.setenv(key, value)
        assert job.run() == {"content": {"": content()}, "splits": {"train": [2, 4]}, **measured}
        (where,), options = calls[0]
        assert where == str(job.folder / "seed-7" / "world")
        assert (options["seed"], options["clip_from"], calls[1:]) == (7, job.world.common, [7])
        assert options.get("train_videos") == (None if name == "noisy" else 40)
        assert options.get("preset", "default") == name and ("preset" in options) == (name != "default")
        assert kept.read_text() == "here before"
        calls.clear()


def test_the_time_that_is_left_is_told_once_after_the_first_trials(capsys):
    told = ablate._teller(tuning=20, tests=8, processes=2)
    for done in range(1, 21):
        told(done, 30.0 * done)
    assert capsys.readouterr().err == "about 8 min of tuning left, then 4 min of test, by the first 4\n"


def test_an_arm_with_another_test_split_is_refused(worlds):
    plan = worlds(arms=[UNDISTILLED, {"name": "b", "set": ["data.test=${SHAPES_ROOT}/test_full.csv"]}])
    with pytest.raises(RecipeError, match=r"arm b: data\.test is not that of the baseline"):
        check_plan(plan)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"select_on": "test"}}, "data.select_on is test"),
        ({"data": {"validation": None}}, "there is no validation split to select on"),
        ({"teachers": [{"name": "xpool", "checkpoint": "none.pth"}]}, "teacher xpool: none.pth does not exist"),
    ],
)
def test_own_data_without_an_honest_choice_is_refused_in_one_line(project, arms, capsys, changes, told):
    recipe = project(**changes)
    assert main([str(recipe), "--arms", str(arms()), "--out", str(project.folder / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and told in errors[0]
    assert not (project.folder / "out").exists()


@pytest.mark.parametrize("name", ["csv", "teachclip.data.formats.custom:read_csv"])
def test_tuning_reads_data_without_a_test_split(project, name):
    path = project(data={"format": name})
    plain = load_recipe(path)
    hidden = load_recipe(path, [f"data.format={without_test(name)}", "data.test=null"])
    before, after = build_catalog(plain), build_catalog(hidden)
    assert before.test is not None and after.test is None
    assert after.validation == before.validation and after.train == before.train


def test_test_is_measured_on_fresh_seeds_only_with_what_was_chosen(worlds):
    plan = worlds()
    prepared, candidates, _ = made_up(plan)
    chosen = plan.chosen(candidates)
    assert {name: item.settings for name, item in chosen.items()} == {
        arm.name: arm.grid[1] for arm in plan.comparison.arms
    }
    assert {job.seed for job in plan.tuning(prepared)} == {1, 2}
    jobs = plan.testing(chosen, prepared)
    assert [(job.seed, job.arm) for job in jobs] == [(s, a) for s in (5, 6, 7) for a in ("undistilled", "published")]
    assert plan.counts() == {"prepare": 5, "tune": 16, "test": 6}


def test_trials_follow_what_students_depend_on_and_preparation_does_not(worlds, tmp_path):
    plan = worlds()
    prepared = made_up(plan)[0]

    def fingerprints(plan, prepared=prepared):
        arm = plan.comparison.arms[1]
        kinds = [plan.train_job(kind, 5, arm, arm.grid[0], prepared).fingerprint for kind in ("tune", "test")]
        return plan.preparing()[0].fingerprint, *kinds

    before = fingerprints(plan)
    slower = fingerprints(worlds(set=["train.batch_size=32"]))
    assert slower[0] == before[0] and slower[1] != before[1] and slower[2] != before[2]
    assert fingerprints(worlds(set=["evaluation.batch_size=5", "train.log_every=1"])) == before
    teacher = fingerprints(worlds(set=["teachers.0.training.train.steps=3"]))
    assert teacher[0] != before[0] and teacher[1:] == before[1:]  # what it taught is in the content
    retaught = {name: {"content": {"": content(**{"teacher xpool": "e"})}} for name in prepared}
    assert fingerprints(plan, retaught)[1] != before[1]
    other_test = {name: {"content": {"": content(test="e")}} for name in prepared}
    assert fingerprints(plan, other_test)[1] == before[1] and fingerprints(plan, other_test)[2] != before[2]


def test_arms_that_read_other_frames_get_stores_of_their_own(worlds):
    fewer = {"name": "fewer", "set": ["frames.count=6"]}
    plan = worlds(arms=[UNDISTILLED, {"name": "tempered", "set": ["teachers.0.frame_temperature=0.1"]}, fewer])
    found = {arm.name: plan.variant(plan.settings(arm, arm.grid[0])) for arm in plan.comparison.arms}
    assert found["undistilled"] == found["tempered"] == "" != found["fewer"]
    assert {variant for variant, _ in plan.preparing()[0].variants} == {"", found["fewer"]}


def test_the_last_override_of_a_key_is_the_only_one(worlds):
    plan = worlds(set=["train.steps=9", "optimizer.lr=1"])
    arm = plan.comparison.arms[1]
    given = plan.settings(arm, arm.grid[0])
    assert given == ("optimizer.lr=1", "optimizer.attention_lr=0.001", "train.steps=4")


def test_a_quick_plan_is_small_and_its_settings_still_differ(worlds):
    plan = quick(worlds())
    check_plan(plan)
    assert plan.counts() == {"prepare": 3, "tune": 4, "test": 4}
    for arm in plan.comparison.arms:
        recipes = [plan.load(plan.settings(arm, setting)) for setting in arm.grid]
        assert {recipe.train.steps for recipe in recipes} == {20}
        assert len({recipe.optimizer.attention_lr for recipe in recipes}) == 2


def test_a_quick_run_leaves_no_hasty_teacher_where_a_real_one_belongs(project, arms):
    training = {"train": {"encoders": "frozen", "epochs": 9, "batch_size": 4}}
    missing = project.folder / "teacher.pth"
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(missing), "training": training}])
    plan = quick(build_plan(project.folder / "out", recipe, load_comparison(arms()), Path()))
    check_plan(plan)
    small = plan.load(plan.comparison.common)
    assert Path(small.teachers[0].checkpoint) == project.folder / "out" / "teachers" / "xpool.pth"
    assert small.teachers[0].training.train.steps == 20
    assert small.stores == project.folder / "out" / "stores"


def test_the_report_has_means_intervals_wins_and_costs(worlds):
    plan = worlds()
    report = json.loads(json.dumps(build_ablation_report(plan, *made_up(plan))))
    tables = {title: {row[0]: row[1:] for row in rows} for title, _, rows in report["tables"]}
    recall = tables["Test, mean ± standard deviation over the fresh seeds"]
    assert recall["undistilled"][:3] == ["35.0 ± 5.0", "45.0 ± 5.0", "55.0 ± 5.0"]
    assert recall["as published"][0] == "41.0 ± 7.0"
    assert recall["teacher (xpool)"][0] == recall["zero-shot mean pooling"][0] == "16.0 ± 1.0"
    half = t_quantile(0.975, 2) * statistics.stdev([4, 6, 8]) / 3**0.5
    paired = tables["Paired differences, mean [95% t interval] wins"]["as published - undistilled"]
    assert paired[0] == f"+6.0 [{6 - half:+.1f}, {6 + half:+.1f}] 3/3"
    assert report["differences"][0]["values"] == [4, 6, 8]
    assert "as published - teacher (xpool)" in tables["Differences from the teacher"]
    assert tables["Cost"]["as published"] == ["11.0 ± 1.0", "1,234", "512", "256k", "0.5"]
    steps = "optimizer.attention_lr=0.001 train.steps=6"
    edge = "optimizer.attention_lr=0.001, train.steps=6"
    assert tables["Chosen on validation"]["as published"] == [steps, "24.5", edge, "4, 4, 4"]
    assert tables["Chosen on validation"]["undistilled"][-1] == "none"
    assert report["verdicts"][0].endswith("Clear of zero: better.")
    interval = next(row for row in report["intervals"] if row["name"] == "undistilled")
    assert interval["high"] - interval["mean"] == pytest.approx(t_quantile(0.975, 2) * 5 / 3**0.5)


def test_the_report_says_how_to_repeat_a_student_and_keeps_every_trial(worlds):
    plan = worlds()
    report = build_ablation_report(plan, *made_up(plan))
    text = ablation_markdown(report, None)
    assert "pip install 'teachclip[report]'" in text
    assert "train 400 videos, 3,200 captions; test 300 videos, 1,500 captions" in text
    command = report["commands"]["as published"]
    assert f"TEACHCLIP_RUNS={plan.folder / 'seed-5'}" in command
    assert "optimizer.attention_lr=0.001 train.steps=6 seed=5 output=" in command
    assert sum(map(len, report["candidates"].values())) == 8
    trials = next(rows for title, _, rows in report["tables"] if title == "Every trial on validation")
    assert [row[2:] for row in trials if row[0] == "as published"][:2] == [
        ["21.0", "22.0", "21.5", ""],
        ["24.0", "25.0", "24.5", "chosen"],
    ]


def test_without_worlds_zero_shot_and_teachers_are_measured_once(worlds):
    plan = worlds()
    own = replace(plan, world=None)
    report = build_ablation_report(own, *made_up(own))
    rows = {row[0]: row for row in report["tables"][0][2]}
    assert "±" not in rows["teacher (xpool)"][1] and "±" in rows["undistilled"][1]


def test_arms_with_one_setting_are_not_tuned(worlds):
    plan = worlds(grid=None, teachers=False)
    assert plan.counts() == {"prepare": 3, "tune": 0, "test": 6}
    report = build_ablation_report(plan, *made_up(plan))
    chosen = next(rows for title, _, rows in report["tables"] if title == "Chosen on validation")
    assert chosen[0][1:3] == ["as the arm says", "not tuned"]
    assert not any(title == "Differences from the teacher" for title, _, _ in report["tables"])


def test_a_dry_run_prints_the_plan_and_writes_nothing(arms, capsys, tmp_path):
    out = tmp_path / "out"
    path = arms(worlds={})
    assert main([str(SHAPES), "--arms", str(path), "--out", str(out), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "tuning 2 x 4 settings x 2 seeds (1, 2); test 2 x 3 seeds (5, 6, 7)" in said
    assert "22 students, after 5 preparation(s)" in said
    assert not out.exists()


def test_a_file_that_comes_along_is_found_by_its_name(capsys, tmp_path):
    assert main([str(SHAPES), "--arms", "shapes_options", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "arm frames_alone" in capsys.readouterr().err
    assert main([str(SHAPES), "--arms", "nowhere", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert main([str(SHAPES), "--arms", "no/arms.yaml", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "error: no/arms.yaml: cannot read the file of arms: No such file" in capsys.readouterr().err


def test_a_comparison_runs_from_videos_to_a_report_and_a_second_run_does_nothing(project, arms, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", InThisProcess)
    out = project.folder / "out"
    path = arms(seeds=[5, 6], grid={"optimizer.attention_lr": [1e-3, 1e-2]})
    asked = [str(project()), "--arms", str(path), "--out", str(out), "--processes", "1", "--quick"]
    assert main(asked) == 0
    report = json.loads((out / "report.json").read_text())
    for arm in report["arms"].values():
        assert [run["test"]["videos"] for run in arm["runs"]] == [3, 3]
        assert all(run["seconds"] > 0 and run["parameters"] > 0 for run in arm["runs"])
    assert report["others"]["teacher_xpool"]["runs"][0]["cost"]["bytes_per_video"] > 0
    for file in (out / "trials").glob("tune-*.json"):
        assert "test" not in json.loads(file.read_text())["result"]
    assert len(list((out / "trials").glob("*.json"))) == 1 + 4 + 4
    assert not list((out / "runs").iterdir())
    capsys.readouterr()

    monkeypatch.setattr(Train, "run", lambda self: pytest.fail("trained again"))
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", None)
    before = json.loads((out / "report.json").read_text())
    assert main(asked) == 0
    assert "4 of 4 skipped: already done" in capsys.readouterr().err
    after = json.loads((out / "report.json").read_text())
    assert {**after, "run": 0} == {**before, "run": 0}


def test_a_second_comparison_in_the_same_folder_is_refused(project, arms, capsys, monkeypatch):
    asked = [str(project()), "--arms", str(arms()), "--out", str(project.folder / "out")]
    codes = []
    monkeypatch.setattr(ablate, "compare", lambda *rest: codes.append(main(asked)))
    assert main(asked) == 0
    assert codes == [2]
    assert "another measurement runs there" in capsys.readouterr().err


def test_a_preset_on_the_command_line_brings_its_own_overrides_and_folder(capsys):
    def dry(preset, arms):
        recipe = ROOT / "recipes" / "shapes_plus.yaml"
        code = main([str(recipe), "--arms", arms, "--preset", preset, "--dry-run"])
        return code, capsys.readouterr().err

    code, said = dry("long", "shapes_presets")
    assert code == 0 and "in runs/ablations/shapes_plus-shapes_presets-long" in said
    code, said = dry("lang", "shapes_presets")
    assert code == 2 and "unknown preset 'lang'" in said and "did you mean long" in said
    code, said = dry("long", "own_data")
    assert code == 2 and "has no `worlds`" in said


def test_the_overrides_of_a_preset_stand_before_those_of_the_file(worlds):
    plan = worlds(worlds={"preset": "long"})
    assert plan.load(plan.settings(plan.comparison.arms[1], ())).frames.count == 24
    own = worlds(worlds={"preset": "long"}, set=["frames.count=6"])
    assert own.load(own.settings(own.comparison.arms[1], ())).frames.count == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "student.temperature_scaling=[2.0]",
            "arm b: student.temperature_scaling is .2.0., a choice that the baseline does not have",
        ),
        ("data.validation={videos: 1}", "arm b: data.validation is not that of the baseline"),
        ("data.max_missing=0.5", "arm b: data.max_missing is not that of the baseline"),
    ],
)
def test_arms_with_other_choices_or_data_are_refused(worlds, override, message):
    with pytest.raises(RecipeError, match=message):
        check_plan(worlds(arms=[UNDISTILLED, {"name": "b", "set": [override]}]))


def test_an_arm_may_go_without_the_sharpening_that_the_others_have(worlds):
    excluded = {"name": "b", "set": ["student.temperature_scaling=[]"]}
    both = {"set": ["student.temperature_scaling=[2.0]"], "arms": [UNDISTILLED, excluded]}
    check_plan(worlds(**both))
    with pytest.raises(RecipeError, match=r"arm undistilled: student\.temperature_scaling is .2\.0., a choice that"):
        check_plan(worlds(**both, baseline="b"))


def test_arms_that_would_share_a_teacher_they_train_differently_are_refused(worlds):
    longer = {"name": "longer", "set": ["teachers.0.training.train.steps=400"]}
    with pytest.raises(RecipeError, match=r"arm longer: teachers\.xpool\.training is not that of another arm"):
        check_plan(worlds(arms=[{"name": "short"}, longer]))
    longer["set"].append("teachers.0.checkpoint=${TEACHCLIP_RUNS}/longer.pth")
    check_plan(worlds(arms=[{"name": "short"}, longer]))


def test_a_replaced_video_is_prepared_anew(project, arms, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(project.root / "videos", videos)
    recipe = project(data={"videos": str(videos)})
    job = build_plan(tmp_path / "out", recipe, load_comparison(arms()), tmp_path).preparing()[0]
    first = job.fingerprint
    assert job.fingerprint == first
    os.utime(videos / "clip0.mp4", ns=(1, 1))
    assert job.fingerprint != first


def test_seconds_are_those_of_whole_runs(worlds):
    plan = worlds()
    prepared, candidates, tests = made_up(plan)
    names = [name for name in tests if name.startswith("test-5")]
    for name in names:
        tests[name]["seconds"] = None
    report = build_ablation_report(plan, prepared, candidates, tests)
    seconds = {row[0]: row[1] for row in {t[0]: t[2] for t in report["tables"]}["Cost"] if row[1]}
    assert names and set(seconds) == {"undistilled", "as published"}
    for found in tests.values():
        found["seconds"] = None
    report = build_ablation_report(plan, prepared, candidates, tests)
    assert not any(row[1] for row in {t[0]: t[2] for t in report["tables"]}["Cost"])


def test_unpaired_videos_that_may_be_test_videos_are_refused(worlds):
    sets = ["losses.frame_sets.weight=1", "losses.frame_sets.videos=${SHAPES_ROOT}/videos"]
    with pytest.raises(RecipeError, match="which may hold test videos"):
        check_plan(worlds(arms=[UNDISTILLED, {"name": "b", "set": sets}]))


def test_a_trial_depends_on_the_code_and_on_unpaired_files(worlds, tmp_path, monkeypatch):
    captions = tmp_path / "more.txt"
    captions.write_text("a red circle\n")
    plan = worlds(set=["losses.frame_sets.weight=1", f"losses.frame_sets.captions={captions}"])
    arm = plan.comparison.arms[0]
    content = {"prepare-5": {"content": {"": {"train": "1", "selection": "2", "test": "3"}}}}

    def fingerprint():
        return plan.train_job("test", 5, arm, arm.grid[0], content).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    captions.write_text("a red circle\na blue one\n")
    plan = replace(plan)
    other = fingerprint()
    assert other != first
    monkeypatch.setattr("teachclip.studies.jobs.code_hash", lambda: "other code")
    assert fingerprint() not in (first, other)
