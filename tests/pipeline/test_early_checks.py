"""What can be known of a recipe from its annotations is refused before a video is decoded."""

from __future__ import annotations

import pytest

from teachclip.cli import distill
from teachclip.errors import LaunchError
from teachclip.pipeline.build import build_catalog, check_student_training, check_training
from teachclip.processes import Processes
from teachclip.recipe.loading import load_recipe

JOINED = {"losses": {"joined_clips": {"weight": 0.5, "count": 4}}, "teachers": []}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.encoders=finetuned", "train.steps=null", "train.epochs=1", "train.frozen_steps=50"],
            "train.frozen_steps is 50; allowed: fewer than the 4 steps",
        ),
        (["losses.joined_clips.count=500"], "losses.joined_clips.count is 500, but there are"),
        (["train.encoders=finetuned", "train.chunk_size=3"], "train.chunk_size is 3, but the joined clips of a step"),
    ],
)
def test_before_decoding(project, overrides, message, capsys):
    project.fill = False
    assert distill.main([str(project(**JOINED)), *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (project.folder / "stores").exists()


@pytest.mark.parametrize("overrides", [["train.encoders=finetuned", "train.chunk_size=4"], ["train.chunk_size=3"]])
def test_joined_clips_within_the_chunk_or_of_frozen_encoders_are_taken(project, overrides):
    recipe = load_recipe(project(**JOINED), overrides)
    check_student_training(recipe, build_catalog(recipe), Processes())


def test_joined_clips_that_cannot_be_shared_out_are_called_so(project):
    recipe = load_recipe(project(**JOINED), ["train.batch_size=6"])
    with pytest.raises(LaunchError, match=r"losses\.joined_clips\.count is 4, not a multiple of 3 processes"):
        check_student_training(recipe, build_catalog(recipe), Processes(0, 3))


def test_a_teacher_trains_whatever_its_student_joins(project):
    recipe = load_recipe(project(**JOINED), ["losses.joined_clips.count=500"])
    check_training(recipe, recipe.train, build_catalog(recipe), Processes())


def test_a_dry_run_sees_that_the_texts_of_joined_clips_are_too_long(project, capsys):
    assert distill.main([str(project(**JOINED)), "text.max_tokens=5", "--dry-run"]) == 2
    assert "losses.joined_clips: 0 pairs of captions fit into text.max_tokens=5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses.video_text.more_texts=500"], "losses.video_text.more_texts is 500, but there are"),
        (["teaching.source=online"], "losses.video_text.more_texts reads relevance beyond the batch; write"),
        (["teaching.weighting=confidence"], "losses.video_text.more_texts has no pairs to be sure of; write"),
    ],
)
def test_texts_beyond_the_batch_that_cannot_be_had_are_refused(project, overrides, message, capsys):
    project.fill = False
    recipe = project(losses={"video_text": {"more_texts": 4}})
    assert distill.main([str(recipe), *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (project.folder / "stores").exists()


def test_texts_beyond_the_batch_need_no_teaching_where_nobody_teaches(project):
    recipe = load_recipe(project(losses={"video_text": {"more_texts": 500}}, teachers=[]), ["train.batch_size=6"])
    check_student_training(recipe, build_catalog(recipe), Processes(0, 3))
