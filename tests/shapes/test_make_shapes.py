"""Making a Shapes dataset: skip what is there, continue, refuse."""

import json
import shutil

import pytest

from teachclip.cli.make_data import main
from teachclip.errors import DataError
from teachclip.shapes.dataset import make_shapes
from teachclip.shapes.presets import PRESETS, Preset
from teachclip.shapes.pretraining import PretrainingSettings

TINY = PretrainingSettings(frames=16, steps=2, batch_size=8, width=64, vision_layers=1, text_layers=1)
SMALL = {"train_videos": 4, "test_videos": 2, "clip": TINY, "progress": False}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "dataset"
    assert make_shapes(folder, **SMALL)
    return folder


def test_a_dataset_holds_the_files_that_recipes_need_and_a_manifest(dataset):
    for name in ("videos/video5.mp4", "annotations.json", "train.csv", "test.csv", "truth.json", "clip/config.json"):
        assert (dataset / name).exists(), name
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["settings"]["dataset"] == {"train_videos": 4, "test_videos": 2, "seed": 0}
    assert len(manifest["fingerprint"]) == 64
    assert set(manifest["results"]["clip"]) == {"accuracy", "frame_recall_at_1"}
    assert not list(dataset.rglob("*part*"))


def test_a_second_call_makes_nothing(dataset):
    before = content(dataset)
    assert not make_shapes(dataset, **SMALL)
    assert content(dataset) == before


def test_a_second_command_reports_that_the_dataset_is_complete(dataset, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.shapes.pretraining.PretrainingSettings", lambda seed: TINY)
    assert main(["shapes", "--out", str(dataset), "--train-videos", "4", "--test-videos", "2"]) == 0
    assert "already complete" in capsys.readouterr().err


def test_missing_files_are_made_again(dataset, tmp_path):
    folder = tmp_path / "w"
    make_shapes(folder, **SMALL)
    (folder / "videos" / "video1.mp4").unlink()
    (folder / "clip" / "model.safetensors").unlink()
    assert make_shapes(folder, **SMALL)
    assert content(folder) == content(dataset)


def test_an_interrupted_run_continues(dataset, tmp_path, monkeypatch):
    folder = tmp_path / "w"
    with monkeypatch.context() as patch:
        patch.setattr("teachclip.pretraining.clip.train", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_shapes(folder, **SMALL)
    assert not (folder / "manifest.json").exists() and not (folder / "clip").exists()
    made = {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    assert len(made) == 6
    with pytest.raises(DataError, match=r"dataset\.seed = 0 there, 1 now"):
        make_shapes(folder, **SMALL, seed=1)
    assert make_shapes(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()} == made
    assert content(folder) == content(dataset)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 3}, "dataset.seed = 0 there, 3 now"),
        ({"train_videos": 5}, "dataset.train_videos = 4 there, 5 now"),
        ({"clip": PretrainingSettings(**{**TINY.__dict__, "seed": 2})}, "clip.seed = 0 there, 2 now"),
    ],
)
def test_another_dataset_in_the_folder_is_refused_and_the_difference_named(dataset, change, named):
    before = content(dataset)
    with pytest.raises(DataError, match=named):
        make_shapes(dataset, **{**SMALL, **change})
    assert content(dataset) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis\.txt and no Shapes dataset"):
        make_shapes(tmp_path, **SMALL)
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_of_an_older_format_is_refused_in_one_line(dataset, tmp_path, capsys):
    folder = tmp_path / "w"
    shutil.copytree(dataset, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["world"] = manifest["settings"].pop("dataset")
    manifest["settings"]["version"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = content(folder)
    assert main(["shapes", "--out", str(folder), "--train-videos", "4", "--test-videos", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "has the format 1 of an older teachclip, expected 2; delete the folder" in lines[0]
    assert content(folder) == before


def test_a_damaged_manifest_is_named(dataset, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        make_shapes(tmp_path, **SMALL)


def test_datasets_of_other_seeds_can_share_one_clip(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.shapes.pretraining.pretrain_clip", lambda *args, **options: 1 / 0)
    options = {**SMALL, "seed": 1, "clip": None, "clip_from": dataset}
    assert make_shapes(tmp_path / "w", **options)
    assert content(tmp_path / "w" / "clip") == content(dataset / "clip")
    assert not make_shapes(tmp_path / "w", **options)


def test_a_clip_cannot_come_from_a_folder_without_one(tmp_path):
    with pytest.raises(DataError, match="holds no tiny CLIP to copy"):
        make_shapes(tmp_path / "w", **{**SMALL, "clip_from": tmp_path / "nowhere"})
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "error: workers is 0; allowed: 1 or more\n"),
        (["--train-videos", "0"], "error: train_videos is 0; allowed: 1 or more\n"),
        (["--seed", "-1"], "error: seed is -1; allowed: 0 or more\n"),
        (["--preset", "nosy"], f"error: unknown preset 'nosy'; known: {', '.join(PRESETS)}; did you mean noisy?\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert main(["shapes", "--out", str(tmp_path / "w"), *arguments]) == 2
    assert capsys.readouterr().err == message
    assert not (tmp_path / "w").exists()


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "w").write_text("")
    assert main(["shapes", "--out", str(tmp_path / "w")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["shapes", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--out", "--train-videos", "--test-videos", "--seed", "--clip-seed", "--clip-from", "--workers"):
        assert option in text
    assert "--preset" in text and "None" not in text
    for name, preset in PRESETS.items():
        assert any(line.split(maxsplit=1) == [name, preset.summary] for line in text.splitlines()), name


def test_the_default_preset_is_not_recorded_and_another_is_refused(dataset, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(dataset, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["settings"]["dataset"]) == {"train_videos", "test_videos", "seed"}
    assert not make_shapes(folder, **SMALL, preset="default")
    with pytest.raises(
        DataError, match=r'\(dataset\.preset absent there, "plain" now; .*\.preset_numbers .*"border":false'
    ):
        make_shapes(folder, **SMALL, preset="plain")
    assert content(folder) == content(dataset)


def test_the_preset_gives_the_numbers_of_videos_that_the_user_does_not_set(dataset, tmp_path, monkeypatch):
    few = {**PRESETS, "few": Preset("few videos", train_videos=3, test_videos=2)}
    monkeypatch.setattr("teachclip.shapes.presets.PRESETS", few)
    options = {"clip_from": dataset, "preset": "few", "progress": False}
    make_shapes(tmp_path / "a", **options)
    make_shapes(tmp_path / "b", **options, train_videos=2)
    assert [len(list((tmp_path / name / "videos").iterdir())) for name in "ab"] == [5, 4]
    assert not make_shapes(tmp_path / "a", **options)


def test_the_command_prints_the_overrides_that_recipes_for_a_preset_need(dataset, tmp_path, capsys):
    arguments = ["--train-videos", "2", "--test-videos", "1", "--clip-from", str(dataset)]
    assert main(["shapes", "--out", str(tmp_path / "w"), "--preset", "long", *arguments]) == 0
    assert "need: frames.count=24" in capsys.readouterr().err
    settings = json.loads((tmp_path / "w" / "manifest.json").read_text())["settings"]
    assert settings["dataset"]["preset"] == "long"
    assert settings["dataset"]["preset_numbers"] == {"frames": 72, "events": [2, 4]}
