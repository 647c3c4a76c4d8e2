"""`teachclip diagnose` on a tiny real run: students and teachers of several kinds, and what cannot be diagnosed."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_models import tiny_clip

from teachclip import evaluate, load_recipe
from teachclip.cli import diagnose, distill
from teachclip.diagnosis.diagnose import diagnose as diagnose_function
from teachclip.models.backbone import load_backbone
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.pipeline.build import build_processor


def run(main, *arguments):
    return main([str(argument) for argument in arguments])


def recipe_with(project, **sections):
    xpool = str(project.root / "teacher.pth")
    teachers = [
        {"name": "xpool", "checkpoint": xpool, "frame_temperature": 0.5},
        {"name": "other_teachers:VideoOnly", "label": "plain", "checkpoint": xpool},
    ]
    return project(teachers=teachers, **sections)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the output of the first test's run is kept for the others."""
    return tmp_path_factory.mktemp("finished")


def trained(project, finished):
    """Return a recipe whose run is finished; it is trained once."""
    recipe = recipe_with(project)
    if not (finished / "run").exists():
        assert run(distill.main, recipe) == 0
        for name in ("run", "stores"):
            shutil.copytree(project.folder / name, finished / name)
    for name in ("run", "stores"):
        shutil.copytree(finished / name, project.folder / name, dirs_exist_ok=True)
    return recipe


def read(folder):
    page = (folder / "diagnosis.html").read_text(encoding="utf-8")
    return json.loads((folder / "diagnosis.json").read_text(encoding="utf-8")), page


def adds_up(report):
    for name in ("recall_at_1", "recall_at_5", "recall_at_10"):
        first, last = (report["models"][model]["t2v"][name] for model in ("student", "teacher"))
        assert report["gap"][name] == pytest.approx(last - first)
        assert sum(part[name] for part in report["parts"]) == pytest.approx(last - first)


def test_a_finished_run_is_diagnosed(project, finished, capsys):
    recipe = trained(project, finished)
    assert run(diagnose.main, recipe) == 0
    printed = capsys.readouterr()
    assert "sum of the parts" in printed.out and "rank correlation of videos" in printed.out
    report, page = read(project.folder / "run" / "diagnosis")
    results = json.loads((project.folder / "run" / "results.json").read_text())
    for way in ("t2v", "v2t"):
        assert report["models"]["student"][way] == results["test"][way]
    adds_up(report)
    steps = ["student", "frame_selection", "encoder_frames", "one_vector", "teacher"]
    assert [step["name"] for step in report["ladder"]] == steps
    agreement = {entry["name"]: entry["value"] for entry in report["agreement"]}
    assert agreement.keys() == {"spearman", "top_overlap", "frame_overlap", "uniform_overlap"}
    assert 0 < agreement["frame_overlap"] <= 1 and agreement["top_overlap"] == 1  # three videos
    assert report["frames"] == {}  # not a Shapes dataset
    assert page.count("<img ") == 2 * 4 * len(report["worst"]) and report["worst"]
    for entry in report["worst"]:
        assert entry["student_rank"] > entry["teacher_rank"]
        assert entry["match"]["video"] != entry["top"]["video"]
        assert sum(entry["match"]["student"]) == pytest.approx(1) == sum(entry["match"]["teacher"])


def test_another_split_folder_and_a_teacher_without_frames(project, finished):
    recipe = trained(project, finished)
    out = project.folder / "elsewhere"
    assert run(diagnose.main, recipe, "--teacher", "plain", "--split", "validation", "--out", out, "--worst", 1) == 0
    report, page = read(out)
    adds_up(report)
    assert report["teacher"] == "plain" and report["split"] == "validation"
    assert [step["name"] for step in report["ladder"]] == ["student", "one_vector", "teacher"]
    assert "has no frame relevance" in page and 'class="bar T"' not in page
    assert {entry["name"] for entry in report["agreement"]} == {"spearman", "top_overlap"}
    assert len(report["worst"]) <= 1


def test_a_student_with_uniform_weights(project, finished):
    recipe = trained(project, finished)
    student = project.folder / "mean"
    clip = tiny_clip(text_layers=4, heads=1, seed=5)
    StudentModel.from_backbone(clip, temporal_layers=0, pooling="mean").save_pretrained(student)
    assert run(diagnose.main, recipe, "--student", student, "--out", project.folder / "out") == 0
    report, _ = read(project.folder / "out")
    adds_up(report)
    assert [step["name"] for step in report["ladder"]] == ["student", "frame_selection", "one_vector", "teacher"]
    agreement = {entry["name"]: entry["value"] for entry in report["agreement"]}
    assert agreement["frame_overlap"] == pytest.approx(agreement["uniform_overlap"])
    assert all(set(entry["match"]["student"]) == {0.25} for entry in report["worst"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds no student; distil the recipe first"),
        (["--student", "nowhere"], "nowhere: no such folder or checkpoint file"),
        (["--teacher", "plian"], "--teacher 'plian': allowed: xpool, plain; did you mean plain?"),
        (["--worst", "-1"], "--worst is -1; allowed: 0 or more"),
        (["teachers=[]"], "tiny: the recipe has no teachers"),
    ],
)
def test_what_cannot_be_diagnosed_is_reported_in_one_line(project, arguments, message, capsys):
    assert run(diagnose.main, recipe_with(project), *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_a_folder_that_cannot_be_made_is_reported_before_the_work(project, finished, capsys):
    recipe = trained(project, finished)
    (project.folder / "taken").write_text("")
    assert run(diagnose.main, recipe, "--out", project.folder / "taken") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"error: {project.folder / 'taken'}: cannot create the folder")
    )


def test_scores_of_training_pairs_and_absent_splits_are_refused(project, finished, capsys):
    recipe = project("scores.yaml", teachers=[{"name": "scores", "label": "file", "checkpoint": "scores.csv"}])
    assert run(diagnose.main, recipe) == 2
    assert "teacher 'file' reads scores of training pairs from a file" in capsys.readouterr().err
    trained(project, finished)
    recipe = recipe_with(project, data={"select_on": "test", "validation": None})
    assert run(diagnose.main, recipe, "--split", "validation") == 2
    assert "tiny: the data has no validation split; it has: train, test" in capsys.readouterr().err


@pytest.mark.parametrize("encoders", ["frozen", "finetuned"])
def test_a_student_with_adapters_and_sigmoid_attention_is_pooled_as_it_pools(project, encoders):
    student = {
        "temporal_layers": 1,
        "attention": "sigmoid",
        "attention_input": "before",
        "adapters": ["frame", "pooled", "text"],
    }
    losses = {"frame_text": {"kind": "binary_cross_entropy"}, "frame_sets": {"weight": 1.0, "count": 8, "texts": 4}}
    recipe = recipe_with(
        project, student={**student, "temperature_scaling": [3.0]}, losses=losses, train={"encoders": encoders}
    )
    assert run(distill.main, recipe) == 0
    assert run(diagnose.main, recipe) == 0
    report, _ = read(project.folder / "run" / "diagnosis")
    adds_up(report)
    results = json.loads((project.folder / "run" / "results.json").read_text())
    assert report["models"]["student"]["t2v"] == results["test"]["t2v"]


def test_a_student_reads_as_its_own_processor_says(project, tmp_path):
    student = StudentModel.from_backbone(load_backbone(project.root / "clip"), temporal_layers=0)
    how = build_processor(load_recipe(project()), student.backbone.config)
    first_word_alone = {**how.preprocessing.describe(), "max_tokens": 3}
    student.processor = StudentProcessor(how.tokenizer, how.frame_sampling, **first_word_alone)
    student.save_pretrained(tmp_path / "student")
    measured = evaluate(project(), model=str(tmp_path / "student"))["test"]
    report = diagnose_function(recipe_with(project), student=tmp_path / "student", teacher="xpool", worst=0)
    for way in ("t2v", "v2t"):
        assert report["models"]["student"][way] == measured[way]
