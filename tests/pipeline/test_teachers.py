"""Several teachers in one recipe: twice the same kind, without frames, with inputs of their own, from a file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from other_teachers import Pixels
from processes import launch
from runs import assert_same_losses, relevance_store
from runs import logged_losses as losses
from tiny_backbones import save_backbone
from tiny_models import FRAMES, tiny_clip

from teachclip import load_student
from teachclip.cli import distill, evaluate, import_relevance, precompute, train_teacher
from teachclip.pipeline.teachers import TeacherHandle
from teachclip.recipe.schema import Teacher
from teachers.xclip import XCLIP

ROOT = Path(__file__).parents[2]


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def logged(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_scores(project, path, *, top=None, changed=None):
    """Score all training pairs as some other program would: from the ids that the command writes."""
    ids = project.folder / "ids"
    assert run(import_relevance.main, project("ids.yaml"), "--write-ids", ids) == 0
    captions, videos = read_csv(ids / "captions.csv"), read_csv(ids / "videos.csv")
    state = np.random.RandomState(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption_id", "video_id", "score"])
        for caption in captions:
            scores = state.standard_normal(len(videos)).astype(np.float32)
            for place in np.argsort(-scores)[:top]:
                writer.writerow([caption["caption_id"], videos[place]["video_id"], float(scores[place])])
    return path


@pytest.fixture
def kinds(project):
    """One teacher of each kind, the last of them read from a file."""
    xpool = str(project.root / "teacher.pth")
    return {
        "xpool": {"name": "xpool", "checkpoint": xpool, "weight": 0.5, "frame_temperature": 0.5},
        "second": {"name": "xpool", "label": "second", "checkpoint": xpool, "options": {"mask_padding": False}},
        "plain": {"name": "other_teachers:VideoOnly", "label": "plain", "checkpoint": xpool},
        "pixels": {
            "name": "other_teachers:Pixels",
            "label": "pixels",
            "checkpoint": str(Pixels.write(project.folder / "pixels.pth")),
            "weight": 2.0,
            "frame_temperature": 3.0,
        },
        "file": {
            "name": "scores",
            "label": "file",
            "checkpoint": str(write_scores(project, project.folder / "scores.csv")),
        },
    }


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_teachers_of_every_kind_give_the_same_losses_stored_and_online(project, kinds, encoders, capsys):
    for source in ("stored", "online"):
        recipe = project(
            f"{source}.yaml",
            teachers=list(kinds.values()),
            teaching={"source": source, "precision": "float32"},
            train={"encoders": encoders},
            output=str(project.folder / source),
            stores=str(project.folder / f"stores-{source}"),
        )
        assert run(distill.main, recipe) == 0
        assert "the frame-text term is taught by 3 of 5 teachers" in capsys.readouterr().err
    assert_same_losses(*(losses(project.folder / source) for source in ("stored", "online")), steps=4)
    names = {path.name for path in (project.folder / "stores-online").iterdir()}
    assert {"frames", "frames-16-stretch", "relevance-file"} <= names and "relevance-xpool" not in names
    names = {path.name for path in (project.folder / "stores-stored").glob("relevance-*")}
    assert names == {f"relevance-{label}" for label in kinds}


def test_two_processes_store_and_train_with_every_kind_as_one_does(project, kinds):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = project(
            f"{count}.yaml",
            teachers=list(kinds.values()),
            teaching={"source": "online"},
            train={"encoders": "finetuned"},
            output=str(folder / "run"),
            stores=str(folder / "stores"),
        )
        for tool in ("precompute", "distill"):
            done = launch(count, tool, recipe, paths=(ROOT / "tests" / "support", ROOT))
            assert done.returncode == 0, done.stderr
    for label in kinds:
        one, two = (relevance_store(project.folder / n / "stores", label) for n in "12")
        assert np.array_equal(one.read("video_text", slice(None)), two.read("video_text", slice(None)))
    assert_same_losses(*(losses(project.folder / n / "run") for n in "12"), steps=4)


def test_dry_run_takes_every_kind_along_and_writes_nothing(project, kinds, capsys):
    recipe = project(teachers=list(kinds.values()))
    before = sorted(project.folder.rglob("*"))
    assert run(distill.main, recipe, "--dry-run") == 0
    message = capsys.readouterr().err
    assert "dry run passed" in message and "frame_text" in message and "taught by 3 of 5 teachers" in message
    assert sorted(project.folder.rglob("*")) == before


@pytest.mark.parametrize("source", ["stored", "online"])
def test_without_any_frames_the_frame_term_is_left_out_and_the_log_says_so(project, kinds, source, capsys):
    recipe = project(teachers=[kinds["plain"], kinds["file"]], teaching={"source": source})
    for more in ([], ["--dry-run"]):
        assert run(distill.main, recipe, *more) == 0
        assert (
            "no teacher gives frame relevance: the frame-text term (weight 2) is not used" in capsys.readouterr().err
        )
    for line in logged(project.folder / "run"):
        assert "frame_text" not in line
        np.testing.assert_allclose(line["loss"], 0.2 * line["contrastive"] + line["video_text"], rtol=1e-5)


def test_frame_targets_of_videos_need_frames_of_those_teachers_alone_that_have_them(project, kinds):
    teachers = [kinds["xpool"], kinds["plain"], kinds["file"]]
    recipe = project(teachers=teachers, losses={"frame_text": {"targets": "video"}})
    assert run(distill.main, recipe) == 0
    assert "frame_text" in logged(project.folder / "run")[0]


def test_another_frame_temperature_needs_no_other_store(project, capsys):
    teacher = {"name": "xpool", "checkpoint": str(project.root / "teacher.pth")}
    found = {}
    for temperature in (1.0, 0.05):
        recipe = project(
            f"{temperature}.yaml",
            teachers=[{**teacher, "frame_temperature": temperature}],
            output=str(project.folder / str(temperature)),
        )
        assert run(distill.main, recipe) == 0
        store = project.folder / "stores" / "relevance-xpool"
        found[temperature] = {path: path.stat().st_mtime_ns for path in store.rglob("*-0*")}
    assert found[1.0] == found[0.05]
    plain, sharp = (losses(project.folder / name) for name in ("1.0", "0.05"))
    assert plain[0, 1] == sharp[0, 1] and plain[-1, 2] != sharp[-1, 2]


def test_verify_recomputes_from_a_teachers_own_inputs_and_from_files(project, kinds, capsys):
    recipe = project(teachers=list(kinds.values()))
    assert run(precompute.main, recipe, "--verify") == 0
    assert "verified" in capsys.readouterr().err
    provenance = relevance_store(project.folder / "stores", "pixels").provenance
    assert provenance["tokens"]["max_tokens"] == 6 and provenance["normalisation"]["mean"] == [0.4] * 3
    assert provenance["frames"]["size"] == 16 and "stretched" in provenance["frames"]["transform"]
    assert run(precompute.main, recipe, "teachers.3.options.max_tokens=4") == 2
    assert "tokens.max_tokens = 6 there, 4 now" in capsys.readouterr().err


def test_a_teacher_is_evaluated_on_its_own_inputs(project, kinds, capsys):
    recipe = project(teachers=list(kinds.values()))
    for label in ("second", "plain", "pixels"):
        assert run(evaluate.main, recipe, "--model", label) == 0
        assert f"| {label} | test | text to video |" in capsys.readouterr().out
    assert run(evaluate.main, recipe, "--model", "file") == 2
    assert "reads scores of training pairs from a file: it cannot be evaluated" in capsys.readouterr().err


def test_a_student_guides_its_teacher_in_a_second_round(project, kinds, capsys):
    first = project("first.yaml", teachers=[kinds["xpool"]], output=str(project.folder / "first"))
    assert run(distill.main, first) == 0
    guided = {**kinds["xpool"], "name": "guided_xpool", "label": "guided"}
    guided["options"] = {"student": str(project.folder / "first" / "student"), "strength": 4.0}
    found = {}
    for source in ("stored", "online"):
        recipe = project(
            f"{source}.yaml",
            teachers=[guided],
            teaching={"source": source, "precision": "float32"},
            output=str(project.folder / source),
        )
        assert run(evaluate.main, recipe, "--model", "guided") == 0 and run(distill.main, recipe) == 0
        assert "| guided | test | text to video |" in capsys.readouterr().out
        found[source] = losses(project.folder / source)
    assert_same_losses(found["stored"], found["online"], steps=4)
    assert np.abs(found["stored"][0] - losses(project.folder / "first")[0]).max() > 1e-3
    recipe, student = project.folder / "stored.yaml", project.folder / "first" / "student"
    moved = student.rename(project.folder / "moved")
    again = [f"teachers.0.options={json.dumps({**guided['options'], 'student': str(moved)})}"]
    assert run(distill.main, recipe, *again, f"output={project.folder}/again") == 0  # the same, wherever it lies
    assert np.array_equal(losses(project.folder / "again"), found["stored"])
    (project.folder / "stored" / "student").rename(student)  # another one where it lay
    assert run(distill.main, recipe, f"output={project.folder}/other") == 2
    assert "model.weights" in capsys.readouterr().err


def test_a_student_of_another_backbone_than_x_pools_needs_to_say_what_that_reads(project, kinds, capsys):
    assert run(distill.main, project("first.yaml", teachers=[kinds["xpool"]])) == 0
    student = load_student(project.folder / "run" / "student")
    student.save_pretrained(project.folder / "whole")
    student.processor = None  # so that it does not say what it reads
    student.save_pretrained(project.folder / "guide")
    guided = {**kinds["xpool"], "name": "guided_xpool", "options": {"student": str(project.folder / "guide")}}
    siglip = {"backbone": str(save_backbone("siglip", project.folder / "siglip"))}
    other = {name: str(project.folder / f"other-{name}") for name in ("output", "stores")}
    recipe = project(teachers=[guided], student=siglip, frames={"size": None}, **other)
    capsys.readouterr()
    assert run(distill.main, recipe, "--dry-run") == 2
    assert "name the folder or hub id of its CLIP as teachers.reads" in capsys.readouterr().err
    whole = json.dumps({"student": str(project.folder / "whole")})
    assert run(distill.main, recipe, f"teachers.0.options={whole}") == 0


@pytest.mark.parametrize("tool", [distill, train_teacher])
def test_a_teacher_that_cannot_be_trained_has_no_training(project, kinds, tool, capsys):
    guided = {
        **kinds["xpool"],
        "name": "guided_xpool",
        "options": {"student": "x"},
        "training": {"train": {"steps": 1}},
    }
    assert run(tool.main, project(teachers=[guided])) == 2
    assert "a 'guided_xpool' cannot be trained here" in capsys.readouterr().err


def test_an_online_teacher_that_reads_what_the_student_reads_shares_it(project, kinds, monkeypatch):
    from teachclip.training.batches import TrainingBatches

    keys = []
    plain = TrainingBatches.__getitem__

    def spy(self, step):
        batch = plain(self, step)
        keys.append(set(batch))
        return batch

    monkeypatch.setattr(TrainingBatches, "__getitem__", spy)
    shared = {**kinds["pixels"], "options": {"share": True}}
    again = {**kinds["pixels"], "label": "again"}
    recipe = project(
        teachers=[kinds["xpool"], shared, {**kinds["pixels"], "label": "own"}, again],
        teaching={"source": "online"},
        train={"encoders": "finetuned"},
    )
    assert run(distill.main, recipe) == 0
    assert {key for key in keys[0] if key.endswith("frames")} == {"frames", "inputs1.frames"}


# Relevance from files


def test_ids_are_written_in_the_order_of_the_split_with_texts_and_files(project):
    folder = project.folder / "ids"
    assert run(import_relevance.main, project(), "--write-ids", folder) == 0
    captions, videos = read_csv(folder / "captions.csv"), read_csv(folder / "videos.csv")
    assert len(captions) == 16 and len(videos) == 8
    assert captions[0]["caption_id"] == captions[0]["video_id"] + ":0" and captions[0]["text"].startswith("a ")
    assert [row["video_id"] for row in captions[::2]] == [row["video_id"] for row in videos]
    assert all(Path(row["path"]).is_file() and row["start"] == row["end"] == "" for row in videos)


def test_import_writes_the_store_that_distill_reads(project, kinds, capsys):
    recipe = project(teachers=[kinds["file"]])
    top = write_scores(project, project.folder / "top.csv", top=3)
    assert run(import_relevance.main, recipe, "--teacher", "file", top) == 0
    message = capsys.readouterr().err
    assert "48 of 128 pairs are listed" in message and f"teachers.0.checkpoint={top}" in message
    store = relevance_store(project.folder / "stores", "file")
    found = store.read("video_text", slice(None))
    assert found.shape == (16, 8) and [len(set(row)) for row in found.tolist()] == [3] * 16
    assert run(distill.main, recipe) == 2  # the recipe names another file
    assert "model.files.scores" in capsys.readouterr().err
    top.rename(project.folder / "scores.csv")  # content counts, not names
    assert run(distill.main, recipe, f"output={project.folder / 'again'}") == 0


def test_mistakes_in_importing_are_one_line(project, kinds, capsys):
    recipe = project(teachers=[kinds["xpool"], kinds["file"]])
    bad = project.folder / "bad.csv"
    bad.write_text("caption_id,video_id,score\nnone:0,clip1.mp4,1\n")
    for arguments, part in (
        (["--teacher", "file", bad], "bad.csv: line 2: caption_id 'none:0' is no caption of the train split"),
        (["--teacher", "xpool", bad], "--teacher 'xpool': teachers of the recipe that read scores: file"),
        (["--teacher", "fil"], "did you mean file?"),
        (["none.csv"], "none.csv does not exist"),
        ([bad, bad], "give one FILE"),
        (["--write-ids", project.folder / "x", bad], "--write-ids takes no FILE"),
        (["teachers.1.options.missing=zero"], "option missing is 'zero'"),
        ([f"teachers.1.options.frames={project.folder}/none.csv"], "none.csv: no such file of scores"),
    ):
        capsys.readouterr()
        assert run(import_relevance.main, recipe, *arguments) == 2, arguments
        errors = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
        assert len(errors) == 1 and errors[0].startswith("error: ") and part in errors[0], errors
    left = [path.name for path in (project.folder / "stores" / "relevance-file").glob("*")]
    assert set(left) <= {".owner.lock"}  # of the run that found line 2 wrong; nothing was stored


def test_a_missing_file_of_scores_is_found_before_anything_is_decoded(project, kinds, capsys):
    recipe = project(teachers=[kinds["file"]], stores=str(project.folder / "fresh"))
    assert run(distill.main, recipe, "teachers.0.checkpoint=elsewhere/scores") == 2
    assert "teacher file: elsewhere/scores does not exist" in capsys.readouterr().err
    assert not (project.folder / "fresh").exists()


@pytest.mark.parametrize("main", [distill.main, precompute.main])
def test_a_wrong_file_and_other_sizes_are_found_before_anything_is_decoded(project, tmp_path, main, capsys):
    xclip = XCLIP.from_clip(tiny_clip(heads=1), frames=FRAMES, tokens=8)
    torch.save(xclip.checkpoint(), tmp_path / "xclip.bin")
    stores = str(project.folder / "fresh")
    for name, override, part in (
        ("xpool", "text.max_tokens=8", "expected an X-Pool checkpoint, this looks like an X-CLIP checkpoint"),
        ("xclip", "text.max_tokens=9", "teacher xclip takes at most 8 tokens, text.max_tokens is 9"),
        ("xclip", f"frames.count={FRAMES + 1}", f"takes 1 to {FRAMES} frames, frames.count is {FRAMES + 1}"),
    ):
        recipe = project(teachers=[{"name": name, "checkpoint": str(tmp_path / "xclip.bin")}], stores=stores)
        assert run(main, recipe, "text.max_tokens=8", override) == 2
        assert part in capsys.readouterr().err
    assert not (project.folder / "fresh").exists()


# Where checkpoints are


@pytest.mark.parametrize(
    ("name", "checkpoint", "expected"),
    [
        ("dual_encoder", "google/siglip-base-patch16-224", True),
        ("dual_encoder", "weights/model.safetensors", False),
        ("dual_encoder", "/no/such/folder", False),
        ("dual_encoder", "a/b/c", False),
        ("xpool", "someone/xpool", False),
        ("scores", "someone/scores", False),
    ],
)
def test_only_what_may_be_on_the_hub_is_not_missed_on_the_disk(name, checkpoint, expected):
    handle = TeacherHandle(Teacher(name=name, checkpoint=checkpoint), torch.device("cpu"))
    assert handle.exists() == expected


@pytest.mark.parametrize("source", ["stored", "online"])
@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_every_checkpoint_is_loaded_once_and_no_weights_are_hashed_twice(
    project, kinds, monkeypatch, encoders, source
):
    import teachers
    from teachclip.pipeline import workspace

    loaded, hashed = [], []
    load, digest = teachers.load_teacher, workspace.weights_hash
    monkeypatch.setattr(
        teachers,
        "load_teacher",
        lambda name, path, **rest: loaded.append(str(path)) or load(name, path, **rest),
    )
    monkeypatch.setattr(workspace, "weights_hash", lambda model: hashed.append(digest(model)) or hashed[-1])
    frame_sets = {"weight": 1.0, "scorer": "xpool", "count": 4, "texts": 4, "frames": [1, 2]}
    recipe = project(
        teachers=[kinds["xpool"], kinds["pixels"], kinds["file"]],
        teaching={"source": source},
        train={"encoders": encoders},
        losses={"frame_sets": frame_sets},
    )
    assert run(distill.main, recipe) == 0
    assert sorted(loaded) == sorted(kinds[name]["checkpoint"] for name in ("xpool", "pixels", "file"))
    assert len(hashed) == len(set(hashed)) >= (2 if encoders == "frozen" else 1)
    first = list(hashed)
    loaded.clear()
    hashed.clear()
    assert run(distill.main, recipe, f"output={project.folder / 'again'}") == 0  # everything is stored by now
    assert len(loaded) == 3 and sorted(hashed) == sorted(first)
