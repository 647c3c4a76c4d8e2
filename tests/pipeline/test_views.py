"""Training on several views of each video, and on frames that are decoded when they are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import view_decoder
from runs import assert_same_losses, relevance_store
from runs import logged_losses as losses

from teachclip.cli import distill, evaluate, import_relevance, precompute, train_teacher
from teachclip.data.video import workers
from teachclip.errors import VideoError
from teachclip.store.array_store import ArrayStore

STEPS = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "log_every": 1}


@pytest.fixture(autouse=True)
def augmentation(monkeypatch):
    monkeypatch.setattr(workers, "decode_file", view_decoder.augmented)


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def write(project, name, *, frames, stores=None, **sections):
    return project(
        f"{name}.yaml",
        frames=frames,
        output=str(project.folder / name),
        stores=str(project.folder / (stores or f"stores-{name}")),
        **sections,
    )


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_stored_teaching_of_several_views_is_online_teaching(project, encoders):
    train = {**STEPS, "encoders": encoders}
    slow = {"lr": 1e-5, "clip_lr": 1e-6, "attention_lr": 1e-5}  # Adam enlarges what is rounded
    for source in ("online", "stored"):
        teaching = {"source": source, "precision": "float32"}
        recipe = write(
            project,
            source,
            stores="stores",
            frames={"temporal_augmentation": 3},
            teaching=teaching,
            train=train,
            optimizer=slow,
        )
        assert run(distill.main, recipe) == 0
    one_view = write(project, "plain", stores="stores", frames={}, teaching=teaching, train=train, optimizer=slow)
    assert run(distill.main, one_view) == 0
    online, stored, plain = (losses(project.folder / name) for name in ("online", "stored", "plain"))
    assert_same_losses(stored, online, steps=6)
    assert (np.abs(plain - stored).max(axis=0) > 1e-3).all()  # the views matter
    names = {path.name for path in (project.folder / "stores").iterdir()}
    assert {"frames", "frames-view1", "frames-view2", "relevance-xpool-views3", "relevance-xpool"} <= names
    store = relevance_store(project.folder / "stores", "xpool-views3")
    assert store.arrays["video_text"].shape == (8 * 3,) and store.arrays["frame_text"].shape == (3, 4)
    plain = relevance_store(project.folder / "stores", "xpool")
    np.testing.assert_allclose(
        store.read("video_text", slice(None))[:, :8], plain.read("video_text", slice(None)), atol=1e-5
    )
    assert "views" not in plain.provenance["frames"] and store.provenance["frames"]["views"] == 3


def test_validation_and_test_see_the_plan_itself(project, capsys):
    for name, frames in (("one", {}), ("three", {"temporal_augmentation": 3})):
        recipe = write(project, name, stores="stores", frames=frames, train={"encoders": "finetuned"})
        assert run(evaluate.main, recipe, "--model", "xpool", "--out", project.folder / f"{name}.json") == 0
        assert run(evaluate.main, recipe, "--model", "zero_shot", "--split", "train") == 0
    one, three = (json.loads((project.folder / f"{name}.json").read_text()) for name in ("one", "three"))
    for direction in ("t2v", "v2t"):
        assert one["test"][direction] == three["test"][direction]
    assert not (project.folder / "stores" / "frames-view3").exists()
    assert ArrayStore.open(project.folder / "stores" / "frames-view1").rows == 8  # those of training alone


def test_precompute_verifies_every_view_and_finds_a_changed_number_in_one(project, capsys):
    recipe = write(project, "run", frames={"temporal_augmentation": 2})
    assert run(precompute.main, recipe, "--verify") == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().err
    stores = project.folder / "stores-run"
    assert len(list(stores.glob("features-*/train-views2/videos"))) == 1
    assert len(list(stores.glob("features-*/validation/videos"))) == 1
    path = next((stores / "frames-view1").glob("frames-*.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    assert run(precompute.main, recipe, "--verify") == 2
    assert "frames-view1" in capsys.readouterr().err


def test_frame_targets_of_a_video_are_of_each_of_its_views(project):
    for name, views in (("one", 1), ("two", 2)):
        recipe = write(
            project,
            name,
            stores="stores",
            frames={"temporal_augmentation": views},
            losses={"frame_text": {"targets": "video"}},
            teaching={"precision": "float32"},
            train=STEPS,
        )
        assert run(distill.main, recipe) == 0
    one, two = (losses(project.folder / name) for name in ("one", "two"))
    assert len(two) == 6 and not np.allclose(one, two, atol=1e-4)


def test_a_run_of_other_views_is_another_run(project, capsys):
    assert run(distill.main, write(project, "run", frames={})) == 0
    assert run(distill.main, write(project, "run", frames={"temporal_augmentation": 2})) == 2
    assert "frames.temporal_augmentation" in capsys.readouterr().err


def test_relevance_from_a_file_knows_no_views(project, capsys):
    scores = project.folder / "scores.npy"
    np.save(scores, np.zeros((16, 8), np.float32))
    recipe = write(
        project, "run", frames={"temporal_augmentation": 2}, teachers=[{"name": "scores", "checkpoint": str(scores)}]
    )
    for main in (distill.main, precompute.main, import_relevance.main):
        assert run(main, recipe) == 2
        message = capsys.readouterr().err
        assert (
            message.startswith("error: teacher 'scores' reads its relevance from a file")
            and "temporal_augmentation=1" in message
        )
    assert not (project.folder / "stores-run").exists()


@pytest.mark.parametrize(("encoders", "views"), [("frozen", 1), ("finetuned", 2)])
def test_without_a_frame_store_the_losses_are_the_same(project, encoders, views, capsys):
    for store in ("disk", "none"):
        recipe = write(
            project,
            store,
            frames={"store": store, "temporal_augmentation": views, "workers": 1},
            teaching={"source": "stored" if encoders == "frozen" else "online"},
            train={**STEPS, "encoders": encoders, "workers": 2},
        )
        assert run(distill.main, recipe) == 0, capsys.readouterr().err
        assert ("train.workers=2 is not used" in capsys.readouterr().err) == (
            (store, encoders) == ("none", "finetuned")
        )
    assert np.array_equal(losses(project.folder / "disk"), losses(project.folder / "none"))
    disk, none = (json.loads((project.folder / name / "results.json").read_text()) for name in ("disk", "none"))
    assert disk["test"]["t2v"] == none["test"]["t2v"]
    frames = project.folder / "stores-none" / "frames"
    assert [path.name for path in frames.iterdir()] == ["file-hashes.json"]  # no frame is kept


def test_what_was_computed_with_a_frame_store_serves_without_one(project, monkeypatch):
    recipe = write(project, "run", frames={})
    assert run(precompute.main, recipe) == 0
    monkeypatch.setattr(workers, "decode_file", None)  # nothing is decoded: features and relevance are there
    assert run(precompute.main, recipe, "frames.store=none") == 0


def test_without_a_frame_store_videos_are_decoded_once_for_every_reading(project):
    recipe, folder = write(project, "run", frames={"store": "none"}), project.root / "videos"
    view_decoder.decoded(folder)
    assert run(precompute.main, recipe) == 0
    lines = view_decoder.decoded(folder)
    assert len(lines) == 14 + 8  # for features, and for the tokens of the teacher
    assert run(evaluate.main, recipe, "--model", "zero_shot") == 0
    assert view_decoder.decoded(folder) == ["clip11 0", "clip12 0", "clip13 0"]


def half_of_clip3(path, plan, size, start, end, on_error, view):
    if Path(path).stem != "clip3":
        return view_decoder.augmented(path, plan, size, start, end, on_error, view)
    if on_error == "skip":
        raise VideoError(f"{path}: decoding stops after frame 5")
    return view_decoder.augmented(path, plan, size, start, end, on_error, view)[:2]


@pytest.mark.parametrize("store", ["disk", "none"])
def test_a_video_of_which_a_part_is_used_is_named_in_the_log_and_in_the_results(project, monkeypatch, store, capsys):
    monkeypatch.setattr(workers, "decode_file", half_of_clip3)
    recipe = write(project, "run", frames={"store": store})
    assert run(distill.main, recipe) == 2
    assert "clip3.mp4: decoding stops after frame 5" in capsys.readouterr().err
    assert run(distill.main, recipe, "frames.on_error=use_decodable", f"output={project.folder / 'used'}") == 0
    assert "clip3.mp4 is partially decoded" in capsys.readouterr().err
    results = json.loads((project.folder / "used" / "results.json").read_text())
    assert list(results["partially_decoded"]) == ["clip3.mp4"] and results["excluded"] == {}


def test_a_teacher_trains_without_a_frame_store(project):
    for store in ("disk", "none"):
        training = {"train": {"encoders": "finetuned", **STEPS}}
        checkpoint = project.folder / f"teacher-{store}" / "xpool.pth"
        teachers = [{"name": "xpool", "checkpoint": str(checkpoint), "training": training}]
        recipe = write(project, store, frames={"store": store, "temporal_augmentation": 2}, teachers=teachers)
        assert run(train_teacher.main, recipe) == 0
    disk, none = (losses(project.folder / f"teacher-{name}" / "xpool-run", ("loss",)) for name in ("disk", "none"))
    assert len(disk) == 6 and np.array_equal(disk, none)


def test_an_unreadable_video_stops_a_run_without_a_frame_store_in_one_line(project, capsys):
    (project.folder / "videos").mkdir()
    for path in (project.root / "videos").glob("*.mp4"):
        (project.folder / "videos" / path.name).write_bytes(path.read_bytes())
    (project.folder / "videos" / "clip3.mp4").write_text("<html>not found</html>")
    recipe = write(project, "run", frames={"store": "none"}, data={"videos": str(project.folder / "videos")})
    assert run(distill.main, recipe, "data.max_missing=0.5") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
    assert len(lines) == 1 and lines[0].startswith("error: video 'clip3.mp4': ")
    assert "clip3.mp4: " in lines[0] and "fix the file" in lines[0] and "frames.store=disk" in lines[0]
