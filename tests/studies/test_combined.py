"""One study on several data sets: `teachclip study --combine`."""

import json
import statistics

import pytest

from teachclip.cli.study import main
from teachclip.errors import DataError
from teachclip.studies.certainty import gallery_hits
from teachclip.studies.combined import combine
from teachclip.studies.results import GALLERY

T_OF_THREE = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom, from a printed table


def run_of(ranks):
    """An evaluation of ten test videos, one caption each, from the rank of each caption's video."""
    recalls = {f"recall_at_{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    videos = [f"{row}.mp4" for row in range(len(ranks))]
    queries = {"video": videos, "rank": ranks}
    return {
        "t2v": recalls,
        "v2t": recalls,
        "sum_of_recalls": 2 * sum(recalls.values()),
        "videos": 10,
        "queries": queries,
    }


@pytest.fixture
def report(tmp_path):
    """Write the report of a data set; `ranks`: name of the variant -> students -> ranks. Returns its folder."""

    def write(name, ranks, *, gallery=4, pairs=(("taught", "alone"), ("taught", "wide")), **more):
        variants = {
            variant: {"label": f"the {variant}", "runs": [{"test": run_of(each)} for each in students]}
            for variant, students in ranks.items()
        }
        differences = [{"variant": one, "baseline": other, "metric": "R@1"} for one, other in pairs]
        section = {"variants": variants, "differences": differences, "gallery": gallery and {"videos": gallery}}
        folder = tmp_path / name
        folder.mkdir(parents=True)
        content = {"title": "A title", "study": "a_study", "results": [section], **more}
        (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return write


def ranks(first, second=None, of=10):
    """The ranks of ten captions: `first` of them 1, `second` of them 2, the others the last of `of`."""
    second = 0 if second is None else second
    return [1] * first + [2] * second + [of] * (10 - first - second)


SETS = (
    {"alone": [ranks(1), ranks(3)], "wide": [ranks(1), ranks(1)], "taught": [ranks(4), ranks(4)]},
    {"alone": [ranks(2), ranks(2)], "wide": [ranks(5), ranks(3)], "taught": [ranks(3), ranks(3)]},
    {"alone": [ranks(3), ranks(3)], "wide": [ranks(0), ranks(2)], "taught": [ranks(7), ranks(5)]},
)


def found(result, label, metric):
    (item,) = [each for each in result["differences"] if each["label"] == label and each["metric"] == metric]
    return item


def test_a_difference_is_paired_by_data_set_with_the_mean_of_its_students(report, capsys):
    folders = [report(f"set{row}/study", each, gallery=None) for row, each in enumerate(SETS)]
    result = combine(folders)
    assert result["values"]["alone"]["R@1"] == pytest.approx([20, 20, 30])
    assert result["values"]["wide"]["R@1"] == pytest.approx([10, 40, 10])
    item = found(result, "the taught - the alone", "R@1")
    assert item["values"] == pytest.approx([20, 10, 30]) and item["wins"] == 3
    half = T_OF_THREE * 10 / 3**0.5
    assert (item["mean"], item["low"], item["high"]) == pytest.approx((20, 20 - half, 20 + half), abs=1e-4)
    assert item["touches_zero"]
    assert "| the alone  | 20.0 | 20.0 | 30.0 | 23.3 |" in capsys.readouterr().out


def test_the_best_of_several_is_that_of_the_mean_and_that_of_each_data_set(report):
    result = combine([report(f"set{row}", each, gallery=None) for row, each in enumerate(SETS)])
    of_the_mean = found(result, "the taught - the best of 2, the alone", "R@1")
    assert of_the_mean["baseline"] == "alone" and of_the_mean["values"] == pytest.approx([20, 10, 30])
    of_each = found(result, "the taught - the best of 2 on each data set", "R@1")
    assert of_each["baseline"] == ["alone", "wide", "alone"] and of_each["values"] == pytest.approx([20, -10, 30])
    assert of_each["wins"] == 2
    assert found(result, "the taught - the best of 2 on each data set", "sum")["baseline"] == of_each["baseline"]


def test_a_gallery_comes_first_and_picks_the_best(report, tmp_path):
    # without the gallery `wide` has the higher R@1; among 4 of 10 videos many second places are first
    sets = [{"alone": [ranks(2, 8)], "wide": [ranks(3)], "taught": [ranks(4)]} for _ in range(2)]
    result = combine([report(f"set{row}", each) for row, each in enumerate(sets)], tmp_path / "out")
    expected = 100 * statistics.fmean(gallery_hits(ranks(2, 8), 10, 4).tolist())
    assert result["values"]["alone"][GALLERY] == pytest.approx([expected] * 2)
    assert found(result, "the taught - the best of 2, the alone", "R@1")["values"] == pytest.approx([20, 20])
    assert "`R@1, gallery` is of 4 videos." in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["differences"] == result["differences"]


def test_one_pair_has_no_best(report):
    sets = [{"alone": [ranks(2)], "taught": [ranks(row)]} for row in (3, 4)]
    folders = [report(f"set{row}", each, pairs=[("taught", "alone")]) for row, each in enumerate(sets)]
    assert {item["label"] for item in combine(folders)["differences"]} == {"the taught - the alone"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"study": "another"}, "its study is another, that of .* a_study; give reports of one study"),
        ({"gallery": 5}, "its gallery is 5, that of .* 4"),
        ({"pairs": [("taught", "alone")]}, "its pairs is .*taught.*alone"),
        ({"results": []}, "not the report of a study with variants"),
        (
            {"results": [{"variants": {"a": {"label": "a", "runs": [{"factors": {}, "test": {"t2v": 1}}]}}}]},
            "not the",
        ),
    ],
)
def test_reports_that_do_not_belong_together_are_refused(report, more, message):
    first, second = report("one", SETS[0]), report("two", SETS[1], **more)
    with pytest.raises(DataError, match=message):
        combine([first, second])


def test_a_study_with_pooling_factors_is_refused(report):
    folder = report("one", SETS[0])
    content = json.loads((folder / "report.json").read_text())
    content["results"][0]["variants"]["alone"]["runs"][0]["factors"] = {"1": {}}
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="of a study with pooling_factors; allowed: one without"):
        combine([folder, report("two", SETS[1])])


def test_folders_and_options_of_a_user_are_checked(report, tmp_path, capsys):
    folder = report("one", SETS[0])
    assert main(["--combine", str(folder)]) == 2
    assert main(["--combine", str(folder), f"{folder}/."]) == 2
    assert main(["--combine", str(folder), str(tmp_path / "nowhere")]) == 2
    assert (
        "report.json: No such file or directory; give a folder that `teachclip study` wrote"
        in capsys.readouterr().err
    )
    for option in (["own_data"], ["--quick"], ["--test-seeds", "3"]):
        assert main([*option, "--combine", str(folder), str(folder)]) == 2
        assert "is not for --combine" in capsys.readouterr().err
    assert main(["--combine", str(folder), str(report("two", SETS[1])), "--out", str(tmp_path / "out")]) == 0
    assert "# A title: 2 data sets" in capsys.readouterr().out
