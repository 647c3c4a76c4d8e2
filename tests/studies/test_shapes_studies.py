"""The studies of recipes/studies: the trainings that they plan, and the reports of those with pooling factors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from html_pages import HOSTILE, check_hostile_page
from made_up_study import made_up_with_factors

from teachclip.processes import environment
from teachclip.recipe.loading import load_recipe
from teachclip.shapes.ground_truth import weight_by_kind
from teachclip.studies.checks import check_different, check_plan
from teachclip.studies.plan import build_plan, small_plan
from teachclip.studies.report import build_study_report, study_markdown, study_page, write_study_report
from teachclip.studies.study_file import find_study, load_study

ROOT = Path(__file__).parents[2]
PLANNED = json.loads(Path(__file__).with_name("planned_trainings.json").read_text(encoding="utf-8"))
ANY_RECIPE = dict.fromkeys(
    ("own_data", "default_recipe", "default_head_first", "relevance_factorial", "head_first", "several_vectors"),
    "shapes_xpool",
)
ANY_RECIPE |= dict.fromkeys(
    ("default_weak", "default_xclip", "default_three_teachers", "default_other_data", "default_finetuned"), "babyai"
)
"""Studies of any recipe, and one that they are planned for."""
FILES = sorted(path.stem for path in (ROOT / "recipes" / "studies").glob("*.yaml"))


@pytest.fixture
def plan_of(tmp_path):
    """The plan of a study of the project by name; one without a recipe gets a small one."""
    clip = tmp_path / "shapes" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"weights")

    def plan(name):
        recipe = ROOT / "recipes" / f"{ANY_RECIPE[name]}.yaml" if name in ANY_RECIPE else None
        return build_plan(tmp_path / "out", recipe, load_study(find_study(name)), tmp_path / "shapes")

    return plan


def test_every_study_of_the_project_is_pinned():
    assert list(PLANNED) and sorted(PLANNED) == FILES


@pytest.mark.parametrize("name", FILES)
def test_studies_plan_the_trainings_that_were_measured(plan_of, name):
    plan, planned = plan_of(name), PLANNED[name]
    check_plan(plan)
    check_different(plan)
    assert plan.recipe.stem == planned["recipe"]
    assert list(plan.dev_seeds) == planned["dev_seeds"] and list(plan.study.test_seeds) == planned["test_seeds"]
    counts = plan.counts()
    assert (counts["prepare"], counts["tune"]) == (planned["prepare"], planned["tune"])
    if plan.study.design is not None:
        assert [variant.name for variant in plan.study.tested(plan.study.test_seeds[0])] == planned["cells"]
        assert counts["test"] == len(planned["test_seeds"]) * len(planned["cells"])
        return
    assert [variant.name for variant in plan.study.variants] == list(planned["variants"])
    with environment(plan.places()):
        for variant in plan.study.variants:
            expected = [load_recipe(plan.recipe, overrides) for overrides in planned["variants"][variant.name]]
            assert [plan.load(plan.settings(variant, setting)) for setting in variant.grid] == expected


def test_finetuned_students_get_the_rates_of_frozen_ones(plan_of):
    finetuned, frozen = plan_of("default_finetuned"), plan_of("default_other_data")
    for one, other in zip(finetuned.study.variants, frozen.study.variants, strict=True):
        assert one.name == other.name
        for setting in one.grid:
            assert finetuned.load(finetuned.settings(one, setting)).train.encoders == "finetuned"
            tuned = finetuned.load(finetuned.settings(one, setting, "tune"))
            assert tuned == frozen.load(frozen.settings(other, setting, "tune"))


@pytest.mark.parametrize("name", FILES)
def test_studies_have_a_quick_plan(plan_of, name):
    whole = plan_of(name)
    plan = small_plan(whole)
    check_plan(plan)
    counts = plan.counts()
    assert counts["prepare"] <= 3 and len(plan.dev_seeds) <= 1
    assert len(plan.study.test_seeds) == min(2, len(whole.study.test_seeds))
    assert {recipe.train.steps for recipe in plan.recipes()} == {20}
    assert len(plan.preparing()) == counts["prepare"]
    with environment(plan.places()):  # as the report loads them for `own_numbers`
        assert {plan.load(plan.settings(variant, ())).train.steps for variant in plan.study.variants} == {20}


def test_only_the_undistilled_variants_of_the_gain_have_no_teacher(plan_of):
    for name in ("shapes_gain", "shapes_gain_no_blocks"):
        plan = plan_of(name)
        for variant in plan.study.variants:
            for setting in variant.grid:
                recipe = plan.load(plan.settings(variant, setting))
                assert (recipe.teachers == []) == (variant.name == "undistilled")
                assert recipe.student.temporal_layers == (4 if name == "shapes_gain" else 0)


def test_the_published_variant_keeps_the_published_loss(plan_of):
    plan = plan_of("shapes_gain")
    variant = next(variant for variant in plan.study.variants if variant.name == "distilled")
    losses = plan.load(plan.settings(variant, variant.grid[0])).losses
    assert (losses.contrastive.weight, losses.video_text.weight, losses.frame_text.weight) == (0.2, 1.0, 2.0)
    assert (losses.frame_text.targets, losses.frame_text.temperature) == ("pair", 1.0)


def test_every_variant_is_taught_by_whom_its_name_lists_with_the_temperature_of_its_setting(plan_of):
    plan = plan_of("shapes_teachers")
    assert [teacher.label for teacher in load_recipe(plan.recipe).teachers] == [
        *("xclip", "ts2net", "xpool", "clip2video")
    ]
    for variant in plan.study.variants:
        base = variant.name.removesuffix("_tempered")
        labels = [] if base == "undistilled" else base.split("_")
        for number, setting in enumerate(variant.grid):
            teachers = plan.load(plan.settings(variant, setting)).teachers
            assert [teacher.label for teacher in teachers] == labels
            expected = (0.3, 0.1, 0.03)[number] if variant.name.endswith("_tempered") else 1.0
            assert {teacher.frame_temperature for teacher in teachers} <= {expected}


def test_dev_and_test_seeds_are_apart_and_test_is_measured_on_test_seeds_only(plan_of):
    plan = plan_of("shapes_gain")
    prepared, candidates, _ = made_up_with_factors(plan)
    jobs = plan.tuning(prepared)
    assert {job.seed for job in jobs} == set(plan.dev_seeds)
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.seed for job in plan.testing(plan.choices(candidates), prepared)} == set(plan.study.test_seeds)
    assert not set(plan.dev_seeds) & set(plan.study.test_seeds)


def test_settings_and_pooling_factor_are_chosen_jointly(plan_of):
    plan = plan_of("shapes_gain")
    prepared, candidates, _ = made_up_with_factors(plan)
    choices = plan.choices(candidates)
    for variant in plan.study.variants:
        scaled, trained = choices["scaled"][variant.name], choices["as trained"][variant.name]
        assert (scaled.settings, scaled.factor) == (variant.grid[1], 4)
        assert (trained.settings, trained.factor) == (variant.grid[1], 1)
    # both ways chose the same setting: each student is trained once
    assert len(plan.testing(choices, prepared)) == len(plan.study.variants) * len(plan.study.test_seeds)


def test_ways_that_choose_different_settings_train_a_student_each(plan_of):
    plan = plan_of("shapes_gain")
    prepared, candidates, _ = made_up_with_factors(plan)
    choices = plan.choices(candidates)
    first = plan.study.variants[0]
    choices["as trained"][first.name] = next(
        item for item in candidates[first.name] if item.settings == first.grid[0]
    )
    jobs = plan.testing(choices, prepared)
    assert len(jobs) == (len(plan.study.variants) + 1) * len(plan.study.test_seeds)


def test_the_report_pairs_seeds_in_both_ways_and_keeps_every_trial(plan_of):
    plan = plan_of("shapes_gain")
    report = json.loads(json.dumps(build_study_report(plan, *made_up_with_factors(plan))))
    assert [section["way"] for section in report["results"]] == ["as trained", "scaled"]
    for section in report["results"]:
        first = section["differences"][0]
        assert (first["variant"], first["baseline"], first["metric"]) == ("distilled", "undistilled", "R@1")
        assert first["values"] == pytest.approx([5] * 5)
    trained, scaled = ({row[0]: row for row in section["tables"][0][2]} for section in report["results"])
    assert trained["undistilled"][1].startswith("20.8 ±") and scaled["undistilled"][1].startswith("21.8 ±")
    tried = sum(len(variant.grid) for variant in plan.study.variants)
    assert sum(map(len, report["candidates"].values())) == len(plan.factors) * tried
    text = study_markdown(report, None)
    assert "| distilled as published - undistilled " in text
    assert "Every trial on validation" in text and "mean of the true event frames" in text
    assert "pooling temperature as trained" in text and "chosen on validation jointly" in text


def test_the_report_has_the_attention_weights_of_students_and_teachers(plan_of):
    plan = plan_of("shapes_gain")
    report = build_study_report(plan, *made_up_with_factors(plan))
    for section in report["results"]:
        tables = {title: rows for title, _, rows in section["tables"]}
        rows = {row[0]: row[1:] for row in tables["Attention weight by kind of frame, %"]}
        assert list(rows) == [*(variant.label for variant in plan.study.variants), "teacher (xpool)"]
        assert [cell.partition(" ±")[0] for cell in rows["undistilled"]] == ["60.0", "30.0", "10.0"]


def test_the_report_has_every_teacher_beside_its_students(plan_of, capsys):
    plan = plan_of("shapes_teachers")
    report = build_study_report(plan, *made_up_with_factors(plan))
    title, header, rows = report["tables"][0]
    assert title == "Teachers and their students, text to video, R@1"
    assert header[1:] == ["teacher's R@1", "student's R@1, as trained", "gain", "student's R@1, scaled", "gain"]
    rows = {row[0]: row for row in rows}
    assert len(rows) == len(plan.study.variants)
    assert rows["undistilled"][1:] == ["", "21.0 ± 1.0", "", "22.0 ± 1.0", ""]
    assert rows["X-CLIP, as published"][1:4] == ["12.3 ± 3.2", "26.0 ± 1.0", "+5.0 [+5.0, +5.0] 3/3"]
    assert rows["X-CLIP + TS2-Net, as published"][1] == "12.3 ± 3.2, 12.3 ± 3.2"
    report["run"] = {"processes": 1}
    folder = plan.folder.parent
    write_study_report(json.loads(json.dumps(report)), folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert f"## {title}" in text and "## Every trial on validation" in text
    assert text in capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<h2>{title}</h2>" in page and "X-CLIP + TS2-Net" in page


def test_too_few_queries_or_test_seeds_are_a_warning_in_place_of_intervals(plan_of):
    few = small_plan(plan_of("shapes_gain"))
    report = build_study_report(few, *made_up_with_factors(few, queries=30))
    assert [line.split(",")[0] for line in report["warnings"]] == [
        "the test split has 30 queries",
        "the study has 2 test seed(s)",
    ]
    for section in report["results"]:
        assert {item["low"] for item in section["differences"]} == {None}
        assert all("no difference is shown" in line for line in section["verdicts"])
        tables = {table[0]: table[2] for table in section["tables"]}
        assert all("[" not in cell for row in tables["Paired differences, mean (wins)"] for cell in row)
    text = study_markdown(report, None)
    assert "Warning: the test split has 30 queries, fewer than 50" in text
    assert "Warning: the study has 2 test seed(s), fewer than 3" in study_page(report, None)
    enough = plan_of("shapes_gain")
    assert build_study_report(enough, *made_up_with_factors(enough, queries=50))["warnings"] == []


def test_weights_by_kind_add_up_to_one():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])
    kinds = np.array([["event", "distractor", "empty"], ["event", "event", "distractor"]])
    shares = weight_by_kind(weights, kinds)
    assert shares["event"] == pytest.approx((0.5 + 1.0) / 2)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_page_shows_hostile_texts_as_text(plan_of):
    plan = plan_of("shapes_teachers")
    report = build_study_report(plan, *made_up_with_factors(plan))
    report["run"] = {"processes": 1}

    def hostile(value):
        if isinstance(value, str):
            return HOSTILE
        if isinstance(value, dict):
            return {key: hostile(other) for key, other in value.items()}
        return [hostile(other) for other in value] if isinstance(value, list | tuple) else value

    shown = {key: hostile(report[key]) for key in ("title", "about", "warnings", "results", "tables", "commands")}
    check_hostile_page(study_page({**report, **shown}, None), images=0)


def test_the_factorial_studies_vary_the_same_parts():
    babyai, *others = (
        {factor.name: factor.levels for factor in load_study(find_study(f"{name}_factorial")).design.factors}
        for name in ("babyai", "pictograms", "shapes")
    )
    assert babyai.pop("teacher")
    assert all(other == babyai for other in others)
