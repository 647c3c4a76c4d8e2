import json

import pytest
from made_up_gain import made_up_results

from teachclip.recipe.loading import load_recipe
from teachclip.studies.gain_plan import whole
from teachclip.studies.measure_teachers import main
from teachclip.studies.teacher_arms import NAMES, RECIPE, TAUGHT, TEMPERED, teacher_family
from teachclip.studies.teachers_report import build_teachers_report, write_teachers_report


@pytest.fixture
def plan(tmp_path):
    clip = tmp_path / "world" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(b"weights")
    world, families = tmp_path / "world", (teacher_family(),)
    return whole(tmp_path / "out", common=world, dev_seeds=1, seeds=3, families=families, recipe=RECIPE)


def test_the_recipe_lists_the_teachers_in_the_order_of_their_names(plan):
    assert [teacher.label for teacher in load_recipe(plan.recipe, []).teachers] == list(NAMES)


def test_every_arm_is_taught_by_whom_it_says_with_the_temperature_it_says(plan):
    arms = plan.families[0].arms
    assert len({len(arm.grid) for arm in arms}) == 1
    for arm in arms:
        for number, setting in enumerate(arm.grid):
            teachers = load_recipe(plan.recipe, [*arm.fixed, *setting]).teachers
            assert [teacher.label for teacher in teachers] == list(TAUGHT.get(arm.name.removesuffix(TEMPERED), ()))
            expected = (0.3, 0.1, 0.03)[number] if arm.name.endswith(TEMPERED) else 1.0
            assert {teacher.frame_temperature for teacher in teachers} <= {expected}


def test_the_report_has_every_teacher_and_pairs_students_with_the_untaught_one(plan, capsys):
    report = build_teachers_report(plan, *made_up_results(plan))
    rows = {row[0]: row for row in report["tables"][0][2]}
    assert len(rows) == 1 + 2 * len(TAUGHT)
    assert rows["nobody (undistilled)"][1:] == ["", "21.0 ± 1.0", "", "22.0 ± 1.0", ""]
    assert rows["X-CLIP, as published"][1:4] == ["12.3 ± 3.2", "26.0 ± 1.0", "+5.0 [+5.0, +5.0]"]
    assert rows["X-CLIP + TS2-Net, as published"][1] == "12.3 ± 3.2, 12.3 ± 3.2"
    report["run"] = {"processes": 1}
    write_teachers_report(json.loads(json.dumps(report)), plan.folder.parent)
    text = (plan.folder.parent / "report.md").read_text(encoding="utf-8")
    assert "## Text to video, R@1" in text and "## Every trial on validation" in text
    assert text in capsys.readouterr().out


def test_a_wrong_number_of_seeds_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds" in capsys.readouterr().err
