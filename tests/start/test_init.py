"""`teachclip init` on folders without captions: what it says, what it writes, and that what it writes trains."""

import shutil
from pathlib import Path

import pytest
from video_files import write_video

from teachclip.cli import distill
from teachclip.cli import init as init_command
from teachclip.errors import CheckpointError, DataError
from teachclip.pipeline.build import build_catalog
from teachclip.recipe.loading import load_recipe
from teachclip.start import init as init_module
from teachclip.start import look, probe
from teachclip.start.look import Films, Machine, has_captions, look_at_films
from teachclip.start.rules import RULES, STUDENT, TEACHER, captioned_models, choose

RESULTS = Path(__file__).parents[2] / "recipes" / "RESULTS.md"


def run(*arguments):
    return init_command.main([str(argument) for argument in arguments])


@pytest.fixture
def films(project, tmp_path):
    """Six videos in sub-folders, without captions."""
    home = tmp_path / "films"
    for number in range(6):
        place = home / ("sea" if number % 2 else "beach_holiday") / f"IMG_{number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project.root / "videos" / f"clip{number}.mp4", place)
    return home


@pytest.fixture
def offline(monkeypatch):
    """No model in the cache, and no hub; and a probe that takes the fewest steps."""
    monkeypatch.setattr(probe, "STEPS", (1, 1))
    monkeypatch.setattr(look, "cached_models", dict)
    monkeypatch.setattr(look, "why_unreachable", lambda: "no network")


def machine(models=None, offline=""):
    return Machine("cpu", 2, 8 * 10**9, 10**11, models or {}, offline)


def many(count):
    return Films(Path("films"), {f"{number}.mp4": Path(f"{number}.mp4") for number in range(count)}, count, 1.0)


def test_a_folder_of_videos_becomes_a_recipe_that_trains(films, project, offline, capsys):
    # the tiny tokenizer of the project knows few words
    (films / "queries.txt").write_text("a red circle\na blue square\na circle\n", encoding="utf-8")
    assert run(films, "--backbone", project.root / "clip") == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "found:   6 videos, 7 s," in told and "texts:   3," in told and "6 videos are few" in told
    assert "better:" not in told
    assert "takes:   about" in told and "stores:  about" in told
    (command,) = [line for line in told.splitlines() if line.startswith("next:")]
    path = films / "recipe.yaml"
    assert command.split()[1:3] == ["teachclip", "distill"] and command.endswith("recipe.yaml")
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30
    recipe = load_recipe(path)
    assert recipe.teachers[0].options == {"pooling": "max"} and recipe.student.backbone == str(project.root / "clip")
    short = ["train.steps=2", "train.evaluate_every=2", "train.batch_size=2", "text.max_tokens=10"]
    short += ["losses.frame_sets.count=4", "losses.frame_sets.texts=4", "frames.workers=1"]
    assert distill.main([str(path), *short]) == 0, capsys.readouterr().err
    assert "Agreement, not correctness" in capsys.readouterr().out
    assert (films / "teachclip" / "run" / "student" / "config.json").exists()
    assert run(films) == 2 and "recipe.yaml exists" in capsys.readouterr().err


def test_texts_come_from_names_and_the_bank_where_none_are_given(films, project, offline, monkeypatch, capsys):
    monkeypatch.setattr(init_module, "bank", lambda: ["a red circle", "a blue square"])
    (films / "sea" / "a red circle.mp4").write_bytes((films / "sea" / "IMG_1.mp4").read_bytes())
    recipe = films.parent / "elsewhere" / "films.yaml"
    assert run(films, "--backbone", project.root / "clip", "--out", recipe) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "texts:   5, names of files and folders, tags, everyday words" in told
    assert "better:  before it, keep the texts that occur here: teachclip texts suggest" in told
    texts = films.parent / "elsewhere" / "teachclip" / "films" / "texts.txt"
    assert load_recipe(recipe).data.texts == texts
    assert texts.read_text(encoding="utf-8").split("\n") == [
        *("beach holiday", "sea", "red circle", "a red circle", "a blue square", "")
    ]
    assert not (films / "recipe.yaml").exists() and not (films / "teachclip").exists()


def test_what_is_out_of_reach_is_said_at_once_with_the_way_to_get_it(films, offline, capsys):
    assert run(films) == 2
    told = capsys.readouterr().err
    assert f"{STUDENT} and {TEACHER}: not here, and the hub cannot be reached (no network)" in told
    assert f"hf download {STUDENT} --local-dir clip-vit-base-patch32" in told
    assert f"teachclip init {films} --backbone clip-vit-base-patch32 --teacher clip-vit-large-patch14" in told
    assert not (films / "recipe.yaml").exists()


def test_a_mistyped_folder_is_called_one(films, capsys):
    assert run(films.parent / "flims") == 2
    assert capsys.readouterr().err.strip().endswith("flims: no such folder; did you mean films?")
    assert run(films.parent / "nowhere" / "films") == 2
    assert "no such folder, nor is there" in capsys.readouterr().err
    (films.parent / "empty").mkdir()
    assert run(films.parent / "empty") == 2
    assert "has no file with the extension .mp4" in capsys.readouterr().err


def test_captions_are_found_where_they_are_and_nowhere_else(films, tmp_path):
    (films / "README.txt").write_text("my films")
    (films / "texts.txt").write_text("a sea")
    assert not has_captions(look_at_films(films))
    (films / "sea" / "IMG_1.en.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    assert has_captions(look_at_films(films))
    (films / "sea" / "IMG_1.en.srt").unlink()
    (films / "list.csv").write_text("video,caption\nsea/IMG_1.mp4,a sea\n")
    assert has_captions(look_at_films(films))


def test_a_folder_with_captions_gets_the_recipe_it_got_before(tmp_path, offline, capsys):
    write_video(tmp_path / "a.mp4", frames=5)
    (tmp_path / "a.txt").write_text("one caption\n")
    assert run(tmp_path, "--teacher", "some/model") == 0
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.format == "text_files" and recipe.teachers[0].checkpoint == "some/model"
    told = capsys.readouterr().err
    assert f"fetch:  {STUDENT} and some/model: not here, and the hub cannot be reached (no network)" in told
    assert "hf download some/model --local-dir model" in told and "takes:" not in told


def test_with_captions_too_it_is_said_what_training_takes(project, tmp_path, offline, monkeypatch, capsys):
    shutil.copytree(project.root / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "captions.csv").write_bytes((project.root / "captions.csv").read_bytes())
    clip = project.root / "clip"
    assert run(tmp_path / "videos", "--backbone", clip, "--teacher", clip) == 0, capsys.readouterr().err
    told = capsys.readouterr().err
    assert "takes:   about" in told and "stores:  about" in told and "next:   teachclip prepare" in told
    assert "with what its conditions add; where training finds that they do not hold, it takes less" in told
    recipe = load_recipe(tmp_path / "videos" / "recipe.yaml")
    amounts = probe.Amounts.of_catalog(recipe, build_catalog(recipe))
    # 11 training videos of 2 captions; 1 is held out and seen after each of the 20 epochs, then it and the 3 of test,
    # and test once more by the zero-shot student
    assert (amounts.videos, amounts.texts, amounts.training) == (14, 28, (10, 20))
    assert (amounts.steps, amounts.looks) == (20 * 5, (20 + 1 + 3 + 3, 2 * (20 + 1 + 3 + 3)))
    assert run(tmp_path / "videos", "--backbone", clip, "--out", tmp_path / "alone.yaml") == 0
    assert "teacher: none; the student learns from captions alone" in capsys.readouterr().err
    assert load_recipe(tmp_path / "alone.yaml").teachers == []
    for path in (tmp_path / "videos").glob("*.mp4"):
        path.write_bytes(b"nothing")
    assert run(tmp_path / "videos", "--backbone", clip, "--out", tmp_path / "broken.yaml") == 0
    assert "takes:  unknown: " in capsys.readouterr().err


@pytest.mark.parametrize(("load", "said"), [(2.9, False), (6.2, True)])
def test_a_busy_machine_is_named_beside_the_estimate(load, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(init_module.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    init_module._tell_estimate(machine(), probe.Estimate({"train": 300.0}), tmp_path / "recipe.yaml")
    told = capsys.readouterr().err
    assert "takes:   about 5.0 min" in told
    assert ("other work keeps this machine busy (load 6 on 2 cores)" in told) == said


def test_the_models_for_captions_are_the_usual_ones_or_those_that_are_here():
    assert captioned_models(machine()) == (STUDENT, TEACHER, (STUDENT, TEACHER))
    cached = {"small/clip": 10, "large/clip": 30}
    assert captioned_models(machine(cached)) == (STUDENT, TEACHER, (STUDENT, TEACHER))
    assert captioned_models(machine(cached, "no network")) == ("small/clip", "large/clip", ())
    assert captioned_models(machine({"small/clip": 10}, "no network")) == ("small/clip", "none", ())
    assert captioned_models(machine({}, "no network")) == (STUDENT, TEACHER, (STUDENT, TEACHER))
    assert captioned_models(machine({}, "no network"), teacher="none") == (STUDENT, "none", (STUDENT,))


def test_videos_without_captions_beside_captioned_ones_teach_too(project, tmp_path, capsys):
    for number in range(7):
        shutil.copy(project.root / "videos" / f"clip{number}.mp4", tmp_path / f"clip{number}.mp4")
        if number < 4:
            (tmp_path / f"clip{number}.txt").write_text(f"a red circle {number}\n")
    clip = str(project.root / "clip")
    assert run(tmp_path, "--backbone", clip, "--teacher", clip) == 0
    assert "found:  3 more videos without captions; the teacher says" in capsys.readouterr().err
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.uncaptioned == tmp_path and recipe.losses.frame_text.targets == "video"
    assert recipe.losses.contrastive.weight == 3 and "losses.contrastive.weight=0.5" in recipe.if_better_teacher
    assert len((tmp_path / "recipe.yaml").read_text(encoding="utf-8").splitlines()) < 30
    small = ["train.epochs=null", "train.steps=1", "train.workers=0", "frames.count=4", "student.temporal_layers=0"]
    assert distill.main([str(tmp_path / "recipe.yaml"), *small, "text.max_tokens=8"]) == 0
    assert "train 6 videos" in capsys.readouterr().err
    assert run(tmp_path, "--backbone", clip, "--teacher", "none", "--out", str(tmp_path / "other.yaml")) == 0
    assert "without a teacher they are not used" in capsys.readouterr().err
    assert load_recipe(tmp_path / "other.yaml").data.uncaptioned is None


@pytest.mark.parametrize(("minutes", "said"), [(4.9, ""), (20, "the films last 20 min on average"), (95, "1.6 h")])
def test_long_films_are_said_to_be_shown_by_few_frames(minutes, said):
    films = Films(Path(), dict.fromkeys(("a.mp4", "b.mp4"), Path()), 1, 2 * minutes / 60)
    warning = init_module.long_films(films)
    assert said in warning and bool(said) == bool(warning)


def test_the_smallest_model_here_learns_from_the_largest():
    models = {"small/clip": 10, "middle/clip": 20, "large/clip": 30}
    choice = choose(many(100), machine(models, "no network"))
    assert (choice.backbone, choice.teacher, choice.pooling) == ("small/clip", "large/clip", "mean")
    assert "teacher" in choice.rules and choice.fetched == ()
    alone = choose(many(100), machine({"small/clip": 10}, "no network"))
    assert (alone.backbone, alone.teacher, alone.pooling) == ("small/clip", "small/clip", "max")
    assert "late" in alone.rules
    fetched = choose(many(100), machine())
    assert (fetched.backbone, fetched.teacher) == fetched.fetched == (STUDENT, TEACHER)
    assert choose(many(9), machine({STUDENT: 5}, "no network")).teacher == STUDENT
    with pytest.raises(CheckpointError, match="hf download other/model"):
        choose(many(9), machine({"small/clip": 10}, "no network"), teacher="other/model")


@pytest.mark.parametrize(("videos", "held_out", "batch"), [(4, 2, 2), (20, 4, 16), (60, 6, 54), (1000, 100, 64)])
def test_held_out_videos_and_batches_follow_the_number_of_videos(videos, held_out, batch):
    choice = choose(many(videos), machine({"a/b": 1}))
    assert (choice.held_out, choice.batch_size) == (held_out, batch)
    with pytest.raises(DataError, match="has 3 videos; 4 are the fewest"):
        choose(many(3), machine())


def test_every_rule_rests_on_a_line_of_the_results():
    text = " ".join(RESULTS.read_text(encoding="utf-8").split())
    for name, rule in RULES.items():
        assert rule.line in text, name
        assert f"## {rule.table}" in text or f"**{rule.table}**" in text, name
    assert set(choose(many(9), machine({"a/b": 1})).rules) <= set(RULES)
    used = set(choose(many(9), machine({"a/b": 1})).rules) | set(choose(many(9), machine()).rules)
    assert used == set(RULES), "no rule without a use"


def test_a_sample_spans_the_sizes(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.mp4").write_bytes(b"x" * (10 - number))
    found = look_at_films(tmp_path)
    assert found.sample(3) == ["8.mp4", "4.mp4", "1.mp4"] and len(found.sample(20)) == 10
    assert found.size == 55
