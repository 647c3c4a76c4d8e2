import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from teachclip.cli import demo as demo_cli
from teachclip.demo import demo
from teachclip.demo.child_processes import Job, last_lines, run_shown, run_together
from teachclip.demo.plan import COMPARISONS, RECIPE, VARIANTS, plan_stages
from teachclip.demo.stage_record import Stage, StageRecord
from teachclip.errors import LaunchError, StoreError
from teachclip.recipe.loading import find_recipe, load_recipe


def two_stages(folder, *, word="a", content=None):
    first = Stage("first", ("make", word), (folder / "first",), owns=(folder / "first",))
    second = Stage("second", ("use",), (folder / "second.txt",), (folder / "second.txt",), ("first",), content or {})
    return [first, second]


def do(record, stage):
    record.start(stage)
    for path in stage.outputs:
        if path.suffix:
            path.write_text("made")
        else:
            path.mkdir(exist_ok=True)
            (path / "file").write_text("made")
    record.finish(stage, 1.25)


def a_record(folder, stages):
    return StageRecord(folder / "demo" / "stages.json", stages)


def test_finished_stages_are_recognised_by_another_process(tmp_path):
    stages = two_stages(tmp_path)
    record = a_record(tmp_path, stages)
    assert not record.is_done(stages[0])
    for stage in stages:
        do(record, stage)
    again = a_record(tmp_path, two_stages(tmp_path))
    assert [again.is_done(stage) for stage in two_stages(tmp_path)] == [True, True]
    assert again.seconds(stages[0]) == 1.2
    assert again.discard_changed() == []


def test_started_stage_is_not_done(tmp_path):
    stages = two_stages(tmp_path)
    do(a_record(tmp_path, stages), stages[0])
    a_record(tmp_path, stages).start(stages[0])
    assert not a_record(tmp_path, stages).is_done(stages[0])


def test_stage_whose_output_is_gone_runs_again(tmp_path):
    stages = two_stages(tmp_path)
    record = a_record(tmp_path, stages)
    for stage in stages:
        do(record, stage)
    (tmp_path / "first" / "file").unlink()
    assert not record.is_done(stages[0])
    assert record.is_done(stages[1])


def test_change_of_a_command_redoes_the_stage_and_all_that_need_it(tmp_path):
    record = a_record(tmp_path, two_stages(tmp_path))
    for stage in two_stages(tmp_path):
        do(record, stage)
    changed = two_stages(tmp_path, word="b")
    record = a_record(tmp_path, changed)
    assert [record.is_done(stage) for stage in changed] == [False, False]
    assert record.discard_changed() == ["first", "second"]
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "second.txt").exists()
    assert a_record(tmp_path, changed).discard_changed() == []


def test_change_of_content_or_version_is_noticed_and_spares_what_does_not_depend_on_it(tmp_path, monkeypatch):
    record = a_record(tmp_path, two_stages(tmp_path))
    for stage in two_stages(tmp_path):
        do(record, stage)
    changed = two_stages(tmp_path, content={"recipe": "other"})
    assert a_record(tmp_path, changed).discard_changed() == ["second"]
    assert (tmp_path / "first").exists()
    monkeypatch.setattr("teachclip.demo.stage_record.__version__", "999")
    assert not a_record(tmp_path, changed).is_done(changed[0])


def test_nothing_outside_the_folder_of_runs_is_ever_removed(tmp_path):
    runs, outside = tmp_path / "runs", tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("mine")
    runs.mkdir()
    stages = [Stage("first", ("make", word), (outside,), owns=(outside, runs)) for word in "ab"]
    do(a_record(runs, stages[:1]), stages[0])
    assert a_record(runs, stages[1:]).discard_changed() == ["first"]
    assert (outside / "file").exists()
    assert runs.exists()


def test_stage_that_leaves_out_an_output_is_an_error(tmp_path):
    stages = two_stages(tmp_path)
    with pytest.raises(StoreError, match=r"stage first ended well but did not write .*first"):
        a_record(tmp_path, stages).finish(stages[0], 1.0)


def test_damaged_record_is_one_clear_message(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "stages.json").write_text("{")
    with pytest.raises(StoreError, match=r"stages\.json is not a record of stages .*delete it"):
        a_record(tmp_path, [])


def test_plain_command_is_quoted_and_names_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    stage = Stage("x", ("distill", "recipes/a.yaml", "teachers=[]"), ())
    assert stage.shown() == "accelerate launch tools/distill.py recipes/a.yaml 'teachers=[]'"
    assert stage.shown({"RUNS": "my runs"}).startswith("RUNS='my runs' accelerate launch")
    assert Stage("x", ("train-teacher", "b"), ()).shown() == "accelerate launch tools/train_teacher.py b"
    assert Stage("x", ("evaluate", "--out", "b"), ()).shown() == "python tools/evaluate.py --out b"
    monkeypatch.chdir(tmp_path)  # without a clone
    assert stage.shown() == "teachclip distill recipes/a.yaml 'teachers=[]'"


def job(name, code, folder, **options):
    return Job(name, [sys.executable, "-c", code], folder / "logs" / f"{name}.log", **options)


def test_children_run_together_and_keep_their_logs(tmp_path, capfd):
    finished = []
    jobs = [
        job(f"job{k}", f"print('out {k}')", tmp_path, steps=2, finished=lambda seconds, k=k: finished.append(k))
        for k in range(3)
    ]
    run_together(jobs, {}, parallel=2, label="students")
    assert sorted(finished) == [0, 1, 2]
    assert (tmp_path / "logs" / "job2.log").read_text() == "out 2\n"
    shown = capfd.readouterr().err
    assert "students: 100%" in shown
    assert "6/6" in shown
    assert "out 2" not in shown


def test_failed_child_stops_the_others_and_shows_its_last_lines(tmp_path, capfd):
    waits = job("waits", "import time; time.sleep(600)", tmp_path)
    fails = job(
        "fails", "import time; time.sleep(.3); print('one\\nerror: the reason'); raise SystemExit(2)", tmp_path
    )
    started = time.monotonic()
    with pytest.raises(LaunchError, match=r"stage fails failed \(exit code 2\); its whole output is in .*fails\.log"):
        run_together([waits, fails], {}, parallel=2, label="students")
    assert time.monotonic() - started < 300
    assert "  | error: the reason\n" in capfd.readouterr().err


def test_shown_child_writes_to_the_terminal_and_to_its_log(tmp_path, capfd):
    run_shown(job("shown", "import os; print('threads', os.environ['THREADS'])", tmp_path), {"THREADS": "2"})
    assert capfd.readouterr().err == "threads 2\n"
    assert (tmp_path / "logs" / "shown.log").read_text() == "threads 2\n"
    with pytest.raises(LaunchError, match="was killed by signal 9, perhaps because it ran out of memory"):
        run_shown(
            job("killed", "import os; print('bar 1/3', end='', flush=True); os.kill(os.getpid(), 9)", tmp_path), {}
        )
    assert capfd.readouterr().err == "bar 1/3\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_request_lets_the_child_save_and_leaves_no_process(tmp_path, number):
    child = (
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n"
        "    (folder / 'pid').write_text(str(os.getpid())); (folder / 'ready').touch(); time.sleep(600)\n"
        "except KeyboardInterrupt: (folder / 'saved').touch(); raise SystemExit(130)\n"
    )
    parent = (
        "import sys, pathlib\n"
        "from teachclip.console import interruptible\n"
        "from teachclip.demo.child_processes import Job, run_together\n"
        f"job = Job('child', [sys.executable, '-c', {child!r}], pathlib.Path({str(tmp_path / 'child.log')!r}))\n"
        "try:\n"
        "    with interruptible(): run_together([job], {}, parallel=1, label='x')\n"
        "except KeyboardInterrupt: raise SystemExit(130)\n"
    )
    # A job that a shell started in the background ignores SIGINT, and so would all of its children.
    parent = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{parent}"
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=300) == 130
    assert (tmp_path / "saved").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_last_lines_show_a_redrawn_bar_once(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"\rtrain 1/3\rtrain 2/3\rtrain 3/3\n" + b"\x1b[31merror: red\x1b[0m\n\n")
    assert last_lines(log) == ["first", "train 3/3", "error: red"]
    assert last_lines(log, 1) == ["error: red"]
    assert last_lines(tmp_path / "absent") == []


def test_progress_is_the_last_whole_line_of_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    assert demo.steps_logged(log) == 0
    log.write_text('{"step": 10, "loss": 1}\n{"step": 20}\n{"step": 3')
    assert demo.steps_logged(log) == 20


def the_plan(runs, monkeypatch, seeds=(1, 2)):
    monkeypatch.setenv("TEACHCLIP_RUNS", str(runs))
    monkeypatch.setenv("SHAPES_ROOT", str(runs / "shapes"))
    recipe = load_recipe(find_recipe(RECIPE))
    return recipe, plan_stages(Path("recipes") / RECIPE, recipe, runs, seeds)


def test_plan_orders_stages_after_what_they_need_and_stays_in_its_folder(tmp_path, monkeypatch):
    _, stages = the_plan(tmp_path, monkeypatch)
    seen = set()
    for stage in stages:
        assert set(stage.needs) <= seen
        seen.add(stage.name)
        assert all(path.is_relative_to(tmp_path) for path in (*stage.outputs, *stage.owns))
    owned = [path for stage in stages for path in stage.owns]
    assert len(set(owned)) == len(owned)


def test_every_variant_is_a_valid_recipe_and_every_comparison_names_variants(tmp_path, monkeypatch):
    _, stages = the_plan(tmp_path, monkeypatch)
    runs = [stage for stage in stages if stage.command[0] == "distill"]
    assert len(runs) == 2 * len(VARIANTS)
    outputs = set()
    for stage in runs:
        recipe = load_recipe(find_recipe(RECIPE), stage.command[2:])
        assert stage.name == f"{recipe.output.name}"
        assert f"-{recipe.seed}" in stage.name
        outputs.add(recipe.output)
        assert bool(recipe.teachers) != stage.name.startswith("undistilled")
    assert len(outputs) == len(runs)
    assert {name for pair in COMPARISONS for name in pair} <= set(VARIANTS)


FAKE = """
import json, pathlib, sys
sys.path.insert(0, {tests!r})
from made_up import made_up_run
name, *rest = sys.argv[1:]
with open({calls!r}, "a") as calls: calls.write(name + chr(10))
for path in {outputs!r}[" ".join([name, *rest])]:
    path = pathlib.Path(path)
    if path.suffix == ".json" and name == "distill":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_up_run(20.0 + len(path.parent.name))))
    elif path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True); path.touch()
    else:
        path.mkdir(parents=True, exist_ok=True); (path / "file").touch()
"""


@pytest.fixture
def fake_demo(tmp_path, monkeypatch):
    """A demo whose commands only leave files behind; `calls` returns those that ran since the last look."""
    runs, log = tmp_path / "runs", tmp_path / "calls"
    _, stages = the_plan(runs, monkeypatch, seeds=(1, 2))
    outputs = {" ".join(stage.command): [str(path) for path in stage.outputs] for stage in stages}
    script = tmp_path / "fake.py"
    tests = str(Path(__file__).resolve().parents[1] / "support")
    script.write_text(FAKE.format(tests=tests, calls=str(log), outputs=outputs))
    job_of = demo._job

    def fake_job(plan, stage, run_folder=None):
        made = job_of(plan, stage, run_folder)
        made.argv = [sys.executable, str(script), *stage.command]
        return made

    def fake_here(plan, stage):
        from made_up import made_up_cost, made_up_run

        plan.record.start(stage)
        result = made_up_run(50.0)
        result["test"]["cost"] = made_up_cost(512)
        if stage.name == "frames":
            weights = {name: [0.5, 0.5] for name in ("teacher", *VARIANTS)}
            result = {"video": "v", "caption": "c", "rule": "r", "seed": 1, "weights": weights}
            import numpy as np

            np.save(stage.outputs[1], np.zeros((2, 4, 4, 3), np.uint8))
        stage.outputs[0].write_text(json.dumps(result))
        plan.record.finish(stage, 0.1)

    monkeypatch.setattr(demo, "index_videos", lambda plan: None)  # its stages have no videos
    monkeypatch.setattr(demo, "_job", fake_job)
    monkeypatch.setattr(demo, "_here", fake_here)

    def calls():
        lines = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return runs, calls


def test_demo_runs_every_stage_reports_and_skips_all_of_them_the_second_time(fake_demo, capfd):
    runs, calls = fake_demo
    arguments = ["--runs", str(runs), "--seeds", "2", "--threads", "2"]
    assert demo_cli.main(arguments) == 0
    assert calls() == ["make-data", "train-teacher", "precompute", *["distill"] * 6]
    shown = capfd.readouterr()
    assert "accelerate launch tools/train_teacher.py" in shown.err
    assert "What teaching gains" in shown.out
    names = {path.name for path in (runs / "demo").iterdir()}
    assert {"report.md", "report.html", "report.json", "recall.png", "frames.png", "logs", "stages.json"} <= names
    report = json.loads((runs / "demo" / "report.json").read_text())
    assert [model["runs"] for model in report["models"]] == [1, 2, 2, 2, 1]
    assert report["differences"][0]["values"] == [-2.0, -2.0]  # by the length of the variants' names

    before = os.environ.copy()
    assert demo_cli.main(arguments) == 0
    assert calls() == []
    shown = capfd.readouterr().err
    assert "[1/6 shapes] skipped: already done" in shown
    assert "[4/6 students] 6 of 6 skipped: already done" in shown
    assert os.environ.copy() == before


def test_demo_redoes_only_what_is_missing(fake_demo):
    runs, calls = fake_demo
    arguments = ["--runs", str(runs), "--seeds", "2"]
    assert demo_cli.main(arguments) == 0
    calls()
    (runs / "demo" / "distilled-2" / "results.json").unlink()
    assert demo_cli.main(arguments) == 0
    assert calls() == ["distill"]


def test_demo_that_fails_says_so_in_one_line(fake_demo, monkeypatch, capfd):
    runs, _ = fake_demo
    fake = demo._job

    def broken(plan, stage, run_folder=None):
        made = fake(plan, stage, run_folder)
        if stage.name == "teacher":
            made.argv = [sys.executable, "-c", "print('error: no good'); raise SystemExit(2)"]
        return made

    monkeypatch.setattr(demo, "_job", broken)
    assert demo_cli.main(["--runs", str(runs), "--seeds", "2"]) == 2
    shown = capfd.readouterr().err
    assert "error: stage teacher failed (exit code 2)" in shown
    assert "Traceback" not in shown
    assert "[1/6 shapes] skipped" not in shown


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_demo_refuses_senseless_counts(value, capsys):
    assert demo_cli.main(["--seeds", value]) == 2
    assert "whole number" in capsys.readouterr().err


def test_demo_without_matplotlib_reports_and_says_how_to_get_figures(fake_demo, monkeypatch, capfd):
    runs, _ = fake_demo
    monkeypatch.setattr("teachclip.reports.figures.can_draw", lambda: False)
    assert demo_cli.main(["--runs", str(runs), "--seeds", "2"]) == 0
    assert "pip install 'teachclip[report]'" in capfd.readouterr().err
    assert "teachclip[report]" in (runs / "demo" / "report.html").read_text()
    assert not (runs / "demo" / "recall.png").exists()


def test_recipe_is_found_without_a_clone_because_the_package_carries_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    package = Path(demo.__file__).parents[1] / "recipes" / RECIPE
    assert package.read_text() == find_recipe(RECIPE).read_text()
