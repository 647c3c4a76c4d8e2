"""A user's mistake ends in one line that says where, what, and what is allowed; never in a traceback."""

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from processes import start

from teachclip.cli import distill, evaluate, precompute
from teachclip.cli.main import main as teachclip_main

ROOT = Path(__file__).parents[2]


class Dangerous:
    def __reduce__(self):
        return os.system, ("touch executed-by-pickle",)


@pytest.fixture
def fails(capsys):
    def check(recipe, *arguments, main=distill.main):
        assert main([str(recipe), *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in captured.err, captured.err
        return lines[0]

    return check


def copy_data(project):
    """Copy videos and captions to where a test may change them; returns overrides."""
    project.fill = False
    shutil.copytree(project.root / "videos", project.folder / "videos")
    shutil.copy(project.root / "captions.csv", project.folder / "captions.csv")
    return [f"data.videos={project.folder / 'videos'}", f"data.annotations={project.folder / 'captions.csv'}"]


def test_recipe_typo(project, fails):
    assert fails(project(), "optimizer.lr_rate=1") == (
        "error: recipe.yaml: optimizer.lr_rate is unknown; did you mean optimizer.lr?"
    )


def test_missing_recipe(tmp_path, fails):
    assert "cannot read the recipe" in fails(tmp_path / "none.yaml")


def test_missing_video_folder(project, fails):
    assert "nowhere" in fails(project(), f"data.videos={project.folder}/nowhere")


def test_missing_annotations(project, fails):
    assert "none.csv" in fails(project(), f"data.annotations={project.folder}/none.csv")


def test_missing_videos_are_counted_and_named(project, fails):
    overrides = copy_data(project)
    (project.folder / "videos" / "clip5.mp4").unlink()
    message = fails(project(), *overrides)
    assert "clip5" in message and "data.max_missing" in message


def test_unreadable_video_is_named_and_left_out_only_when_allowed(project, fails, capsys):
    overrides = copy_data(project)
    (project.folder / "videos" / "clip5.mp4").write_text("<html>not found</html>")
    message = fails(project(), *overrides)
    assert "clip5" in message and "data.max_missing" in message
    assert distill.main([str(project()), *overrides, "data.max_missing=0.1"]) == 0
    captured = capsys.readouterr()
    assert "excluded clip5" in captured.err and "Partial: 7 of 8 train videos" in captured.out


def test_a_file_that_training_and_test_share_is_a_warning_and_on_the_results(project, capsys):
    overrides = copy_data(project)
    shutil.copy(project.folder / "videos" / "clip12.mp4", project.folder / "videos" / "clip0.mp4")
    out = project.folder / "results.json"
    assert (
        evaluate.main([str(project()), *overrides, "data.validation=null", "--model", "zero_shot", "--out", str(out)])
        == 0
    )
    captured = capsys.readouterr()
    line = "1 file is in more than one split: train 'clip0.mp4' and test 'clip12.mp4' are files of the same content"
    assert f"warning: {line}" in captured.err and f"Overlap: {line}." in captured.out
    assert json.loads(out.read_text())["overlaps"] == [line]


def test_caption_for_an_unknown_video(project, fails):
    overrides = copy_data(project)
    with open(project.folder / "captions.csv", "a") as file:
        file.write("ghost.mp4,a red circle,train\n")
    assert "ghost" in fails(project(), *overrides)


def test_empty_caption(project, fails):
    overrides = copy_data(project)
    with open(project.folder / "captions.csv", "a") as file:
        file.write("clip1.mp4, ,train\n")
    message = fails(project(), *overrides)
    assert "captions.csv" in message and "caption" in message and "30" in message


def test_checkpoint_of_another_architecture(project, fails):
    state = {"global_mat_weight": torch.zeros(4, 4), "clip.logit_scale": torch.zeros(())}
    torch.save(state, project.folder / "other.pth")
    message = fails(project(), f"teachers.0.checkpoint={project.folder}/other.pth")
    assert "other.pth" in message and "X-CLIP" in message


def test_truncated_checkpoint(project, fails):
    content = (project.root / "teacher.pth").read_bytes()
    (project.folder / "cut.pth").write_bytes(content[: len(content) // 2])
    assert "cut.pth" in fails(project(), f"teachers.0.checkpoint={project.folder}/cut.pth")


def test_pickle_with_code_is_not_executed(project, fails, monkeypatch):
    monkeypatch.chdir(project.folder)
    (project.folder / "evil.pth").write_bytes(pickle.dumps({"state_dict": Dangerous()}))
    torch.save({"state_dict": Dangerous()}, project.folder / "evil-zip.pth")
    for name in ("evil.pth", "evil-zip.pth"):
        assert name in fails(project(), f"teachers.0.checkpoint={project.folder}/{name}")
    assert not (project.folder / "executed-by-pickle").exists()


def test_missing_clip(project, fails):
    assert "nowhere" in fails(project(), f"student.backbone={project.folder}/nowhere")


def test_frame_size_that_the_clip_does_not_take(project, fails):
    message = fails(project(), "frames.size=48")
    assert "frames.size" in message and "32" in message and "48" in message


def test_one_video_in_a_batch(project, fails):
    assert "at least 2" in fails(project(), "train.batch_size=1")


def test_a_batch_larger_than_the_data(project, fails):
    assert "only 16 training pairs" in fails(project(), "train.batch_size=17")


def test_more_validation_videos_than_there_are(project, fails):
    assert "validation" in fails(project(), "data.validation.videos=11")


def test_no_split_to_select_on(project, fails):
    assert "data.validation.videos=N" in fails(project(), "data.validation=null")


def test_unknown_teacher_and_option(project, fails):
    assert "did you mean xpool" in fails(project(), "teachers.0.name=xpol")
    assert "head" in fails(project(), "teachers.0.options.head=2")


def test_words_out_of_the_vocabulary_train_but_a_query_of_them_is_refused(project, capsys):
    overrides = copy_data(project)
    path = project.folder / "captions.csv"
    path.write_text(path.read_text().replace("a blue square,test", "a zebra,test", 1))
    assert distill.main([str(project()), *overrides]) == 0
    assert "1 captions hold words that are not in the vocabulary" in capsys.readouterr().err


def test_fp16_without_a_gpu(project, fails):
    if torch.cuda.is_available():
        assert distill.main([str(project()), "train.mixed_precision=fp16"]) == 0
    else:
        assert "needs a GPU" in fails(project(), "train.mixed_precision=fp16")


def test_a_tracker_that_is_not_there(project, fails):
    assert "train.trackers: 'wandbb'" in fails(project(), "train.trackers=[wandbb]")


def test_a_run_folder_of_another_recipe(project, fails):
    distill.main([str(project())])
    message = fails(project(), "seed=1")
    assert "seed" in message and "output=" in message


def test_disk_full_while_decoding(project, fails, full_disk):
    message = fails(project(), f"stores={full_disk}/stores", main=precompute.main)
    assert str(full_disk) in message


def test_disk_full_while_saving(project, fails, full_disk):
    message = fails(project(), f"output={full_disk}/run")
    assert str(full_disk) in message


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 100 kB: enough for a manifest, not for frames or weights."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
    else:  # not allowed to mount: a folder that cannot be written stands in, also a disk that takes no more
        folder.rmdir()
        folder.write_text("not a folder")
        yield folder


def test_processes_that_do_not_know_of_each_other_are_refused(project):
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1", "ACCELERATE_USE_CPU": "false"}
    done = start(ROOT / "tools" / "distill.py", project(), environment=environment).finish()
    assert done.returncode == 2
    assert "error: 2 processes cannot be started together" in done.stderr and "Traceback" not in done.stderr


def test_a_batch_that_does_not_divide_by_the_processes(project):
    done = start(ROOT / "tools" / "distill.py", project(), "train.batch_size=5", processes=2).finish()
    assert done.returncode != 0
    assert "error: batch size 5 is not divisible by 2 processes" in done.stderr


def test_unknown_command(capsys):
    assert teachclip_main(["distil"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'distil'; did you mean distill?\n"


def test_the_help_of_distill_names_its_launcher_and_the_command_that_lists_keys(capsys):
    with pytest.raises(SystemExit) as stop:
        teachclip_main(["distill", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "accelerate launch tools/distill.py" in printed and "`teachclip keys` lists all recipe keys" in printed
