"""What a recipe changes under a condition holds where it does, and only there."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from processes import launch
from runs import assert_same_losses, logged_losses

from teachclip.cli import distill, export
from teachclip.data_check import init_recipe
from teachclip.errors import RecipeError
from teachclip.evaluation.per_query import PerQuery
from teachclip.models.clip import load_clip
from teachclip.models.late_interaction import LateInteraction
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import load_student
from teachclip.pipeline import conditions
from teachclip.pipeline.build import run_settings
from teachclip.pipeline.distill import distill as distill_recipe
from teachclip.pipeline.evaluate import evaluate
from teachclip.pipeline.model_card import model_card
from teachclip.recipe.conditions import CONDITIONS
from teachclip.recipe.loading import find_recipe, load_recipe, with_conditions
from teachclip.studies import jobs, plan
from teachclip.studies.study_file import find_study, load_study
from teachers.xpool import XPool

SETS = {"weight": 0.0, "count": 8, "texts": 8}
STUDENT = {"adapters": ["frame", "pooled", "text"]}
OPTIONS = ["train.encoders=frozen", "train.steps=2"]
CHANGES = [
    *("losses.frame_sets.weight=1", "student.attention=sigmoid", "losses.frame_text.kind=binary_cross_entropy"),
    "losses.contrastive.teaches_adapters=false",
]
RECIPE = {"losses": {"frame_sets": SETS}, "student": STUDENT, "if_late_interaction": CHANGES}


def let_find(monkeypatch, late, mean, teacher=0, videos=60):
    """Have the scorers find some of every four queries, and the few videos of the project tell."""

    def ranks(work, scorer, inputs, split):
        found = late if isinstance(scorer, LateInteraction) else teacher if isinstance(scorer, XPool) else mean
        names = [f"v{row}" for row in range(videos)]
        rank = [1 if row % 4 < found else 50 for row in range(videos)]
        return PerQuery(["t2v"] * videos + ["v2t"] * videos, *([names * 2] * 3), rank * 2, [0.0] * 2 * videos)

    monkeypatch.setattr(conditions, "_ranks", ranks)
    monkeypatch.setattr(conditions, "FEW_VIDEOS", 0)


@pytest.mark.parametrize(("late", "mean", "better"), [(3, 1, True), (1, 3, False), (2, 2, False), (4, 3, False)])
def test_the_better_of_late_interaction_and_mean_pooling_decides(project, capsys, monkeypatch, late, mean, better):
    let_find(monkeypatch, late, mean)
    recipe, run = project(**RECIPE), project.folder / "run"
    assert distill.main([str(recipe), *OPTIONS]) == 0
    assert (
        f"if_late_interaction {'holds' if better else 'does not hold'}: R@10 on train is {25 * late}.0 "
        f"by late interaction, {25 * mean}.0 by mean pooling; difference {25 * (late - mean):+}.0 ["
    ) in capsys.readouterr().err
    results = json.loads((run / "results.json").read_text())
    assert results["conditions"]["if_late_interaction"]["holds"] is better
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("frame_sets" in line for line in logged) == better
    kept = load_recipe(run / "recipe.yaml")
    assert kept.if_late_interaction == []
    assert kept.student.attention == load_student(run / "student").config.attention == ("softmax", "sigmoid")[better]
    assert ("frame-set distillation" in model_card(results, kept)) == better
    out = project.folder / "exported"
    assert export.main([str(recipe), *OPTIONS, "--out", str(out)]) == 0
    assert ("sigmoid frame attention" in (out / "README.md").read_text()) == better


@pytest.mark.parametrize(("teacher", "late"), [(0, 0), (3, 0), (0, 3), (3, 3), (1, 1), (2, 1)])
def test_a_better_teacher_and_late_interaction_each_change_their_own(project, capsys, monkeypatch, teacher, late):
    let_find(monkeypatch, late, 1, teacher)
    both = {"if_better_teacher": ["student.adapters=[text]", "losses.contrastive.weight=0.5"]}
    late_alone = {"if_late_interaction": ["student.adapters=[pooled]"]}
    recipe = project(**both, **late_alone)
    assert distill.main([str(recipe), *OPTIONS]) == 0
    told = capsys.readouterr().err
    assert ("if_better_teacher holds: R@10 on validation is 75.0 by xpool, 25.0" in told) == (teacher == 3)
    assert ("if_late_interaction holds" in told) == (late == 3)
    kept = load_recipe(project.folder / "run" / "recipe.yaml")
    assert kept.student.adapters == (["pooled"] if late == 3 else ["text"] if teacher > 1 else [])
    assert (kept.losses.contrastive.weight == 0.5) == (teacher > 1)
    assert not kept.if_better_teacher and not kept.if_late_interaction


@pytest.mark.parametrize(("more", "fewer", "holds"), [(0, 0, False), (4, 2, False), (4, 1, True), (12, 0, True)])
def test_a_teacher_is_better_by_more_than_a_standard_error(more, fewer, holds, capsys):
    """Of 60 videos: of 5 a lead of 3 is 1.4 standard errors and of 6 a lead of 2 is 0.8."""
    ranks = [[50] * 12 + [1] * 48, [1] * more + [50] * (12 - more + fewer) + [1] * (48 - fewer)]
    mean, teacher = (
        PerQuery(["t2v"] * 60 + ["v2t"] * 60, *([[f"v{row}" for row in range(60)] * 2] * 3), rank * 2, [0.0] * 120)
        for rank in ranks
    )
    measured = conditions._decide("if_better_teacher", mean, {"xpool": teacher}, "validation")
    assert measured["holds"] is holds
    told = capsys.readouterr().err
    difference = 100 * (more - fewer) / 60
    assert f"difference {difference:+.1f} [" in told
    error = 100 * (more + fewer - (more - fewer) ** 2 / 60) ** 0.5 / 60
    said = float(told.split("standard error, ")[1])
    assert said == pytest.approx(error, abs=0.6)


def test_a_teacher_is_measured_as_evaluate_measures_it(project, monkeypatch):
    monkeypatch.setattr(conditions, "FEW_VIDEOS", 0)
    monkeypatch.setattr(conditions, "METRIC", "recall_at_1")  # of three videos all are among the first ten
    recipe = str(project(if_better_teacher=["student.adapters=[text]"]))
    assert distill.main([recipe, *OPTIONS]) == 0
    measured = json.loads((project.folder / "run" / "conditions.json").read_text())["if_better_teacher"]
    for model, key in (("xpool", "measured"), ("zero_shot", "mean_pooling")):
        found = evaluate(recipe, OPTIONS, model=model, split="validation")["validation"]["t2v"]["recall_at_1"]
        assert measured[key] == pytest.approx(found)


class Average(MeanPooling):
    """A teacher of one's own that averages frames too, with its own encoders."""

    has_frame_relevance = False

    @classmethod
    def from_source(cls, checkpoint, **options):
        return cls(load_clip(checkpoint))


def test_a_teacher_that_averages_frames_is_measured_with_its_own_encoders(project, monkeypatch):
    monkeypatch.setattr(conditions, "FEW_VIDEOS", 0)
    read, ranks = [], conditions._ranks

    def watched(work, scorer, inputs, split):
        read.append((type(scorer).__name__, split.name, type(inputs).__name__))
        return ranks(work, scorer, inputs, split)

    monkeypatch.setattr(conditions, "_ranks", watched)
    both = {"if_better_teacher": ["student.adapters=[text]"], "if_late_interaction": ["student.adapters=[pooled]"]}
    own = {"name": f"{__name__}:Average", "label": "own", "checkpoint": str(project.root / "clip")}
    monkeypatch.setattr(conditions, "MOST", 0)  # both are measured on the selection split
    assert distill.main([str(project(**both, teachers=[own])), *OPTIONS]) == 0
    assert read == [  # mean pooling once
        ("MeanPooling", "validation", "FeatureInputs"),
        ("Average", "validation", "PixelInputs"),
        ("LateInteraction", "validation", "FeatureInputs"),
    ]


def test_a_better_teacher_needs_one_that_can_be_measured(project, capsys):
    recipe = project(if_better_teacher=["student.adapters=[text]"], teachers=[])
    assert distill.main([str(recipe), *OPTIONS]) == 2
    assert "if_better_teacher needs teachers" in capsys.readouterr().err
    scores = SimpleNamespace(reads_relevance=True, scores_shortlist=False)
    with pytest.raises(RecipeError, match="no teacher scores any text with any video"):
        conditions._scorers(SimpleNamespace(teachers={"scores": scores}), "if_better_teacher")


def test_what_does_not_hold_changes_nothing_and_several_processes_agree(project):
    recipe = project(**RECIPE)
    terms = ("loss", "contrastive", "video_text", "frame_text")
    for count in (1, 2):  # three videos tell nothing apart
        done = launch(count, "distill", recipe, *OPTIONS, f"output={project.folder / str(count)}")
        assert done.returncode == 0, done.stderr
        assert "if_late_interaction is taken not to hold: train has 8 videos, fewer than the 50 that" in done.stderr
    plain = project("plain.yaml", student=STUDENT)
    assert distill.main([str(plain), *OPTIONS, f"output={project.folder / 'plain'}"]) == 0
    one, two, without = (logged_losses(project.folder / name, terms) for name in ("1", "2", "plain"))
    assert np.array_equal(one, without)
    assert_same_losses(one, two, steps=2)


def test_several_processes_agree_where_it_holds(project):
    """The choice is kept first: three videos tell nothing apart."""
    for count in (1, 2):
        folder = project.folder / str(count)
        folder.mkdir()
        (folder / conditions.FILE).write_text('{"if_late_interaction": {"holds": true}}')
        done = launch(count, "distill", project(**RECIPE), *OPTIONS, f"output={folder}")
        assert done.returncode == 0, done.stderr
    terms = ("loss", "contrastive", "frame_text", "frame_sets")
    one, two = (logged_losses(project.folder / name, terms) for name in ("1", "2"))
    assert_same_losses(one, two, steps=2)


def test_what_holds_is_the_recipe_that_says_so_itself(project, monkeypatch):
    let_find(monkeypatch, 3, 1)
    terms = ("loss", "contrastive", "video_text", "frame_text", "frame_sets")
    assert distill.main([str(project(**RECIPE)), *OPTIONS]) == 0
    plain = project("plain.yaml", losses={"frame_sets": SETS}, student=STUDENT)
    assert distill.main([str(plain), *OPTIONS, *CHANGES, f"output={project.folder / 'plain'}"]) == 0
    one, other = (logged_losses(project.folder / name, terms) for name in ("run", "plain"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "train.steps=5",
            "if_late_interaction: 'train.steps=5'; allowed: key=value of student, losses and",
        ),
        ("data.format=csv", "allowed: key=value of student, losses and optimizer"),
        ("student.backbone=other", "but not what texts and frames are encoded with"),
        ("student.text_backbone=other", "but not what texts and frames are encoded with"),
        ("student.attentoin=sigmoid", "if_late_interaction: "),
        ("losses.frame_sets.frames=[1,99]", "if_late_interaction: "),
        ("student.attention=softmax", "losses.frame_text.kind=binary_cross_entropy does not fit"),
        ("losses.frame_sets.count", "if_late_interaction: "),
    ],
)
def test_both_recipes_are_checked_before_anything_is_read(project, capsys, change, message):
    recipe = project(**{**RECIPE, "if_late_interaction": [*CHANGES, change]})
    with pytest.raises(RecipeError):
        load_recipe(recipe)
    assert distill.main([str(recipe)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "override",
    ["losses.frame_sets.weight=0", "student.attention=softmax", "losses.frame_sets={weight: 0}", "teachers=[]"],
)
def test_an_override_is_not_undone_without_a_word(project, capsys, override):
    recipe = str(project(**RECIPE))
    assert distill.main([recipe, *OPTIONS, override]) == 2
    key = override.partition("=")[0]
    assert f"{key} is also a matter of if_late_interaction" in capsys.readouterr().err
    held = load_recipe(recipe, [override, "losses.contrastive.weight=1", "if_late_interaction=[]"])
    assert held.if_late_interaction == []


def test_teachers_that_would_teach_nothing_are_told(project, capsys, monkeypatch):
    let_find(monkeypatch, 3, 1)
    monkeypatch.setattr("teachclip.pipeline.distill.gives_frame_relevance", lambda teacher: False)
    recipe = project(**{**RECIPE, "if_late_interaction": [*CHANGES, "losses.video_text.weight=0"]})
    assert distill.main([str(recipe), *OPTIONS]) == 2
    assert "if_late_interaction leaves the teachers nothing to teach" in capsys.readouterr().err


def test_a_damaged_measurement_is_told(project, capsys):
    (project.folder / "run").mkdir()
    (project.folder / "run" / conditions.FILE).write_text("{")
    assert distill.main([str(project(**RECIPE)), *OPTIONS]) == 2
    assert "conditions.json is damaged" in capsys.readouterr().err


def test_a_folder_with_another_run_is_refused_before_anything_is_decoded(project, capsys, monkeypatch):
    plain = project("plain.yaml", student={"temporal_layers": 0})
    assert distill.main([str(plain), *OPTIONS]) == 0
    monkeypatch.setattr("teachclip.pipeline.distill.build_workspace", None)
    capsys.readouterr()
    assert distill.main([str(project(**RECIPE)), *OPTIONS]) == 2
    assert "temporal_layers" in capsys.readouterr().err


def test_a_soup_says_what_its_students_were_trained_with(project):
    recipe = load_recipe(project(**RECIPE))
    for better in (True, False):
        folder = project.folder / f"student-{better}"
        folder.mkdir()
        (folder / conditions.FILE).write_text(json.dumps({"if_late_interaction": {"holds": better}}))
        trained = conditions.as_trained(recipe, folder)
        assert trained.student.attention == ("softmax", "sigmoid")[better]
    assert conditions.as_trained(recipe) is recipe


def test_a_study_tells_apart_what_only_late_interaction_uses(project):
    recipes = [load_recipe(project(**RECIPE), [f"losses.frame_sets.repeats={repeats}"]) for repeats in (1, 3)]
    assert len({plan._trained_by(recipe) for recipe in recipes}) == 2


def test_the_default_recipe_is_the_same_wherever_it_stands():
    """In the recipe that `init` writes, in MSR-VTT's second recipe, and in the studies that measure it."""
    defaults = []
    found = [yaml.safe_load(init_recipe.CONDITIONS), yaml.safe_load(find_recipe("msrvtt_plus.yaml").read_text())]
    for name in ("own_data", "default_recipe", "default_weak", "default_xclip", "shapes_default", "order_default"):
        (default,) = (variant for variant in load_study(find_study(name)).variants if variant.name == "default")
        defaults.append(default)
        found.append(dict(text.split("=", 1) for text in default.fixed if text.startswith("if_")))
    values = [
        [yaml.safe_load(each[name]) if isinstance(each[name], str) else each[name] for name in CONDITIONS]
        for each in found
    ]
    assert all([set(one) for one in value] == [set(one) for one in values[0]] for value in values)
    init = yaml.safe_load(f"{{{init_recipe.LOSSES}}}")["contrastive"]["weight"]
    plus = yaml.safe_load(find_recipe("msrvtt_plus.yaml").read_text())["losses"]["contrastive"]["weight"]
    assert init == plus == 3
    assert all("losses.contrastive.weight=3" in default.fixed for default in defaults)


def test_a_dry_run_takes_a_step_each_way(project, capsys):
    assert distill.main([str(project(**RECIPE)), *OPTIONS, "--dry-run"]) == 0
    first, second = capsys.readouterr().err.split("with conditions that a run measures")
    assert "one step on" in first
    assert "frame_sets" not in first
    assert "one step on" in second
    assert "frame_sets" in second
    assert not (project.folder / "run").exists()


def test_a_run_that_goes_on_does_not_measure_again(project, capsys, monkeypatch):
    let_find(monkeypatch, 3, 1)
    recipe = str(project(**RECIPE))
    assert distill.main([recipe, *OPTIONS]) == 0
    let_find(monkeypatch, 1, 3)
    (project.folder / "run" / "results.json").unlink()
    capsys.readouterr()
    assert distill.main([recipe, *OPTIONS]) == 0
    assert "if_late_interaction holds" not in capsys.readouterr().err
    assert (
        json.loads((project.folder / "run" / "results.json").read_text())["conditions"]["if_late_interaction"][
            "holds"
        ]
        is True
    )


def test_other_changes_are_another_run(project, capsys, monkeypatch):
    let_find(monkeypatch, 3, 1)
    assert distill.main([str(project(**RECIPE)), *OPTIONS]) == 0
    other = project("other.yaml", **{**RECIPE, "if_late_interaction": [*CHANGES, "losses.video_text.weight=0.5"]})
    assert distill.main([str(other), *OPTIONS]) == 2
    assert "video_text" in capsys.readouterr().err


def test_runs_without_the_key_go_on_where_they_stopped(project):
    recipe = load_recipe(project(losses={"frame_sets": SETS}, student=STUDENT))
    assert "if_late_interaction" not in run_settings(recipe)
    assert "more_texts" not in run_settings(recipe)["losses"]["video_text"]
    assert "teaches_adapters" not in run_settings(recipe)["losses"]["contrastive"]
    both = load_recipe(project(**RECIPE))
    assert run_settings(both)["if_late_interaction"] == CHANGES  # a study tells variants apart by it
    assert run_settings(with_conditions(both, ["if_late_interaction"])) == run_settings(
        load_recipe(project(losses={"frame_sets": SETS}, student=STUDENT), CHANGES)
    )


def test_a_study_measures_the_student_as_it_was_trained(project, monkeypatch):
    let_find(monkeypatch, 3, 1)
    changes = [*CHANGES, "student.pooling_temperature=0.25"]
    recipe = load_recipe(project(**{**RECIPE, "if_late_interaction": changes}), OPTIONS)
    distilled = distill_recipe(recipe)
    temperatures = []
    monkeypatch.setattr(jobs, "set_pooling_temperature", lambda student, value: temperatures.append(value))
    measured = jobs.measure_student(recipe, "test", [1, 2], frame_probe=False)["factors"]
    assert temperatures == [0.25, 0.125]
    assert measured["1"]["t2v"] == distilled["test"]["t2v"]


def test_a_run_goes_on_whose_settings_name_a_batch_of_precompute(project, capsys):
    recipe = str(project())
    assert distill.main([recipe, *OPTIONS]) == 0
    path = project.folder / "run" / "settings.json"
    settings = json.loads(path.read_text())
    assert "batch_size" not in settings["teaching"]
    settings["teaching"]["batch_size"] = 32
    path.write_text(json.dumps(settings))
    assert distill.main([recipe, *OPTIONS]) == 0, capsys.readouterr().err
