"""The commands with every teacher: train it, evaluate it, teach with it, alone and with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import start
from runs import assert_same_losses, logged_losses

from teachclip import load_student
from teachclip.cli import distill, evaluate, export, precompute, train_teacher
from teachers import load_teacher

ROOT = Path(__file__).parents[2]
TRAINED = ("xclip", "ts2net", "clip2video")
TRAINING = {
    "seed": 1,
    "optimizer": {"name": "adamw", "lr": 1e-3, "clip_lr": 1e-4},
    "train": {"encoders": "finetuned", "steps": 2, "batch_size": 4, "log_every": 1},
}


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def teachers(folder, names=TRAINED, **training):
    changed = {**TRAINING, "train": {**TRAINING["train"], **training}}
    sections = [{"name": name, "checkpoint": str(folder / f"{name}.bin"), "training": changed} for name in names]
    for section in sections:
        if section["name"] == "ts2net":  # frames of five tokens are too few to shift
            section["options"] = {"token_shift": False}
    return sections


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_a_teacher_is_trained_written_in_its_layout_and_evaluated(project, capsys, name, encoders):
    recipe = project(teachers=teachers(project.folder, [name], encoders=encoders))
    assert run(train_teacher.main, recipe) == 0, capsys.readouterr().err
    path = project.folder / f"{name}.bin"
    assert f"teacher: {path}" in capsys.readouterr().err
    losses = logged_losses(project.folder / f"{name}-run", ("loss",))
    assert len(losses) == 2 and (losses > 0).all()
    load_teacher(name, path)
    assert run(evaluate.main, recipe, "--model", name, "--out", project.folder / "r.json") == 0
    assert f"| {name} | test | text to video |" in capsys.readouterr().out


def test_several_teachers_teach_together_stored_as_online(project, capsys):
    recipe = project(teachers=teachers(project.folder))
    for name in TRAINED:
        assert run(train_teacher.main, recipe, "--teacher", name) == 0, capsys.readouterr().err
    tempered = ("teachers.0.weight=2", "teachers.0.frame_temperature=0.1", "teaching.precision=float32")
    assert run(precompute.main, recipe, "--verify", *tempered) == 0, capsys.readouterr().err
    for source in ("stored", "online"):
        output = project.folder / source
        assert run(distill.main, recipe, *tempered, f"teaching.source={source}", f"output={output}") == 0
    assert_same_losses(*(logged_losses(project.folder / source) for source in ("stored", "online")), steps=4)
    alone = project.folder / "alone"
    assert run(distill.main, recipe, *tempered, "teaching.only=[ts2net]", f"output={alone}") == 0
    assert "teacher ts2net" in json.loads((alone / "settings.json").read_text())["content"]


def test_a_teacher_that_the_recipe_excludes_is_named_as_excluded(project, capsys):
    recipe = project(teachers=teachers(project.folder))
    assert run(train_teacher.main, recipe, "--teacher", TRAINED[0], f"teaching.only=[{TRAINED[1]}]") == 2
    told = f"with a section `training` there are: {TRAINED[1]}; teaching.only excludes the others"
    assert told in capsys.readouterr().err


@pytest.fixture
def more_videos(project):
    """A recipe of six training videos, and how to name annotations that train its teacher on more of the same."""
    lines = (project.root / "captions.csv").read_text(encoding="utf-8").splitlines()
    held = [line.replace(",train", ",val") if line.startswith(("clip9.", "clip10.")) else line for line in lines]
    few = [line for line in held if not line.startswith(("clip6.", "clip7.", "clip8."))]
    for name, kept in (("few.csv", few), ("more.csv", held)):
        (project.folder / name).write_text("\n".join(kept) + "\n", encoding="utf-8")

    def write(name, validation=None):
        training = {**TRAINING, "annotations": str(project.folder / name)}
        section = {"name": "xpool", "checkpoint": str(project.folder / "more.pth"), "training": training}
        data = {"annotations": str(project.folder / "few.csv"), "validation": validation}
        return project(data=data, teachers=[section])

    return write


def test_a_teacher_may_be_trained_on_more_videos_than_its_student(more_videos, project, capsys):
    recipe = more_videos("more.csv")
    assert run(train_teacher.main, recipe) == 0, capsys.readouterr().err
    assert "9 videos" in capsys.readouterr().err
    assert run(distill.main, recipe) == 0, capsys.readouterr().err
    read = json.loads((project.folder / "more-run" / "settings.json").read_text())
    assert read["data"]["annotations"].endswith("more.csv")
    assert json.loads((project.folder / "run" / "settings.json").read_text())["data"]["annotations"].endswith(
        "few.csv"
    )


def changed_rows(folder, source, name, change):
    """Write annotations with rows that `change` returns for those of `source`, which has a header."""
    header, *rows = (folder / source).read_text(encoding="utf-8").splitlines()
    (folder / name).write_text("\n".join([header, *map(change, rows)]) + "\n", encoding="utf-8")


def test_a_teacher_is_not_trained_on_what_its_student_is_measured_on(more_videos, project, caplog):
    def swapped(row):  # what the recipe validates on is for training, and two of its training videos are not
        if row.startswith(("clip9.", "clip10.")):
            return row.replace(",val", ",train")
        return row.replace(",train", ",val") if row.startswith(("clip6.", "clip7.")) else row

    changed_rows(project.folder, "more.csv", "swapped.csv", swapped)
    assert run(train_teacher.main, more_videos("swapped.csv")) == 0
    assert "excluded 2 train videos of " in caplog.text and "swapped.csv: the recipe measures on them" in caplog.text
    assert "clip9.mp4" in caplog.text and "clip10.mp4" in caplog.text


def test_a_teacher_is_not_chosen_on_what_its_student_is_tested_on(more_videos, project, capsys):
    def chosen_on_test(row):
        return row.replace(",val", ",train") if ",val" in row else row.replace(",test", ",val")

    changed_rows(project.folder, "more.csv", "chosen.csv", chosen_on_test)
    assert run(train_teacher.main, more_videos("chosen.csv")) == 2
    assert "all 3 validation videos of " in capsys.readouterr().err


def test_a_copy_of_what_is_measured_is_known_by_its_content(more_videos, project, caplog):
    lines = (project.folder / "more.csv").read_text(encoding="utf-8").splitlines()
    tested = next(line.split(",")[0] for line in lines if line.endswith(",test"))
    copy = project.root / "videos" / "copied.mp4"
    shutil.copy(project.root / "videos" / tested, copy)
    try:
        text = "\n".join([*lines, "copied.mp4,a copy,train"]) + "\n"
        (project.folder / "copy.csv").write_text(text, encoding="utf-8")
        assert run(train_teacher.main, more_videos("copy.csv")) == 0
    finally:
        copy.unlink()
    assert "excluded 1 train videos of " in caplog.text and "copied.mp4" in caplog.text


def test_a_teacher_of_more_videos_leaves_out_those_that_its_recipe_holds_out(more_videos, project, caplog):
    for name in ("few.csv", "more.csv"):
        changed_rows(project.folder, name, name, lambda row: row.replace(",val", ",train"))
    assert run(train_teacher.main, more_videos("more.csv", {"videos": 3})) == 0
    assert "train videos of " in caplog.text


def test_a_teacher_that_is_not_listed_cannot_teach_alone(project, capsys):
    assert run(distill.main, project(), "teaching.only=[xpol]") == 2
    assert "teaching.only: no teacher 'xpol'; listed: xpool; did you mean xpool?" in capsys.readouterr().err


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_a_teacher_as_one_does(project, name):
    folders = [project.folder / f"of{count}" for count in (1, 2)]
    for count, folder in enumerate(folders, 1):
        recipe = project(f"{count}.yaml", teachers=teachers(folder, [name]), stores=str(project.folder / f"s{count}"))
        done = start(ROOT / "tools" / "train_teacher.py", recipe, processes=count).finish()
        assert done.returncode == 0, done.stderr[-2000:]
    # Not the weights: biases of attention keys have no gradient but rounding, which Adam makes a whole step of.
    assert_same_losses(*(logged_losses(folder / f"{name}-run", ("loss",)) for folder in folders), steps=2)


def test_an_official_export_is_one_file_that_finds_the_same_videos(project, capsys):
    recipe = project(student={"backbone": str(project.root / "clip"), "temporal_layers": 4})
    assert run(distill.main, recipe) == 0
    path = project.folder / "best_model.bin"
    assert run(export.main, recipe, "--layout", "official", "--out", path, "--dtype", "float32") == 0
    official, own = load_student(path), load_student(project.folder / "run" / "student")
    official.processor = own.processor
    videos = [project.root / "videos" / f"clip{n}.mp4" for n in range(3)]
    assert torch.allclose(
        official.encode_video(videos, progress=False), own.encode_video(videos, progress=False), atol=1e-6
    )
    assert run(evaluate.main, recipe, "--model", path) == 0
    assert run(export.main, recipe, "--layout", "official", "--out", project.folder) == 2
    assert "is a folder; the official layout is one file" in capsys.readouterr().err
