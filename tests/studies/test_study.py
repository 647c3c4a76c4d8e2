import json
import os
import shutil
import statistics
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import teachclip
from teachclip.cli.study import main
from teachclip.data.annotations.records import Split
from teachclip.errors import RecipeError
from teachclip.evaluation.intervals import t_quantile
from teachclip.pipeline.build import build_catalog
from teachclip.pipeline.distill import distill
from teachclip.recipe.loading import load_recipe
from teachclip.studies import run
from teachclip.studies.checks import check_different, check_plan
from teachclip.studies.jobs import Train, measure_student
from teachclip.studies.plan import build_plan, small_plan
from teachclip.studies.report import build_study_report, study_markdown
from teachclip.studies.results import GALLERY
from teachclip.studies.study_file import find_study, load_study
from teachclip.studies.without_test import without_test

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "recipes" / "shapes_xpool.yaml"
UNDISTILLED = {"name": "undistilled", "set": ["teachers=[]", "losses.contrastive.weight=1"]}
FILE = {
    "title": "A title",
    "recipe": str(SHAPES),
    "dev_seeds": [1, 2],
    "test_seeds": [5, 6, 7],
    "grid": {"optimizer.attention_lr": [1e-3, 3e-3], "train.steps": [4, 6]},
    "variants": [UNDISTILLED, {"name": "published", "label": "as published"}],
}


@pytest.fixture
def study_file(tmp_path):
    """Write a study file; `changes` replace its sections. Returns its path."""

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**FILE, **changes}, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def on_shapes(tmp_path, study_file):
    """A plan on Shapes datasets; `changes` as in `study_file`."""
    clip = tmp_path / "shapes" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"weights")

    def plan(**changes):
        path = study_file(**{"shapes": {"train_videos": 40, "test_videos": 20}, **changes})
        return build_plan(tmp_path / "out", None, load_study(path), tmp_path / "shapes")

    return plan


def all_tables(report):
    """The tables of every way of choosing, then those that they share."""
    return [*(table for section in report["results"] for table in section["tables"]), *report["tables"]]


class InThisProcess:
    """Runs what is submitted at once: starting processes takes longer than the trials here."""

    def __init__(self, *options):
        pass

    def submit(self, run, *given):
        future = Future()
        future.set_result(run(*given))
        return future

    def shutdown(self, **options):
        pass


def lines(path):
    with pytest.raises(RecipeError) as caught:
        load_study(path)
    return str(caught.value).splitlines()


def content(**more):
    return {"train": "a", "selection": "b", "test": "c", "teacher xpool": "d", **more}


def metrics(value):
    recalls = {"recall_at_1": value, "recall_at_5": value + 10, "recall_at_10": value + 20}
    return {"t2v": recalls, "v2t": recalls, "sum_of_recalls": 6 * value + 60, "videos": 20, "captions": 20}


COST = {"bytes_per_video": 512.0, "flops_per_query": 256e3, "ms_per_query": 0.5, "candidates": 1000}


def made_up(plan):
    """Made-up results: the second setting is the best of every variant, and `published` gains 4, 6 and 8."""
    prepared = {}
    for job in plan.preparing():
        measured = {**metrics(10.0 + job.seed), "cost": COST}
        prepared[job.name] = {
            **{"content": {"": content()}, "splits": {"train": [400, 3200], "test": [300, 1500]}},
            **{"zero_shot": measured, "teachers": {"xpool": measured}},
        }
    tuned, tests = {}, {}
    for job in plan.tuning(prepared):
        second = any(" ".join(variant.grid[1]) in " ".join(job.settings) for variant in plan.study.variants)
        tuned[job.name] = {"step": 1, "validation": metrics(20.0 + 3 * second + job.seed)}
    candidates = plan.candidates(tuned, prepared)
    for job in plan.testing(plan.choices(candidates), prepared):
        place = plan.study.test_seeds.index(job.seed)
        value = 30.0 + 5 * place + (4 + 2 * place) * (job.variant == "published")
        tests[job.name] = {
            **{"step": 1, "seconds": 10.0 + place, "parameters": 1234, "validation": metrics(1.0)},
            "test": {**metrics(value), "cost": COST},
            **({"temperature_scaling": {"factor": 4.0, "tried": {}}} if job.variant == "published" else {}),
        }
    return prepared, candidates, tests


def test_all_problems_of_a_file_are_reported_at_once_with_the_nearest_name(study_file):
    found = lines(
        study_file(titel="x", shapes={"presets": "plain"}, test_seeds=0, variants=[UNDISTILLED, {"nmae": "b"}])
    )
    text = "\n".join(found)
    assert "study.yaml: titel is unknown; did you mean title?" in found
    assert "study.yaml: shapes.presets is unknown; did you mean shapes.preset?" in found
    assert "study.yaml: variants.1.nmae is unknown; did you mean variants.1.name?" in found
    assert "variants.1.name is missing" in text
    assert "test_seeds: must be a number of seeds, 1 or more, or a list of seeds, got 0" in text


def test_a_duplicate_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("title: a\ntitle: b\n")
    assert lines(path) == [f"{path}, line 2: not valid YAML: duplicate key 'title'"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "undistiled"}, "baseline: no variant 'undistiled'; did you mean undistilled?"),
        ({"compare": [["published", "nobody"]]}, "compare: no variant 'nobody'"),
        ({"dev_seeds": [1, 1]}, "dev_seeds: 1 is duplicated"),
        ({"test_seeds": [True, 2]}, "test_seeds: must be a number of seeds"),
        ({"test_seeds": []}, "test_seeds: give at least one seed"),
        ({"shapes": {}, "test_seeds": [2, 3]}, "test_seeds: 2 also in dev_seeds"),
        ({"set": ["seed=3"]}, "set: seed is set by the study itself"),
        ({"grid": {"output": ["a"]}}, "grid: output is set by the study itself"),
        ({"set": ["steps"]}, "set: 'steps': write it as section.key=value"),
        ({"settings": [["a=1"]]}, "settings: give a grid or settings, not both"),
        ({"variants": [UNDISTILLED, UNDISTILLED]}, "variants: name 'undistilled' is duplicated"),
        (
            {"variants": [{"name": "a", "label": "one"}, {"name": "b", "label": "one"}]},
            "variants: label 'one' is duplicated; tables tell variants apart by it",
        ),
        (
            {"variants": [UNDISTILLED, {"name": "teacher_xpool"}]},
            "variants.teacher_xpool: the report uses this name for another model",
        ),
        (
            {"variants": [UNDISTILLED, {"name": "zero_shot"}]},
            "variants.zero_shot: the report uses this name for another model",
        ),
        (
            {"variants": [{"name": "a", "like": "b"}, {"name": "b", "like": "a"}]},
            "variants.a.like: goes in a circle: a -> b -> a",
        ),
        (
            {"variants": [UNDISTILLED, {"name": "b", "grid": {"train.steps": [4, 6, 8]}}]},
            "every variant needs as many settings to choose from as the others, got undistilled 4, b 3",
        ),
        ({"settings": [["a=1"], ["a=1"]], "grid": None}, "variants.undistilled: the setting 'a=1' is duplicated"),
    ],
)
def test_a_study_that_would_not_be_fair_is_refused(study_file, changes, message):
    assert any(message in line for line in lines(study_file(**changes)))


def test_a_variant_starts_from_one_of_another_study(study_file, tmp_path):
    other = load_study(find_study("default_recipe"))
    (published,) = (variant for variant in other.variants if variant.name == "published")
    borrowed = {"name": "weak", "like": "default_recipe/published", "set": ["a=1"]}
    found = load_study(study_file(variants=[UNDISTILLED, borrowed, {"name": "last", "like": "weak", "set": ["a=2"]}]))
    known = {variant.name: variant for variant in found.variants}
    assert known["weak"].fixed == (*published.fixed, "a=1")
    assert known["last"].fixed == (*published.fixed, "a=1", "a=2")
    assert known["weak"].grid == known["undistilled"].grid  # of its own study
    beside = study_file(variants=[UNDISTILLED, {"name": "b", "set": ["b=1"]}])
    beside = beside.rename(tmp_path / "default_recipe.yaml")
    found = load_study(study_file(variants=[UNDISTILLED, {"name": "weak", "like": f"{beside.stem}/b"}]))
    assert found.variants[1].fixed == ("b=1",)  # one beside the file comes first


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ("default_recipe/publishd", "default_recipe has no variant 'publishd'; did you mean published?; allowed: "),
        ("no_study/published", "studies/no_study.yaml is in none of: "),
        ("x" * 300 + "/published", "is in none of: "),
        ("study/weak", "goes in a circle: study -> study"),
        ("between/weak", "goes in a circle: study -> between -> study"),
        ("../default_recipe/published", "String should match pattern"),
        ("default_recipe/", "String should match pattern"),
    ],
)
def test_another_study_that_does_not_say_what_a_variant_is_is_refused(study_file, tmp_path, like, message):
    weak = {"name": "weak", "like": "study/undistilled"}
    study_file(variants=[UNDISTILLED, weak]).rename(tmp_path / "between.yaml")
    found = lines(study_file(variants=[UNDISTILLED, {"name": "weak", "like": like}], dev_seeds=[1, 1]))
    assert found[0].startswith("study.yaml: variants.") and ".like: " in found[0] and message in found[0]
    assert ("study.yaml: dev_seeds: 1 is duplicated" in found) == ("pattern" not in message)  # all problems at once


def test_a_variant_may_start_from_one_that_starts_from_another_study(study_file):
    borrowed = {"name": "b", "like": "own_data/published", "set": ["a=1"]}
    found = load_study(study_file(variants=[UNDISTILLED, borrowed]))
    (published,) = (v for v in load_study(find_study("own_data")).variants if v.name == "published")
    assert found.variants[1].fixed == (*published.fixed, "a=1")


def test_a_variant_like_another_starts_from_its_overrides_and_its_settings(study_file):
    own = [["optimizer.lr=1e-3"], ["optimizer.lr=1e-4"]]
    plus = {"name": "plus", "set": ["a=1"], "settings": own}
    minus = {"name": "minus", "like": "plus", "set": ["a=0"]}
    least = {"name": "least", "like": "minus", "settings": own[::-1]}
    found = load_study(study_file(variants=[least, minus, plus]))
    known = {variant.name: variant for variant in found.variants}
    assert known["minus"].fixed == known["least"].fixed == ("a=1", "a=0")
    assert known["minus"].grid == known["plus"].grid == (("optimizer.lr=1e-3",), ("optimizer.lr=1e-4",))
    assert known["least"].grid == known["plus"].grid[::-1]
    assert found.dev_seeds == (1, 2) and found.test_seeds == (5, 6, 7)
    assert found.pairs == (("minus", "least"), ("plus", "least"))


@pytest.mark.parametrize("value", [1e-3, 3e-05, 4, True, None, "pearson", "true", "", "{", [1, "a"], {"a": [0.5]}])
def test_values_of_a_grid_reach_the_recipe_as_they_are(value, study_file):
    path = study_file(grid={"teachers.0.options.x": [value]})
    setting = load_study(path).variants[0].grid[0]
    assert load_recipe(SHAPES, setting).teachers[0].options == {"x": value}


def test_every_override_is_checked_before_anything_runs(on_shapes):
    plan = on_shapes(
        variants=[UNDISTILLED, {"name": "b", "set": ["optimizer.lrr=1"]}, {"name": "c", "set": ["seeed=1"]}]
    )
    with pytest.raises(RecipeError) as caught:
        check_plan(plan)
    assert str(caught.value).splitlines() == [
        "variant b: shapes_xpool.yaml: optimizer.lrr is unknown; did you mean optimizer.lr?",
        "variant c: shapes_xpool.yaml: seeed is unknown; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.select_on=test", "data.select_on is test: the checkpoint would be chosen on test"),
        ("data.validation=null", "there is no validation split to choose on"),
        ("data.annotations=elsewhere.json", "data.annotations is elsewhere.json for every seed"),
        ("data.test=test.csv", "data.test is test.csv for every seed"),
        ("data.train=train.csv", "data.train is train.csv for every seed"),
        ("stores=common", "stores is common for every seed"),
        ("teachers.0.checkpoint=t.pth", "teachers.xpool.checkpoint is t.pth for every seed"),
    ],
)
def test_a_shapes_study_whose_choice_would_see_test_or_mix_seeds_are_refused(on_shapes, override, message):
    plan = on_shapes(variants=[{"name": "a", "set": []}, {"name": "b", "like": "a"}])
    plan = replace(plan, study=replace(plan.study, common=(override,)))
    with pytest.raises(RecipeError, match=message):
        check_plan(plan)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (
            [{"name": "a"}, {"name": "b", "set": ["losses.frame_text.weight=0"]}],
            "variant b: losses.frame_text.weight says how a teacher teaches, but the recipe has no teachers",
        ),
        (
            [{"name": "a"}, {"name": "b", "grid": {"losses.video_text.temperature": [1, 2], "train.steps": [4, 6]}}],
            "variant b: losses.video_text.temperature says how a teacher teaches",
        ),
    ],
)
def test_a_variant_about_teaching_is_refused_where_nobody_teaches(on_shapes, variants, message):
    with pytest.raises(RecipeError, match=message):
        check_plan(on_shapes(set=["teachers=[]"], variants=variants))
    check_plan(on_shapes(variants=variants))


def test_a_variant_may_take_the_teachers_away_from_one_that_says_how_they_teach(on_shapes):
    plus = {"name": "plus", "set": ["losses.frame_text.targets=video"]}
    check_plan(on_shapes(variants=[plus, {"name": "alone", "like": "plus", "set": ["teachers=[]"]}]))


def test_the_recipes_own_value_is_known_for_the_keys_of_settings(on_shapes):
    plan = on_shapes(
        grid=None,
        settings=[["optimizer.lr=1e-4", "student.attention=sigmoid"], ["teachers.0.frame_temperature=0.3"]],
        variants=[{"name": "a"}, {"name": "b", "set": ["optimizer.lr=7e-5"]}],
    )
    assert plan.own_numbers(plan.study.variants[0]) == {"optimizer.lr": 3e-5, "teachers.0.frame_temperature": 1.0}
    assert plan.own_numbers(plan.study.variants[1])["optimizer.lr"] == 7e-5


def test_a_problem_of_all_variants_is_reported_once(on_shapes):
    with pytest.raises(RecipeError) as caught:
        check_plan(on_shapes(set=["data.select_on=test", "data.validation={videos: 5}"]))
    assert str(caught.value).startswith("data.select_on is test") and "\n" not in str(caught.value)


def test_preparing_a_seed_makes_its_dataset_and_teacher_with_that_seed_and_deletes_nothing(on_shapes, monkeypatch):
    calls = []
    monkeypatch.setattr("teachclip.studies.jobs.make_shapes", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(
        "teachclip.studies.jobs.train_teacher", lambda recipe, teacher: calls.append(teacher.training.seed)
    )
    monkeypatch.setattr("teachclip.studies.jobs._store", lambda recipe: (content(), {"train": [2, 4]}))
    measured = {"zero_shot": 1, "teachers": {}}
    monkeypatch.setattr("teachclip.studies.jobs._measure", lambda recipe, frame_probe: measured)
    for name in ("default", "noisy"):
        sizes = {"train_videos": 40, "test_videos": 20} if name == "default" else {}
        job = on_shapes(shapes={"preset": name, **sizes}).preparing()[-1]
        kept = job.folder / "seed-7" / "kept"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("here before")
        for key, value in job.places().items():
            monkeypatch.setenv(key, value)
        assert job.run() == {"content": {"": content()}, "splits": {"train": [2, 4]}, **measured}
        (where,), options = calls[0]
        assert where == str(job.folder / "seed-7" / "shapes")
        assert (options["seed"], options["clip_from"], calls[1:]) == (7, job.shapes.common, [7])
        assert options.get("train_videos") == (None if name == "noisy" else 40)
        assert options.get("preset", "default") == name and ("preset" in options) == (name != "default")
        assert kept.read_text() == "here before"
        calls.clear()


def test_the_time_that_is_left_is_printed_once_after_the_first_trials(capsys):
    on_progress = run._time_left(tuning=20, tests=8, processes=2)
    for done in range(1, 21):
        on_progress(done, 30.0 * done)
    assert capsys.readouterr().err == "about 8 min of tuning left, then 4 min of test, by the first 4\n"


WITHHELD = [
    "data.format=teachclip.data.formats.withheld:msrvtt",
    "data.uncaptioned=${SHAPES_ROOT}/videos",
    "data.texts=${TEACHCLIP_RUNS}/shapes_texts.txt",
]


def test_a_variant_may_withhold_captions_where_nothing_is_chosen(on_shapes):
    variants = [{"name": "captions"}, {"name": "none", "set": WITHHELD}]
    untuned = {"variants": variants, "grid": {"train.steps": [4]}}
    plan = on_shapes(**untuned)
    check_plan(plan)
    assert plan.preparing()[0].settings == plan.study.common
    assert len({stores for stores, _ in plan.preparing()[0].readers}) == 2
    with pytest.raises(RecipeError, match=r"data\.uncaptioned is .*, which may hold test videos"):
        check_plan(on_shapes(variants=variants))
    elsewhere = [{"name": "captions"}, {"name": "none", "set": [*WITHHELD, "data.uncaptioned=/films"]}]
    with pytest.raises(RecipeError, match=r"data\.uncaptioned is /films for every seed"):
        check_plan(on_shapes(**{**untuned, "variants": elsewhere}))


def test_every_seed_gets_the_texts_of_a_grammar(on_shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.studies.jobs.make_shapes", lambda *a, **k: None)
    grammar = tmp_path / "words.yaml"
    grammar.write_text('patterns: {"a {colour} ring": 2}\ncolour: [red, blue]\n')
    job = on_shapes(shapes={"texts": str(grammar)}).preparing()[0]
    Path(job.places()["TEACHCLIP_RUNS"]).mkdir(parents=True)
    job._make_shapes(job.shapes)
    written = Path(job.places()["TEACHCLIP_RUNS"]) / "shapes_texts.txt"
    assert written.read_text().splitlines() == ["a red ring", "a blue ring"]


def test_a_variant_with_another_test_split_is_refused(on_shapes):
    plan = on_shapes(variants=[UNDISTILLED, {"name": "b", "set": ["data.test=${SHAPES_ROOT}/test_full.csv"]}])
    with pytest.raises(RecipeError, match=r"variant b: data\.test is not that of the baseline"):
        check_plan(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"select_on": "test"}}, "data.select_on is test"),
        ({"data": {"validation": None}}, "there is no validation split to select on"),
        ({"teachers": [{"name": "xpool", "checkpoint": "none.pth"}]}, "teacher xpool: none.pth does not exist"),
    ],
)
def test_own_data_without_an_honest_choice_is_refused_in_one_line(project, study_file, capsys, changes, message):
    recipe = project(**changes)
    assert main([str(study_file()), "--recipe", str(recipe), "--out", str(project.folder / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (project.folder / "out").exists()


def test_a_gallery_of_more_videos_than_the_test_split_has_is_refused(project, study_file, capsys):
    arguments = ["--recipe", str(project()), "--out", str(project.folder / "out"), "--dry-run"]
    assert main([str(study_file(gallery=4)), *arguments]) == 2
    assert "gallery: 4; allowed: 2 to 3, the videos of the test split" in capsys.readouterr().err
    assert main([str(study_file(gallery=3)), *arguments]) == 0


def test_a_gallery_of_videos_without_captions_is_refused(project, study_file, capsys, monkeypatch):
    def read(recipe):
        catalog = build_catalog(recipe)
        test = catalog.test
        return replace(catalog, test=Split(test.name, test.videos, test.captions[:1]))

    monkeypatch.setattr("teachclip.studies.checks.build_catalog", read)
    arguments = ["--recipe", str(project()), "--out", str(project.folder / "out"), "--dry-run"]
    assert main([str(study_file(gallery=3)), *arguments]) == 2
    assert "texts without videos: gallery needs the rank of every query" in capsys.readouterr().err
    assert main([str(study_file()), *arguments]) == 0


@pytest.mark.parametrize("name", ["csv", "teachclip.data.formats.custom:read_csv"])
def test_tuning_reads_data_without_a_test_split(project, name):
    path = project(data={"format": name})
    plain = load_recipe(path)
    hidden = load_recipe(path, [f"data.format={without_test(name)}"])
    before, after = build_catalog(plain), build_catalog(hidden)
    assert before.test is not None and after.test is None
    assert after.validation == before.validation and after.train == before.train


def test_test_is_measured_on_fresh_seeds_only_with_what_was_chosen(on_shapes):
    plan = on_shapes()
    prepared, candidates, _ = made_up(plan)
    chosen = plan.choices(candidates)
    assert {name: item.settings for name, item in chosen["as trained"].items()} == {
        variant.name: variant.grid[1] for variant in plan.study.variants
    }
    assert {job.seed for job in plan.tuning(prepared)} == {1, 2}
    jobs = plan.testing(chosen, prepared)
    assert [(job.seed, job.variant) for job in jobs] == [
        (s, v) for s in (5, 6, 7) for v in ("undistilled", "published")
    ]
    assert plan.counts() == {"prepare": 5, "tune": 16, "test": 6}


def test_trials_follow_what_students_depend_on_and_preparation_does_not(on_shapes, tmp_path):
    plan = on_shapes()
    prepared = made_up(plan)[0]

    def fingerprints(plan, prepared=prepared):
        variant = plan.study.variants[1]
        kinds = [plan.train_job(kind, 5, variant, variant.grid[0], prepared).fingerprint for kind in ("tune", "test")]
        return plan.preparing()[0].fingerprint, *kinds

    before = fingerprints(plan)
    slower = fingerprints(on_shapes(set=["train.batch_size=32"]))
    assert slower[0] == before[0] and slower[1] != before[1] and slower[2] != before[2]
    assert fingerprints(on_shapes(set=["evaluation.batch_size=5", "train.log_every=1"])) == before
    teacher = fingerprints(on_shapes(set=["teachers.0.training.train.steps=3"]))
    assert teacher[0] != before[0] and teacher[1:] == before[1:]  # what it taught is in the content
    retaught = {name: {"content": {"": content(**{"teacher xpool": "e"})}} for name in prepared}
    assert fingerprints(plan, retaught)[1] != before[1]
    other_test = {name: {"content": {"": content(test="e")}} for name in prepared}
    assert fingerprints(plan, other_test)[1] == before[1] and fingerprints(plan, other_test)[2] != before[2]


def test_variants_that_read_other_frames_get_stores_of_their_own(on_shapes):
    fewer = {"name": "fewer", "set": ["frames.count=6"]}
    plan = on_shapes(variants=[UNDISTILLED, {"name": "tempered", "set": ["teachers.0.frame_temperature=0.1"]}, fewer])
    found = {variant.name: plan.stores(plan.settings(variant, variant.grid[0])) for variant in plan.study.variants}
    assert found["undistilled"] == found["tempered"] == "" != found["fewer"]
    assert {stores for stores, _ in plan.preparing()[0].readers} == {"", found["fewer"]}


def test_variants_whose_encoders_compute_in_another_precision_get_stores_of_their_own(on_shapes):
    fast_entry = {"name": "fast", "set": ["teaching.encoding_precision=bfloat16"]}
    plan = on_shapes(variants=[{"name": "plain"}, fast_entry])
    fast = plan.stores(plan.settings(plan.study.variants[1], ()))
    assert fast and {stores for stores, _ in plan.preparing()[0].readers} == {"", fast}


def test_the_last_override_of_a_key_is_the_only_one(on_shapes):
    plan = on_shapes(set=["train.steps=9", "optimizer.lr=1"])
    variant = plan.study.variants[1]
    given = plan.settings(variant, variant.grid[0])
    assert given == ("optimizer.lr=1", "optimizer.attention_lr=0.001", "train.steps=4")


def test_a_quick_plan_is_small_and_its_settings_still_differ(on_shapes):
    plan = small_plan(on_shapes())
    check_plan(plan)
    assert plan.counts() == {"prepare": 3, "tune": 4, "test": 4}
    for variant in plan.study.variants:
        recipes = [plan.load(plan.settings(variant, setting)) for setting in variant.grid]
        assert {recipe.train.steps for recipe in recipes} == {20}
        assert len({recipe.optimizer.attention_lr for recipe in recipes}) == 2


def test_encoders_move_in_a_quick_run_however_long_they_are_at_rest(project, study_file):
    training = {"train": {"encoders": "finetuned", "epochs": 9, "batch_size": 4, "frozen_steps": 30}}
    teacher = {"name": "xpool", "checkpoint": str(project.folder / "t.pth"), "training": training}
    recipe = project(teachers=[teacher], train={"encoders": "finetuned", "steps": 90, "frozen_steps": 40})
    file = study_file(grid={"train.frozen_steps": [60, 4]})
    plan = small_plan(build_plan(project.folder / "out", recipe, load_study(file), Path()))
    check_plan(plan)
    assert [recipe.train.frozen_steps for recipe in plan.recipes()] == [10, 4] * 2
    assert plan.load(plan.study.common).teachers[0].training.train.frozen_steps == 10


def test_seeds_change_batches_too(project, study_file):
    plan = build_plan(project.folder / "out", project(batch_seed=7), load_study(study_file()), Path())
    variant = plan.study.variants[1]
    job = plan.train_job("test", 5, variant, variant.grid[0], {"prepare": {"content": {"": content()}}})
    trained = load_recipe(job.recipe, job.overrides())
    assert trained.seed == trained.order_seed == 5
    assert "batch_seed is set by the study itself" in " ".join(lines(study_file(set=["batch_seed=3"])))


def test_a_quick_run_leaves_no_hasty_teacher_where_a_real_one_belongs(project, study_file):
    training = {"train": {"encoders": "frozen", "epochs": 9, "batch_size": 4}}
    missing = project.folder / "teacher.pth"
    recipe = project(teachers=[{"name": "xpool", "checkpoint": str(missing), "training": training}])
    plan = small_plan(build_plan(project.folder / "out", recipe, load_study(study_file()), Path()))
    check_plan(plan)
    small = plan.load(plan.study.common)
    assert Path(small.teachers[0].checkpoint) == project.folder / "out" / "teachers" / "xpool.pth"
    assert small.teachers[0].training.train.steps == 20
    assert small.stores == project.folder / "out" / "stores"


def test_the_report_has_means_intervals_wins_and_costs(on_shapes):
    plan = on_shapes()
    report = json.loads(json.dumps(build_study_report(plan, *made_up(plan))))
    tables = {title: {row[0]: row[1:] for row in rows} for title, _, rows in all_tables(report)}
    recall = tables["Test, mean ± standard deviation over the test seeds"]
    assert recall["undistilled"][:3] == ["35.0 ± 5.0", "45.0 ± 5.0", "55.0 ± 5.0"]
    assert recall["as published"][0] == "41.0 ± 7.0"
    assert recall["teacher (xpool)"][0] == recall["zero-shot mean pooling"][0] == "16.0 ± 1.0"
    half = t_quantile(0.975, 2) * statistics.stdev([4, 6, 8]) / 3**0.5
    paired = tables["Paired differences, mean [95% t interval] wins"]["as published - undistilled"]
    assert paired[0] == f"+6.0 [{6 - half:+.1f}, {6 + half:+.1f}] 3/3"
    assert report["results"][0]["differences"][0]["values"] == [4, 6, 8]
    assert "as published - teacher (xpool)" in tables["Differences from the teacher"]
    assert tables["Cost"]["as published"] == ["11.0 ± 1.0", "1,234", "512", "256k", "0.5"]
    steps = "optimizer.attention_lr=0.001 train.steps=6"
    edge = "optimizer.attention_lr=0.001, train.steps=6"
    assert tables["Chosen on validation"]["as published"] == [steps, "24.5", edge, "4, 4, 4"]
    assert tables["Chosen on validation"]["undistilled"][-1] == "none"
    assert report["results"][0]["verdicts"][0].endswith("Clear of zero: better.")
    interval = next(row for row in report["results"][0]["intervals"] if row["name"] == "undistilled")
    assert interval["high"] - interval["mean"] == pytest.approx(t_quantile(0.975, 2) * 5 / 3**0.5)


def test_the_report_says_how_to_repeat_a_student_and_keeps_every_trial(on_shapes):
    plan = on_shapes()
    report = build_study_report(plan, *made_up(plan))
    text = study_markdown(report, None)
    assert "pip install 'teachclip[report]'" in text
    assert "train 400 videos, 3,200 captions; test 300 videos, 1,500 captions" in text
    command = report["commands"]["as published"]
    assert f"TEACHCLIP_RUNS={plan.folder / 'seed-5'}" in command
    assert "optimizer.attention_lr=0.001 train.steps=6 seed=5 output=" in command
    assert sum(map(len, report["candidates"].values())) == 8
    trials = next(rows for title, _, rows in all_tables(report) if title == "Every trial on validation")
    assert [row[2:] for row in trials if row[0] == "as published"][:2] == [
        ["21.0", "22.0", "21.5", ""],
        ["24.0", "25.0", "24.5", "chosen"],
    ]


def test_without_shapes_zero_shot_and_teachers_are_measured_once(on_shapes):
    plan = on_shapes()
    own = replace(plan, shapes=None)
    report = build_study_report(own, *made_up(own))
    rows = {row[0]: row for row in all_tables(report)[0][2]}
    assert "±" not in rows["teacher (xpool)"][1] and "±" in rows["undistilled"][1]


def test_variants_with_one_setting_are_not_tuned(on_shapes):
    plan = on_shapes(grid=None, teachers=False)
    assert plan.counts() == {"prepare": 3, "tune": 0, "test": 6}
    report = build_study_report(plan, *made_up(plan))
    chosen = next(rows for title, _, rows in all_tables(report) if title == "Chosen on validation")
    assert chosen[0][1:3] == ["as the variant defines", "not tuned"]
    assert not any(title == "Differences from the teacher" for title, _, _ in report["tables"])


def test_a_dry_run_prints_the_plan_and_writes_nothing(study_file, capsys, tmp_path):
    out = tmp_path / "out"
    path = study_file(shapes={})
    assert main([str(path), "--out", str(out), "--dry-run"]) == 0
    output = capsys.readouterr().err
    assert "tuning: 2 variants x 4 settings x 2 dev seeds (1, 2); test: 2 variants x 3 test seeds (5, 6, 7)" in output
    assert "22 trainings of students (16 for tuning, 6 for test) after 5 preparation(s)" in output
    assert not out.exists()


def test_a_study_of_the_project_is_found_by_its_name(capsys, tmp_path):
    assert main(["shapes_options", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "variant frames_alone" in capsys.readouterr().err
    assert main(["nowhere", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert main(["no/study.yaml", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "error: no/study.yaml: cannot read the study file: No such file" in capsys.readouterr().err


def test_a_study_runs_from_videos_to_a_report_and_a_second_run_does_nothing(project, study_file, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", InThisProcess)
    out = project.folder / "out"
    path = study_file(test_seeds=[5, 6], grid={"optimizer.attention_lr": [1e-3, 1e-2]}, gallery=2)
    arguments = [str(path), "--recipe", str(project()), "--out", str(out), "--processes", "1", "--quick"]
    assert main(arguments) == 0
    report = json.loads((out / "report.json").read_text())
    for variant in report["results"][0]["variants"].values():
        assert [run["test"]["videos"] for run in variant["runs"]] == [3, 3]
        assert all(run["seconds"] > 0 and run["parameters"] > 0 for run in variant["runs"])
    header, rows = report["results"][0]["tables"][0][1:]
    assert header[1] == GALLERY and all(row[1] for row in rows)
    measured = report["results"][0]["gallery"]
    assert measured["videos"] == 2 and {*measured["values"]} == {
        "undistilled",
        "published",
        "zero_shot",
        "teacher_xpool",
    }
    gains = [item["metric"] for item in report["results"][0]["differences"] if "R@1" in item["metric"]]
    assert gains[:2] == [GALLERY, "R@1"] and "in a gallery of 2 of the 3 test videos" in " ".join(report["about"])
    assert report["others"]["teacher_xpool"]["runs"][0]["cost"]["bytes_per_video"] > 0
    for file in (out / "trials").glob("tune-*.json"):
        assert "test" not in json.loads(file.read_text())["result"]
    assert len(list((out / "trials").glob("*.json"))) == 1 + 4 + 4
    assert "Too few seeds or queries" in (out / "report.html").read_text(encoding="utf-8")
    assert not list((out / "runs").iterdir())
    capsys.readouterr()

    monkeypatch.setattr(Train, "run", lambda self: pytest.fail("trained again"))
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", None)
    before = json.loads((out / "report.json").read_text())
    assert main(arguments) == 0
    assert "4 of 4 skipped: already done" in capsys.readouterr().err
    after = json.loads((out / "report.json").read_text())
    assert {**after, "run": 0} == {**before, "run": 0}


FACTORS = {
    "contrast": {"published": ["losses.contrastive.weight=0.2"], "full": ["losses.contrastive.weight=1"]},
    "frames": {"none": ["losses.frame_text.weight=0"], "pair": ["losses.frame_text.weight=2"]},
}
DESIGN = {"design": {"cells": 3, "factors": FACTORS}, "variants": [], "grid": None, "test_seeds": [5, 6, 7]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": FILE["variants"]}, "variants: not beside a design"),
        ({"compare": [["a", "b"]]}, "compare: not beside a design"),
        ({"design": {"factors": {"contrast": FACTORS["contrast"]}}}, "design.factors"),
        ({"design": {"factors": {**FACTORS, "one": {"only": []}}}}, "design.factors.one"),
        ({"design": {"factors": {**FACTORS, "a": {"x y": [], "z": []}}}}, "design.factors.a: level 'x y'; allowed: "),
        ({"design": {"factors": {**FACTORS, "a": {"x": ["seed=1"], "z": []}}}}, "design.factors.a.x: seed is set by"),
        (
            {"design": {"factors": {**FACTORS, "a": {"x": ["steps"], "z": []}}}},
            "design.factors.a.x: 'steps': write it",
        ),
        ({"design": {"cells": 1, "factors": FACTORS}}, "design.cells: 1 is fewer than the 2 levels of a factor"),
        ({"design": {"cells": 5, "factors": FACTORS}}, "design.cells is 5, too many"),
        (
            {"design": {"cells": 3, "factors": FACTORS}, "test_seeds": [5]},
            "3 trainings (3 cells x 1 test seeds) do not",
        ),
        (
            {"design": {"factors": {**FACTORS, "a": {"x": [], "z": ["losses.frame_text.weight=1"]}}}},
            "design.factors.a: losses.frame_text.weight is set by frames too; one factor would undo the other",
        ),
        ({"design": None}, "variants: 0 given; give two or more, or a design"),
    ],
)
def test_a_design_that_tells_no_effects_is_refused(study_file, changes, message):
    found = lines(study_file(**{**DESIGN, **changes}))
    assert any(message in line for line in found), found


def test_a_factorial_study_tells_effects_of_real_trainings(project, study_file, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", InThisProcess)
    out = project.folder / "out"
    recipe = str(project(train={"steps": 2, "evaluate_every": 2}))
    assert main([str(study_file(**DESIGN)), "--recipe", recipe, "--out", str(out), "--processes", "1"]) == 0
    shown, planned = capsys.readouterr()
    assert "factor frames, level pair: losses.frame_text.weight=2" in planned
    assert "test: 3 cells x 3 test seeds (5, 6, 7)" in planned
    report = json.loads((out / "report.json").read_text())
    (section,) = report["results"]
    trained = section["trainings"]
    assert (
        len({(one["seed"], one["cell"]) for one in trained}) == 9 and len(list((out / "trials").glob("test-*"))) == 9
    )
    level = np.array([one["cell"].split("-") for one in trained])
    seeds = np.array([one["seed"] for one in trained])
    columns = [level[:, 0] == "full", level[:, 1] == "pair", *(seeds == seed for seed in (5, 6, 7))]
    recalls = np.array([one["test"]["t2v"]["recall_at_1"] for one in trained])
    expected = np.linalg.lstsq(np.stack(columns, axis=1).astype(float), recalls, rcond=None)[0]
    effects = section["effects"]["R@1"]
    assert effects["contrast: full against published"]["mean"] == pytest.approx(expected[0], abs=1e-6)
    assert effects["frames: pair against none"]["mean"] == pytest.approx(expected[1], abs=1e-6)
    assert {"| 5 ", "| 6 ", "| 7 "} <= {line[:4] for line in shown.splitlines()}
    assert "Main effects, mean over all other factors" in (out / "report.html").read_text(encoding="utf-8")
    assert "no intervals are shown" in shown  # the project has few queries
    capsys.readouterr()
    assert main([str(study_file(**DESIGN)), "--recipe", recipe, "--out", str(out), "--processes", "1"]) == 0
    assert "9 of 9 skipped: already done" in capsys.readouterr().err


def test_a_second_study_in_the_same_folder_is_refused(project, study_file, capsys, monkeypatch):
    arguments = [str(study_file()), "--recipe", str(project()), "--out", str(project.folder / "out")]
    codes = []
    monkeypatch.setattr(run, "run_plan", lambda *rest: codes.append(main(arguments)))
    assert main(arguments) == 0
    assert codes == [2]
    assert "another study runs there" in capsys.readouterr().err


def test_variants_that_differ_in_nothing_are_refused_in_one_line(study_file, capsys, tmp_path):
    same = {"name": "same", "like": "published", "set": ["losses.contrastive.weight=0.2"]}
    path = study_file(variants=[UNDISTILLED, {"name": "published"}, same], shapes={})
    for more in ([], ["--quick"]):
        assert main([str(path), "--out", str(tmp_path / "out"), "--dry-run", *more]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "variants published and same differ in nothing" in errors[0]


def test_variants_that_differ_in_one_setting_are_kept(on_shapes):
    other = {"name": "other", "grid": {"optimizer.attention_lr": [1e-3, 2e-3], "train.steps": [4, 6]}}
    check_different(on_shapes(variants=[{"name": "published"}, other]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_factors": [2, 4]}, "pooling_factors: [2.0, 4.0] lacks 1, the student as trained"),
        ({"pooling_factors": [1, 0]}, "pooling_factors: 0 is not a factor; allowed: above 0"),
        ({"pooling_factors": [1, 2, 2]}, "pooling_factors: 2 is duplicated"),
        ({"frame_probe": True}, "frame_probe: only the Shapes dataset records what its frames show"),
        ({"teacher_table": True, "teachers": False}, "teacher_table: needs the teachers' results"),
        ({"gallery": 1, "shapes": None}, "gallery: must be greater than or equal to 2, got 1"),
        ({"tune_set": ["a.b"]}, "tune_set: 'a.b': write it as section.key=value"),
        ({"tune_set": ["seed=1"]}, "tune_set: seed is set by the study itself"),
        (
            {"tune_set": ["data.select_on=test"]},
            "tune_set: data.select_on; allowed: keys of train and optimizer, and",
        ),
        (
            {"tune_set": ["teachers=[]"]},
            "tune_set: teachers would undo teachers, which is part of",
        ),
        ({"tune_set": ["optimizer={lr: 1}"]}, "tune_set: optimizer would undo optimizer.attention_lr, what variants"),
        ({"tune_set": ["train.batch_size=9"], "grid": {}}, "tune_set: no settings to choose from; give a grid"),
        ({"tune_set": ["optimizer.attention_lr=1"]}, "tune_set: optimizer.attention_lr would undo"),
        ({"tune_set": ["train.batch_size=9"], "pooling_factors": [1, 2]}, "tune_set: not beside pooling_factors"),
        ({"gallery": 10, "shapes": {}}, "gallery: not beside a `shapes` section; give its test_videos instead"),
    ],
)
def test_measurements_that_cannot_be_made_are_refused(study_file, changes, message):
    assert any(message in line for line in lines(study_file(**changes)))


def test_pooling_factors_need_frozen_encoders_and_no_other_choice_of_the_temperature(on_shapes):
    with pytest.raises(RecipeError, match=r"pooling_factors needs train\.encoders=frozen, got finetuned"):
        check_plan(on_shapes(pooling_factors=[1, 2], set=["train.encoders=finetuned"]))
    with pytest.raises(RecipeError, match="the pooling temperature would be chosen twice"):
        check_plan(on_shapes(pooling_factors=[1, 2], set=["student.temperature_scaling=[2.0]"]))


def test_settings_are_chosen_with_the_overrides_of_tune_set_alone(project, study_file, capsys, monkeypatch):
    monkeypatch.setattr("teachclip.studies.trials.ProcessPoolExecutor", InThisProcess)
    tuning = ["train.encoders=frozen", "train.frozen_steps=0"]
    finetuned = ["train.encoders=finetuned", "train.frozen_steps=2", "train.steps=3", "train.evaluate_every=3"]
    finetuned.append("student.wise_ft=[0.5]")
    tuning.append("student.wise_ft=[]")
    path = study_file(test_seeds=[5], grid={"optimizer.lr": [1e-3, 1e-2]}, set=finetuned, tune_set=tuning)
    out = project.folder / "out"
    assert main([str(path), "--recipe", str(project()), "--out", str(out), "--processes", "1"]) == 0
    trials = [json.loads(file.read_text()) for file in (out / "trials").glob("t*.json")]
    kinds = ("tune-", "test-")
    tune, test = ([{*each["settings"]} for each in trials if each["name"].startswith(kind)] for kind in kinds)
    assert len(tune) == 8 and len(test) == 2
    assert all({*tuning} <= settings for settings in tune)
    assert all({*finetuned} <= settings for settings in test)
    kept = {kind: [each["result"] for each in trials if each["name"].startswith(kind)] for kind in kinds}
    assert all(result["wise_ft"]["share"] in (0.5, 1) for result in kept["test-"])
    assert not any("wise_ft" in result for result in kept["tune-"])
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "wise_ft, by seed" in text
    assert f"These trials, and no others, have {' '.join(tuning)}." in text
    assert "train.frozen_steps=2" in text.rpartition("## Commands")[2]
    output = capsys.readouterr().err
    assert f"2 settings x 2 dev seeds (1, 2), with {' '.join(tuning)}; test:" in output
    assert "of tuning left, by the first 3" in output


def test_what_tune_set_changes_is_checked_too(on_shapes):
    frozen = ["train.encoders=finetuned", "train.frozen_steps=2"]
    with pytest.raises(RecipeError, match=r"^with tune_set: .*frozen_steps is for encoders that move after them"):
        check_plan(on_shapes(set=frozen, tune_set=["train.encoders=frozen"]))
    for tuning, key in (
        ('train.encoders="frozen"', "optimizer.clip_lr"),
        ("train.encoders=finetuned", "train.lora_rank"),
    ):
        with pytest.raises(RecipeError, match=f"{key}, which variants choose, makes no difference to these trials"):
            check_plan(on_shapes(set=["train.encoders=lora"], tune_set=[tuning], grid={key: [1, 2]}))
    changed = ["if_late_interaction=[optimizer.adapter_lr=1e-3]"]
    with pytest.raises(RecipeError, match=r"tune_set: optimizer\.adapter_lr is also a matter of if_late_interaction"):
        check_plan(on_shapes(set=changed, tune_set=["optimizer.adapter_lr=1e-4"]))


def test_a_study_without_a_recipe_needs_one_on_the_command_line(study_file, capsys, tmp_path):
    path = study_file(recipe=None)
    assert main([str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "the study file names no recipe; give --recipe RECIPE" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["shapes_xpool", "beside.yaml"])
def test_a_study_names_its_recipe_by_name_or_by_a_path_beside_it(study_file, tmp_path, recipe):
    shutil.copy(SHAPES, tmp_path / "beside.yaml")
    expected = {"shapes_xpool": SHAPES, "beside.yaml": tmp_path / "beside.yaml"}[recipe]
    assert load_study(study_file(recipe=recipe)).recipe.resolve() == expected.resolve()


FROZEN_FIRST = ["train.encoders=finetuned", "train.steps=300", "train.frozen_steps=240"]


@pytest.mark.parametrize(
    "changes",
    [
        {"set": FROZEN_FIRST},
        {"set": [*FROZEN_FIRST[:2], "train.frozen_steps=0xf0 # of 300"]},
        {"set": ["train={encoders: finetuned, steps: 300, frozen_steps: 240, batch_size: 16}"]},
        {"variants": [{**UNDISTILLED, "set": [*UNDISTILLED["set"], *FROZEN_FIRST]}, {"name": "published"}]},
        {"grid": {"train.encoders": ["finetuned"], "train.steps": [300], "train.frozen_steps": [240, 200]}},
        {"set": FROZEN_FIRST, "tune_set": ["train.encoders=frozen", "train.frozen_steps=0"]},
        {"set": FROZEN_FIRST[:2], "tune_set": ["train.frozen_steps=240"]},
    ],
)
def test_a_quick_plan_leaves_steps_to_encoders_that_train_later(on_shapes, changes):
    plan = on_shapes(**{"grid": {"optimizer.lr": [1e-3, 1e-2]}, **changes})
    check_plan(plan)
    quick = small_plan(plan)
    check_plan(quick)
    for variant in quick.study.variants:
        assert all(recipe.train.frozen_steps <= 10 for recipe in quick.recipes())
        assert {*quick.own_numbers(variant)} >= {*plan.own_numbers(variant)}


def test_the_time_estimate_knows_which_steps_are_frozen(on_shapes):
    finetuned = ["train.encoders=finetuned", "train.frozen_steps=240", "train.steps=300"]
    tuning, grid = ["train.encoders=frozen", "train.frozen_steps=0"], {"optimizer.lr": [1e-3, 1e-2]}
    plan = on_shapes(set=finetuned, tune_set=tuning, grid=grid)
    # 5 x 100 s + 8 x 300 x 0.06 s + 6 x (240 x 0.06 s + 60 x 0.8 s)
    assert run.time_estimate(plan, 1).startswith("about 17 min for what is left")
    assert run.time_estimate(plan, 1).endswith("100 s per preparation, 0.06 or 0.8 s per step of a student")


def test_the_time_estimate_states_what_it_rests_on(on_shapes, project, study_file):
    plan = on_shapes()
    assert run.missing_trials(plan) == {"prepare": 5, "tune": 16, "test": 6}
    # 5 x 100 s + 22 x 5 steps x 0.06 s
    assert run.time_estimate(plan, 2) == (
        "about 4 min for what is left, with 2 process(es), by a rule for two idle CPU cores: 100 s per preparation, "
        "0.06 s per step of a student"
    )
    trials = plan.folder / "trials"
    trials.mkdir(parents=True)
    for name, seconds in (("prepare-9", 60), ("tune-9-a", 20), ("tune-9-b", 40)):
        (trials / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
    # 5 x 60 s + 22 x 30 s: 16 min
    assert run.time_estimate(plan, 1).startswith("about 16 min for what is left, with 1 process(es), by 3 finished")
    own = build_plan(project.folder / "own", project(), load_study(study_file()), Path())
    assert run.time_estimate(own, 1).startswith("time: not known for preparation, tuning, test, of")


def test_finished_trials_are_not_counted_as_missing(on_shapes, monkeypatch):
    plan = on_shapes()
    prepared = made_up(plan)[0]
    kept = dict(prepared)
    monkeypatch.setattr("teachclip.studies.trials.Trial.result", lambda trial: kept.get(trial.name))
    assert run.missing_trials(plan) == {"prepare": 0, "tune": 16, "test": 6}
    kept |= {job.name: {"validation": metrics(1.0)} for job in plan.tuning(prepared)}
    assert run.missing_trials(plan) == {"prepare": 0, "tune": 0, "test": 6}
    kept |= {job.name: {} for job in plan.testing(plan.choices(plan.candidates(kept, prepared)), prepared)}
    assert run.time_estimate(plan, 1) == "nothing is left to run"


def test_a_small_test_split_of_own_data_is_a_warning_before_anything_runs(project, study_file, capsys):
    arguments = [str(study_file(test_seeds=2)), "--recipe", str(project()), "--out", str(project.folder / "out")]
    assert main([*arguments, "--dry-run"]) == 0
    output = capsys.readouterr().err
    assert "warning: the test split has 6 queries, fewer than 50" in output
    assert "warning: the study has 2 test seed(s), fewer than 3" in output


def test_preparation_follows_the_clip(on_shapes, monkeypatch):
    plan = on_shapes()
    first = plan.preparing()[0].fingerprint
    monkeypatch.setattr("teachclip.studies.plan._clip_hash", lambda common: "other")
    assert plan.preparing()[0].fingerprint != first


def test_a_study_is_a_function_and_its_keys_are_listed(study_file, tmp_path, capsys):
    assert teachclip.study(study_file(shapes={}), out=tmp_path / "out", dry_run=True) == {}
    with pytest.raises(SystemExit) as stop:
        main(["--keys"])
    assert stop.value.code == 0
    assert "  variants.0.like  " in capsys.readouterr().out


def test_a_student_is_measured_at_every_pooling_factor(project):
    recipe = load_recipe(project())
    distill(recipe)
    results = json.loads((recipe.output / "results.json").read_text())
    measured = measure_student(recipe, "test", (0.5, 1.0, 8.0), frame_probe=False)["factors"]
    assert list(measured) == ["0.5", "1", "8"]
    assert measured["1"]["t2v"] == results["test"]["t2v"] and "frames" not in measured["1"]


def test_a_preset_on_the_command_line_brings_its_own_overrides_and_folder(capsys):
    def dry(preset, study):
        recipe = ["--recipe", str(SHAPES)] if study == "own_data" else []
        code = main([study, *recipe, "--preset", preset, "--dry-run"])
        return code, capsys.readouterr().err

    code, output = dry("long", "shapes_presets")
    assert code == 0 and "in runs/studies/shapes_presets-long" in output
    code, output = dry("lang", "shapes_presets")
    assert code == 2 and "unknown preset 'lang'" in output and "did you mean long" in output
    code, output = dry("long", "own_data")
    assert code == 2 and "has no `shapes` section" in output


def test_the_overrides_of_a_preset_stand_before_those_of_the_file(on_shapes):
    plan = on_shapes(shapes={"preset": "long"})
    assert plan.load(plan.settings(plan.study.variants[1], ())).frames.count == 24
    own = on_shapes(shapes={"preset": "long"}, set=["frames.count=6"])
    assert own.load(own.settings(own.study.variants[1], ())).frames.count == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "student.temperature_scaling=[2.0]",
            "variant b: student.temperature_scaling is .2.0., a choice that the baseline does not have",
        ),
        ("data.validation={videos: 1}", "variant b: data.validation is not that of the baseline"),
        ("data.max_missing=0.5", "variant b: data.max_missing is not that of the baseline"),
    ],
)
def test_variants_with_other_choices_or_data_are_refused(on_shapes, override, message):
    with pytest.raises(RecipeError, match=message):
        check_plan(on_shapes(variants=[UNDISTILLED, {"name": "b", "set": [override]}]))


def test_a_variant_may_go_without_the_temperature_scaling_that_the_others_have(on_shapes):
    excluded = {"name": "b", "set": ["student.temperature_scaling=[]"]}
    both = {"set": ["student.temperature_scaling=[2.0]"], "variants": [UNDISTILLED, excluded]}
    check_plan(on_shapes(**both))
    with pytest.raises(
        RecipeError, match=r"variant undistilled: student\.temperature_scaling is .2\.0., a choice that"
    ):
        check_plan(on_shapes(**both, baseline="b"))


def test_variants_that_would_share_a_teacher_they_train_differently_are_refused(on_shapes):
    longer = {"name": "longer", "set": ["teachers.0.training.train.steps=400"]}
    with pytest.raises(
        RecipeError, match=r"variant longer: teachers\.xpool\.training is not that of another variant"
    ):
        check_plan(on_shapes(variants=[{"name": "short"}, longer]))
    longer["set"].append("teachers.0.checkpoint=${TEACHCLIP_RUNS}/longer.pth")
    check_plan(on_shapes(variants=[{"name": "short"}, longer]))


def test_a_replaced_video_is_prepared_anew(project, study_file, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(project.root / "videos", videos)
    recipe = project(data={"videos": str(videos)})
    job = build_plan(tmp_path / "out", recipe, load_study(study_file()), tmp_path).preparing()[0]
    first = job.fingerprint
    assert job.fingerprint == first
    os.utime(videos / "clip0.mp4", ns=(1, 1))
    assert job.fingerprint != first


def test_seconds_are_those_of_whole_runs(on_shapes):
    plan = on_shapes()
    prepared, candidates, tests = made_up(plan)
    names = [name for name in tests if name.startswith("test-5")]
    for name in names:
        tests[name]["seconds"] = None
    report = build_study_report(plan, prepared, candidates, tests)
    seconds = {row[0]: row[1] for row in {t[0]: t[2] for t in all_tables(report)}["Cost"] if row[1]}
    assert names and set(seconds) == {"undistilled", "as published"}
    for found in tests.values():
        found["seconds"] = None
    report = build_study_report(plan, prepared, candidates, tests)
    assert not any(row[1] for row in {t[0]: t[2] for t in all_tables(report)}["Cost"])


def test_unpaired_videos_that_may_be_test_videos_are_refused(on_shapes):
    sets = ["losses.frame_sets.weight=1", "losses.frame_sets.videos=${SHAPES_ROOT}/videos"]
    with pytest.raises(RecipeError, match="which may hold test videos"):
        check_plan(on_shapes(variants=[UNDISTILLED, {"name": "b", "set": sets}]))


def test_a_trial_depends_on_the_code_and_on_unpaired_files(on_shapes, tmp_path, monkeypatch):
    captions = tmp_path / "more.txt"
    captions.write_text("a red circle\n")
    plan = on_shapes(set=["losses.frame_sets.weight=1", f"losses.frame_sets.captions={captions}"])
    variant = plan.study.variants[0]
    content = {"prepare-5": {"content": {"": {"train": "1", "selection": "2", "test": "3"}}}}

    def fingerprint():
        return plan.train_job("test", 5, variant, variant.grid[0], content).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    captions.write_text("a red circle\na blue one\n")
    plan = replace(plan)
    other = fingerprint()
    assert other != first
    monkeypatch.setattr("teachclip.studies.jobs.code_hash", lambda: "other code")
    assert fingerprint() not in (first, other)
