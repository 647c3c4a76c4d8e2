"""Teaching without captions: independent lists of texts and videos, from the recipe to the exported student."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from processes import launch
from runs import assert_same_losses, logged_losses

from teachclip import distill, evaluate, load_student, precompute
from teachclip.cli import distill as distill_command
from teachclip.cli import evaluate as evaluate_command
from teachclip.cli import train_teacher
from teachclip.pipeline import taught
from teachclip.pipeline.build import build_catalog
from teachclip.recipe.loading import load_recipe
from teachclip.store.array_store import ArrayStore

TEXTS = ("a red circle", "a blue square", "a red square", "a blue circle", "a circle", "red")


def stored(root, name):
    """Return the arrays of the only store below `root/name`, by name."""
    (manifest,) = (root / name).glob("**/manifest.json")
    store = ArrayStore.open(manifest.parent)
    return {array: store.read(array, slice(None)) for array in store.arrays}


@pytest.fixture
def uncaptioned(project):
    """Return a recipe of the made project's videos with a file of texts in place of captions."""

    def write(data=None, **changes):
        texts = project.folder / "texts.txt"
        texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        path = project(
            teachers=[{"name": "dual_encoder", "checkpoint": str(project.root / "clip")}],
            student={"temporal_layers": 0, "adapters": ["frame", "pooled", "text"]},
            losses={
                "frame_text": {"targets": "video", "surest": 2},
                "frame_sets": {"weight": 1.0, "count": 4, "texts": 4},
            },
        )
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe["data"] = {"videos": str(project.root / "videos"), "texts": str(texts), "validation": {"videos": 3}}
        recipe["data"] |= data or {}
        for section, values in changes.items():
            recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return write


def test_videos_and_texts_alone_teach_a_student(uncaptioned, project, capsys):
    recipe = uncaptioned()
    precompute(recipe)
    results = distill(recipe)
    told = capsys.readouterr()
    assert "train 11 videos, no captions, 6 texts without a video" in told.err
    found = results["validation"]
    assert found["agreement_with"] == ["dual_encoder"] and (found["videos"], found["captions"]) == (3, 6)
    assert "test" not in results and "v2t" not in found
    assert "Agreement, not correctness: validation has no captions" in told.out
    student = load_student(project.folder / "run" / "student")
    assert "Agreement, not correctness" in (project.folder / "run" / "student" / "README.md").read_text()

    # what was measured is what anyone finds with the exported student and the teacher
    again = evaluate(recipe, split="validation")["validation"]
    assert again["t2v"] == pytest.approx(found["t2v"]) and again["rank_correlation"] == pytest.approx(
        found["rank_correlation"], abs=1e-3
    )
    catalog = build_catalog(load_recipe(recipe))
    paths = [video.path for video in catalog.validation.videos]
    scores = student.encode_text(list(TEXTS)) @ student.encode_video(paths).T
    teacher = stored(project.folder / "stores", "relevance-dual_encoder-validation")["video_text"]
    columns = {tuple(np.round(column.astype(float), 2)) for column in teacher.T}
    assert len(columns) == 3, "the teacher tells the three videos apart"
    zero_shot = results["zero_shot"]["validation"]
    assert zero_shot["t2v"]["recall_at_1"] == 100.0 and zero_shot["rank_correlation"] == pytest.approx(1.0)
    assert scores.shape == (6, 3)


def test_every_text_is_scored_with_every_video_and_the_surest_have_frames(uncaptioned, project):
    recipe = uncaptioned()
    precompute(recipe, verify=True)
    relevance = stored(project.folder / "stores", "relevance-dual_encoder")
    assert list(relevance) == ["video_text"] and relevance["video_text"].shape == (6, 11)
    frames = stored(project.folder / "stores", "frames-dual_encoder")["frame_text"]
    assert len(frames) == 22, "two texts for each of eleven videos"
    assert frames.sum(axis=1) == pytest.approx(np.ones(22), abs=1e-5)


def test_a_page_shows_videos_spread_over_all_with_the_texts_they_are_taught(uncaptioned, project, monkeypatch):
    monkeypatch.setattr(taught, "SHOWN", 4)
    distill(uncaptioned())
    run = project.folder / "run"
    page = (run / "taught.html").read_text(encoding="utf-8")
    catalog = build_catalog(load_recipe(run / "recipe.yaml"))
    ids = [video.id for video in catalog.train.videos]
    captions = re.findall(r"<figcaption><b>(.+?)</b>: (.+?)</figcaption>", page)
    assert [name for name, _ in captions] == [ids[at * 11 // 4] for at in range(4)]
    for _, texts in captions:
        shown = [re.fullmatch(r"(.+) \((\d+) %\)", text) for text in texts.split("; ")]
        assert len(shown) == 2 and all(match and match[1] in TEXTS for match in shown)  # the two surest of a video
        assert int(shown[0][2]) >= int(shown[1][2])
    assert page.count("data:image/jpeg;base64,") == 4
    assert "taught.html beside this page" in (run / "report.html").read_text(encoding="utf-8")


def test_captioned_pairs_join_in(uncaptioned, project, capsys, caplog):
    folder = project.folder / "films"
    folder.mkdir()
    for number in (0, 1, 11):  # clip0, clip1 are captioned for training; clip11 is tested on
        (folder / f"film{number}.mp4").write_bytes((project.root / "videos" / f"clip{number}.mp4").read_bytes())
    captions = {"format": "csv", "annotations": str(project.root / "captions.csv"), "uncaptioned": str(folder)}
    recipe = uncaptioned(data=captions)
    catalog = build_catalog(load_recipe(recipe))
    assert catalog.train.describe() == "11 videos, 16 captions, 2 texts without a video"
    results = distill(recipe)
    copies = "excluded 2 videos without captions: they are in validation or test"  # of clip0 and clip11
    assert copies in caplog.messages
    told = capsys.readouterr().err
    assert "train 9 videos, 16 captions, 2 texts without a video" in told
    assert "agreement_with" not in results["validation"] and results["test"]["videos"] == 3
    assert not results["overlaps"]
    log = [json.loads(line) for line in (project.folder / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line["contrastive"] > 0 for line in log if "loss" in line)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teachers": [], "losses": {"frame_text": {}}}, "teachers: it needs one"),
        ({"losses": {"frame_text": {"targets": "pair"}}}, "losses.frame_text.targets is pair, which needs captions"),
        ({"teaching": {"weighting": "confidence"}}, "teaching.weighting is confidence, which needs captions"),
        ({"data": {"texts": "nowhere.txt"}}, "nowhere.txt"),
        ({"data": {"texts": None}}, "give format and annotations (captions), texts"),
        ({"data": {"format": "csv"}}, "format needs annotations"),
        ({"train": {"batch_size": 12}}, "batch size is 12"),
    ],
)
def test_what_needs_captions_is_refused_in_one_line(uncaptioned, changes, told, capsys):
    recipe = uncaptioned(**changes)
    assert distill_command.main([str(recipe)]) == 2
    message = capsys.readouterr().err
    assert told in message and "Traceback" not in message


def test_a_dry_run_needs_no_captions(uncaptioned, capsys):
    assert distill_command.main([str(uncaptioned()), "--dry-run"]) == 0
    assert "11 videos, no captions, 6 texts without a video" in capsys.readouterr().err


def test_a_step_is_taken_without_any_pair(uncaptioned, project):
    recipe = uncaptioned()
    distill(recipe)
    log = [json.loads(line) for line in (project.folder / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 4 and all(line["contrastive"] == 0 for line in steps)
    assert all(line["video_text"] > 0 and line["frame_text"] > 0 and line["frame_sets"] > 0 for line in steps)
    assert torch.isfinite(torch.tensor([line["loss"] for line in steps])).all()


def test_what_is_made_for_captions_says_so(uncaptioned, project, capsys):
    training = {"train": {"steps": 1, "batch_size": 2}}
    recipe = uncaptioned(
        teachers=[{"name": "xpool", "checkpoint": str(project.folder / "new.pth"), "training": training}]
    )
    assert train_teacher.main([str(recipe)]) == 2
    assert "the train split has videos without captions" in capsys.readouterr().err
    recipe = uncaptioned()
    assert evaluate_command.main([str(recipe), "--model", "zero_shot"]) == 2
    assert "the data has no test split; it has: train, validation" in capsys.readouterr().err


def test_two_processes_teach_as_one_does(uncaptioned, project):
    for count in (1, 2):
        folder = project.folder / str(count)
        recipe = uncaptioned(output=str(folder / "run"), stores=str(folder / "stores"))
        done = launch(count, "distill", recipe)
        assert done.returncode == 0, done.stderr
    terms = ["loss", "video_text", "frame_text", "frame_sets"]
    one, two = (logged_losses(project.folder / name / "run", terms) for name in "12")
    assert_same_losses(one, two, steps=4)
    one, two = (json.loads((project.folder / name / "run" / "results.json").read_text()) for name in "12")
    assert one["validation"]["rank_correlation"] == pytest.approx(two["validation"]["rank_correlation"], abs=1e-3)
