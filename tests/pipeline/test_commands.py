import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from processes import launch, run_fresh, start
from runs import assert_same_losses, logged_losses, relevance_store
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import tiny_student

from teachclip import load_student
from teachclip.cli import compare, distill, evaluate, export, precompute, train_teacher
from teachclip.models.checkpoints import save_checkpoint
from teachclip.pipeline import selection
from teachclip.store.files import OWNER, occupied_folder, write_atomic

ROOT = Path(__file__).parents[2]


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def files_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_distill_goes_from_mp4_files_to_a_student_that_finds_videos(project, capsys):
    project.fill = False
    recipe = project()
    assert run(distill.main, recipe) == 0
    printed = capsys.readouterr()
    assert "| student | test | text to video |" in printed.out
    few = "warning: validation has 3 videos, fewer than the 50 that tell steps apart: the last step is kept"
    assert few in printed.err and "The last step was kept, not the best: validation has fewer" in printed.out
    output = project.folder / "run"
    results = json.loads((output / "results.json").read_text())
    assert results["test"]["videos"] == 3 and results["validation"]["captions"] == 6
    assert (results["step"], results["selected_by"]) == (4, "last step")
    assert "Checkpoint: the last step, as validation has too few" in (output / "student" / "README.md").read_text()
    assert results["test"]["cost"]["bytes_per_video"] == 32 * 4
    page = (output / "report.html").read_text()
    assert "The last step was kept" in page and page.count("data:image/png;base64,") == 1
    assert "waiting for the batch" in page and "most memory of the process, MB" in page
    assert yaml.safe_load((output / "recipe.yaml").read_text())["optimizer"]["lr"] == 1e-3
    student = load_student(output / "student")
    texts = student.encode_text(["a red circle", "a blue square"], progress=False)
    videos = student.encode_video([project.root / "videos" / f"clip{n}.mp4" for n in (0, 1, 2)], progress=False)
    assert texts.shape == (2, 32) and videos.shape == (3, 32)
    assert torch.allclose(videos.norm(dim=-1), torch.ones(3), atol=1e-5)


def test_a_finished_run_is_not_trained_again(project, capsys):
    recipe = project()
    assert run(distill.main, recipe) == 0
    before = (project.folder / "run" / "log.jsonl").read_bytes()
    capsys.readouterr()
    assert run(distill.main, recipe) == 0
    assert "the last step is kept, not the best" in capsys.readouterr().err
    assert (project.folder / "run" / "log.jsonl").read_bytes() == before


def test_evaluate_runs_no_code_of_the_folder_it_gets(project, capsys, monkeypatch):
    folder = project.folder / "theirs"
    tiny_student().save_pretrained(folder)
    (folder / "theirs.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    theirs = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **theirs}))
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    assert run(evaluate.main, project(), "--model", folder) == 2
    assert "contains custom code" in capsys.readouterr().err and not (folder / "ran").exists()


def test_evaluate_agrees_with_the_results_of_the_run(project, capsys):
    recipe = project()
    run(distill.main, recipe)
    clip = project.root / "clip"
    for model in ("student", "zero_shot", "xpool", clip):
        name = Path(model).name
        post = ("--post", "dual_softmax,qb_norm")
        files = ("--out", project.folder / f"{name}.json", "--queries", project.folder / f"{name}.parquet")
        assert run(evaluate.main, recipe, "--model", model, *files, *post) == 0
    printed = capsys.readouterr().out
    assert "| xpool + dual softmax | video to text |" in printed.replace("  ", "")
    assert "test: 6 captions among 3 videos; R@1 text to video" in printed
    assert run(evaluate.main, recipe, "--post", "qbnorm") == 2
    assert "'qbnorm': allowed: dual_softmax, qb_norm; did you mean qb_norm" in capsys.readouterr().err
    student = json.loads((project.folder / "student.json").read_text())
    results = json.loads((project.folder / "run" / "results.json").read_text())
    assert student["test"]["t2v"] == results["test"]["t2v"]
    names = [item["name"] for item in student["test"]["post_processed"]]
    assert names == ["dual softmax", "QB-Norm"] and student["test"]["post_processed"][1]["bank"] == 16
    assert student["test"]["videos"] == 3 and set(results["zero_shot"]) == {"test"}
    zero_shot, plain = (json.loads((project.folder / f"{n}.json").read_text())["test"] for n in ("zero_shot", "clip"))
    assert zero_shot["t2v"] == plain["t2v"] == results["zero_shot"]["test"]["t2v"]
    assert zero_shot["post_processed"] == plain["post_processed"]
    files = [project.folder / name for name in ("zero_shot.parquet", "student.parquet", "c.json")]
    assert run(compare.main, *files[:2], "--out", files[2]) == 0
    for item in json.loads(files[2].read_text()):
        direction, metric = item["direction"], item["metric"]
        assert item["first"] == pytest.approx(zero_shot[direction][metric])
        assert item["second"] == pytest.approx(results["test"][direction][metric])
    teacher = json.loads((project.folder / "xpool.json").read_text())["test"]["cost"]
    assert teacher["bytes_per_video"] > 4 * 32 * 4 and teacher["flops_per_query"] > 10 * 2 * 32 * 1000


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_stored_and_online_teaching_give_the_same_losses(project, encoders):
    train = {"encoders": encoders}
    for source, precision in (("online", "float32"), ("stored", "float32"), ("stored", "float16")):
        name = f"{source}-{precision}"
        recipe = project(
            f"{name}.yaml",
            teaching={"source": source, "precision": precision},
            train=train,
            output=str(project.folder / name),
            stores=str(project.folder / f"stores-{name}"),
        )
        assert run(distill.main, recipe) == 0
    names = ("online-float32", "stored-float32", "stored-float16")
    online, exact, half = (logged_losses(project.folder / name) for name in names)
    assert_same_losses(exact, online, steps=4)
    # float16 keeps 11 bits of a logit of at most 100, so within 0.03; the losses move far less than that.
    np.testing.assert_allclose(half, online, atol=2e-3)


def test_precompute_fills_the_stores_and_verify_finds_a_changed_number(project, capsys):
    project.fill = False
    recipe = project()
    assert run(precompute.main, recipe, "--verify") == 0
    assert "verified" in capsys.readouterr().err
    store = relevance_store(project.folder / "stores", "xpool")
    assert store.rows == 16 and store.read("video_text", [0]).shape == (1, 8)
    assert np.allclose(store.read("frame_text", slice(None)).astype(np.float32).sum(axis=1), 1, atol=2e-3)
    path = next((project.folder / "stores" / "relevance-xpool").glob("*/video_text-*.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    assert run(precompute.main, recipe, "--verify") == 2
    assert "its checksum differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text": {"max_tokens": 6}}, "tokens.max_tokens"),
        ({"frames": {"sampling": "per_second"}}, "sampling.kind"),
        ({"teaching": {"precision": "float32"}}, "precision"),
    ],
)
def test_a_store_made_under_other_circumstances_is_refused(project, capsys, change, named):
    run(precompute.main, project(train={"encoders": "finetuned"}))
    capsys.readouterr()
    assert run(precompute.main, project(**change)) == 2
    message = capsys.readouterr().err
    assert named in message.splitlines()[-1] and message.splitlines()[-1].startswith("error: ")


def test_another_teacher_checkpoint_is_refused(project, capsys):
    recipe = project()
    run(precompute.main, recipe)
    other = torch.load(project.root / "teacher.pth", weights_only=True)
    other["state_dict"]["pool_frames.linear_proj.bias"] += 1
    torch.save(other, project.folder / "other.pth")
    capsys.readouterr()
    assert run(distill.main, recipe, f"teachers.0.checkpoint={project.folder / 'other.pth'}") == 2
    assert "model.weights" in capsys.readouterr().err


def test_train_teacher_writes_a_checkpoint_that_teaches(project, capsys):
    training = {"train": {"encoders": "frozen", "steps": 4, "batch_size": 4, "evaluate_every": 2}}
    checkpoint = project.folder / "new" / "xpool.pth"
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(checkpoint), "training": training}])
    assert run(distill.main, recipe) == 2
    assert "train it with teachclip train-teacher" in capsys.readouterr().err
    assert run(train_teacher.main, recipe) == 0
    content = torch.load(checkpoint, weights_only=True)
    assert "pool_frames.cross_attn.q_proj.weight" in content["state_dict"]
    assert run(distill.main, recipe) == 0


def test_dry_run_takes_a_step_and_writes_nothing(project, capsys):
    project.fill = False
    recipe = project()
    before = files_below(project.folder)
    assert run(distill.main, recipe, "--dry-run") == 0
    message = capsys.readouterr().err
    assert "dry run passed" in message and "frame_text" in message
    assert message.count("decoded 4 frames of") == 2
    assert files_below(project.folder) == before


def test_an_exported_student_gives_the_same_embeddings_in_a_fresh_process(project):
    recipe = project()
    run(distill.main, recipe)
    video = project.root / "videos" / "clip3.mp4"
    exports = {dtype: project.folder / dtype for dtype in ("float32", "float16")}
    for dtype, out in exports.items():
        assert run(export.main, recipe, "--out", out, "--dtype", dtype) == 0
    code = (
        "import json, sys\nfrom transformers import AutoModel\nimport teachclip\n"
        "for folder in sys.argv[2:]:\n"
        "    student = AutoModel.from_pretrained(folder)\n"
        "    assert str(student.dtype) == 'torch.float32', student.dtype\n"
        "    print(json.dumps([student.encode_text(['a red circle'], progress=False)[0].tolist(),"
        " student.encode_video([sys.argv[1]], progress=False)[0].tolist()]))"
    )
    done = run_fresh(code, video, *exports.values())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-2:]
    student = load_student(project.folder / "run" / "student")
    for (dtype, out), line in zip(exports.items(), lines, strict=True):
        text, frames = json.loads(line)
        tolerance = 1e-5 if dtype == "float32" else 5e-3
        np.testing.assert_allclose(text, student.encode_text(["a red circle"], progress=False)[0], atol=tolerance)
        np.testing.assert_allclose(frames, student.encode_video([video], progress=False)[0], atol=tolerance)
        names = {path.name for path in out.iterdir()}
        assert {"config.json", "model.safetensors", "README.md", "processor_config.json"} <= names
        weights = load_file(out / "model.safetensors")
        assert {str(tensor.dtype) for tensor in weights.values()} == {f"torch.{dtype}"}
        for path in out.iterdir():
            assert str(project.root).encode() not in path.read_bytes(), path.name
        assert not any("teacher" in name or "exp_avg" in name for name in weights)
        card = (out / "README.md").read_text()
        assert "model-index" in card and "xpool" in card and "| student | test | text to video | 6 | 3 |" in card


def test_selecting_on_test_is_stamped_on_the_results(project, capsys, monkeypatch):
    monkeypatch.setattr(selection, "FEW_VIDEOS", 3)  # as many as there are: they select
    recipe = project(data={"select_on": "test", "validation": None})
    assert run(distill.main, recipe) == 0
    assert "selected on the TEST split" in capsys.readouterr().out
    assert "selected on the TEST split" in (project.folder / "run" / "student" / "README.md").read_text()


def test_frame_targets_of_the_whole_video_change_only_the_frame_term(project):
    run(distill.main, project())
    run(
        distill.main,
        project("video.yaml", losses={"frame_text": {"targets": "video"}}, output=str(project.folder / "video")),
    )
    pair, video = (logged_losses(project.folder / name) for name in ("run", "video"))
    assert pair[0, 1] == video[0, 1]
    assert pair[-1, 2] != video[-1, 2]  # at first all frames weigh the same, and any target costs the same


def accelerate_launch(script, recipe):
    """Start two processes as the README says."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", script, recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_two_launched_processes_store_and_train_as_one_does(project):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = project(
            f"{count}.yaml",
            train={"encoders": "finetuned"},
            output=str(folder / "run"),
            stores=str(folder / "stores"),
        )
        done = launch(count, "precompute", recipe)
        assert done.returncode == 0, done.stderr
        if count == 1:
            assert run(distill.main, recipe) == 0
        else:
            accelerate_launch(ROOT / "tools" / "distill.py", recipe)
    assert len(list((project.folder / "2" / "stores" / "relevance-xpool").glob("*/shard-*.json"))) == 4
    for name in ("video_text", "frame_text"):
        one, two = (relevance_store(project.folder / n / "stores", "xpool") for n in "12")
        assert np.array_equal(one.read(name, slice(None)), two.read(name, slice(None)))
    assert_same_losses(*(logged_losses(project.folder / n / "run") for n in "12"), steps=4)


def test_killed_at_random_moments_precompute_ends_in_the_same_store(project, monkeypatch):
    for name, rows in {
        "token_store.TEXTS_PER": 2,
        "token_store.VIDEOS_PER": 2,
        "relevance_store.ROWS_PER": 4,
    }.items():
        monkeypatch.setattr(f"teachclip.scoring.{name}_SHARD", rows)
    whole = project("whole.yaml", stores=str(project.folder / "whole"))
    assert run(precompute.main, whole) == 0
    killed = project("killed.yaml", stores=str(project.folder / "killed"))
    rng = random.Random(0)
    script = project.folder / "slow_precompute.py"
    script.write_text(SLOW_PRECOMPUTE)
    for goal in (1, 5, 13):  # files that are there when the kill comes
        process = start(script, killed)
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            if len(list((project.folder / "killed").glob("**/shard-*.json"))) > goal:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    assert run(precompute.main, killed, "--verify") == 0
    for path in (project.folder / "whole").rglob("*.npy"):
        assert (
            path.read_bytes() == (project.folder / "killed" / path.relative_to(project.folder / "whole")).read_bytes()
        )
    whole, left = ({*files_below(project.folder / name)} for name in ("whole", "killed"))
    assert {path for path in left if path.name != OWNER} == whole  # a killed run cannot delete its name


SLOW_PRECOMPUTE = """
import sys, time
import teachclip.store.array_store as store
import teachclip.scoring.relevance_store as relevance
import teachclip.scoring.token_store as tokens
tokens.TEXTS_PER_SHARD, tokens.VIDEOS_PER_SHARD, relevance.ROWS_PER_SHARD = 2, 2, 4
write = store.ArrayStore.write_shard
def slow(self, *arguments, **options):
    time.sleep(0.2)
    write(self, *arguments, **options)
    time.sleep(0.2)
store.ArrayStore.write_shard = slow
from teachclip.cli.precompute import main
if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
"""


def test_evaluate_reranks_by_a_teacher(project, capsys):
    recipe = project()
    assert run(distill.main, recipe) == 0
    capsys.readouterr()
    out = project.folder / "out.json"
    assert run(evaluate.main, recipe, "--rerank", "xpool", "--top", "1,2,99", "--out", out) == 0
    assert "| best 2 by xpool |" in capsys.readouterr().out
    found = json.loads(out.read_text())["test"]
    assert run(evaluate.main, recipe, "--model", "xpool", "--out", out) == 0
    teacher = json.loads(out.read_text())["test"]
    assert [item["k"] for item in found["reranked"]["depths"]] == [1, 2, 3]
    assert found["reranked"]["depths"][0]["t2v"] == found["t2v"]
    assert found["reranked"]["depths"][-1]["t2v"] == teacher["t2v"]
    capsys.readouterr()
    for arguments, part in (
        (
            ["--rerank", "xpol"],
            "--rerank 'xpol': allowed: xpool; the folder or hub id of a CrossEncoder; did you mean xpool?",
        ),
        (["--top", "3"], "--top says how many videos --rerank orders anew"),
        (["--rerank", "xpool", "--top", "3,x"], "allowed: whole numbers from 1 between commas"),
    ):
        with contextlib.suppress(SystemExit):
            assert run(evaluate.main, recipe, *arguments) == 2
        assert part in capsys.readouterr().err.splitlines()[-1]


def test_sentence_transformers_loads_an_exported_student(project):
    run(distill.main, project())
    folder = project.folder / "run" / "student"
    model = SentenceTransformer(str(folder), device="cpu")
    student = load_student(folder)
    video = str(project.root / "videos" / "clip3.mp4")
    np.testing.assert_allclose(
        model.encode("a red circle"), student.encode_text(["a red circle"], progress=False)[0], atol=1e-5
    )
    np.testing.assert_allclose(model.encode(video), student.encode_video([video], progress=False)[0], atol=1e-5)


def test_bfloat16_and_loader_workers_change_the_losses_little_and_not_at_all(project):
    for name, values in {"plain": {}, "bf16": {"mixed_precision": "bf16"}, "workers": {"workers": 2}}.items():
        recipe = project(f"{name}.yaml", train={"encoders": "finetuned", **values}, output=str(project.folder / name))
        assert run(distill.main, recipe) == 0
    plain, half, workers = (logged_losses(project.folder / n) for n in ("plain", "bf16", "workers"))
    assert np.array_equal(plain, workers)
    assert not np.array_equal(plain, half)
    # cosines to 2^-9, times CLIP's scale of 100; how products are added up depends on the processor
    np.testing.assert_allclose(half, plain, atol=0.1)


def test_a_run_trained_on_other_content_is_not_reported_as_new(project, capsys):
    teacher = project.folder / "teacher.pth"
    shutil.copy(project.root / "teacher.pth", teacher)
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(teacher)}])
    assert run(distill.main, recipe) == 0
    content = torch.load(teacher, weights_only=True)
    content["options"]["mask_padding"] = False
    torch.save(content, teacher)
    shutil.rmtree(project.folder / "stores")
    capsys.readouterr()
    assert run(distill.main, recipe) == 2
    assert "holds a run with other settings: content.teacher xpool" in capsys.readouterr().err


def test_verify_looks_at_the_stored_features_too(project, capsys):
    recipe = project()
    assert run(precompute.main, recipe) == 0
    path = next((project.folder / "stores").glob("features-*/train/videos/frame_features-*.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    assert run(precompute.main, recipe, "--verify") == 2
    assert "its checksum differs" in capsys.readouterr().err


def test_zeroed_frames_are_named_and_not_the_relevance_computed_from_them(project, capsys):
    recipe = project()
    assert run(precompute.main, recipe) == 0
    path = next((project.folder / "stores" / "frames").glob("frames-*.npy"))
    np.save(path, np.zeros_like(np.load(path)))
    capsys.readouterr()
    assert run(precompute.main, recipe, "--verify") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{path} is damaged (its checksum differs)" in line


def test_a_student_is_not_trained_on_relevance_that_was_changed(project, capsys):
    recipe = project()
    path = next((project.folder / "stores" / "relevance-xpool").glob("*/video_text-*.npy"))
    np.save(path, np.zeros_like(np.load(path)))
    assert run(distill.main, recipe) == 2
    assert f"error: {path} is damaged (its checksum differs)" in capsys.readouterr().err


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_written_to_a_link_keeps_the_link(tmp_path, exists):
    out, link = tmp_path / "real", tmp_path / "link"
    if exists:
        out.write_bytes(b"before")
    link.symlink_to(out)
    save_checkpoint({"weights": torch.ones(2)}, link)
    assert link.is_symlink() and torch.equal(torch.load(out)["weights"], torch.ones(2))
    write_atomic(link, b"new")
    assert link.is_symlink() and out.read_bytes() == b"new"


def test_a_second_run_on_one_output_is_refused_in_one_line(project, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.store.files.PATIENCE", 0.1)
    with occupied_folder(project.folder / "run", wait=False):
        assert run(distill.main, project()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line == (
        f"error: {project.folder / 'run'}: process {os.getpid()} on {socket.gethostname()} works there; "
        "wait for it to end or stop it, or give another output="
    )
    assert not (project.folder / "run" / "log.jsonl").exists()


def test_an_export_never_replaces_a_folder_that_is_not_one(project, capsys):
    recipe = project()
    run(distill.main, recipe)
    out = project.folder / "export"
    assert run(export.main, recipe, "--out", out) == 0
    (project.folder / "link").symlink_to(out)
    assert run(export.main, recipe, "--out", project.folder / "link") == 0
    assert (project.folder / "link").is_symlink() and out.is_dir()
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())
    (out / "notes.txt").write_text("mine")
    for folder in (out, project.root / "clip", project.root / "captions.csv"):
        before = files_below(folder)
        assert run(export.main, recipe, "--out", folder) == 2
        assert files_below(folder) == before
    assert "notes.txt" in capsys.readouterr().err


def test_train_teacher_does_not_overwrite_a_checkpoint_it_did_not_make(project, capsys):
    checkpoint = project.folder / "theirs.pth"
    checkpoint.write_bytes(b"downloaded")
    training = {"train": {"encoders": "frozen", "steps": 2, "batch_size": 4}}
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(checkpoint), "training": training}])
    assert run(train_teacher.main, recipe) == 2
    assert "is not overwritten" in capsys.readouterr().err and checkpoint.read_bytes() == b"downloaded"


def test_what_is_wrong_is_said_before_anything_is_decoded(project, capsys):
    project.fill = False
    for override in ("train.batch_size=17", "data.validation=null", "teachers.0.checkpoint=none.pth"):
        assert run(distill.main, project(), override) == 2
        assert not (project.folder / "stores").exists() and not (project.folder / "run").exists()
    assert run(distill.main, project(), "data.validation=null", "--dry-run") == 2


def test_an_error_in_a_loader_process_is_one_line(project, capsys):
    recipe = project(train={"workers": 1})
    assert run(precompute.main, recipe) == 0
    path = next((project.folder / "stores" / "relevance-xpool").glob("*/video_text-*.npy"))
    path.write_bytes(path.read_bytes()[:150])
    capsys.readouterr()
    assert run(distill.main, recipe) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1 and "is damaged" in lines[0] and lines[0].startswith("error: ")
