import json
import re

import numpy as np
import pytest
from tiny_models import tiny_student

from teachclip import VideoIndex
from teachclip.cli import search as search_command
from teachclip.errors import DataError
from teachclip.search.queries import StudentQueries


@pytest.fixture(scope="module")
def opened(made_index):
    with VideoIndex.open(made_index, queries=StudentQueries(tiny_student())) as index:
        yield index


def test_scores_are_cosines_and_the_best_part_comes_first(opened):
    query = tiny_student().encode_text("a red circle", progress=False)[0].numpy()
    expected = {row: float(vector @ query) for row, vector in opened.vectors().items()}
    found = opened.search("a red circle")
    assert len(found) == 5 and [video.score for video in found] == sorted((v.score for v in found), reverse=True)
    for video in found:
        own = {row: score for row, score in expected.items() if row.startswith(video.video.id)}
        assert video.score == pytest.approx(max(own.values()), abs=1e-5) == video.parts[0].score
        assert expected[video.parts[0].id] == pytest.approx(video.score, abs=1e-5)
        for k, part in enumerate(video.parts):
            assert not any(part.overlaps(other) for other in video.parts[:k])


def test_limits_and_one_video(opened):
    assert len(opened.search("a red circle", limit=2)) == 2
    (film,) = opened.search("a red circle", within="film.mp4", parts=None)
    assert len(film.parts) >= 2 and film.path.endswith("film.mp4")
    with pytest.raises(DataError, match=r"has no video 'flim.mp4'"):
        opened.search("a red circle", within="flim.mp4")
    with pytest.raises(DataError, match="limit is 0"):
        opened.search("a red circle", limit=0)
    with pytest.raises(DataError, match="nothing to search"):
        opened.search()


def test_a_row_is_fetched_by_its_id(opened):
    part = opened.search("a red circle")[0].parts[0]
    assert opened.part(part.id).start == part.start and opened.part(part.id).score is None
    with pytest.raises(DataError, match=r"has no row|has no video"):
        opened.part("0123456789abcdef-0")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["folder=holiday"], {"clip0", "clip1"}),
        (["folder!=holiday"], {"clip2", "clip3", "film"}),
        (["length>=10"], {"film"}),
        (["length<10", "path~CLIP3"], {"clip3"}),
        (["date>2020-01-01"], {"clip0", "clip1", "clip2", "clip3", "film"}),
        (["date<2020"], set()),
        (["bytes>0", "folder=holiday", "path~clip1"], {"clip1"}),
    ],
)
def test_filters(opened, filters, names):
    found = opened.search("a red circle", filters=filters)
    assert {video.path.rpartition("/")[2].removesuffix(".mp4") for video in found} == names
    assert {video.path.rpartition("/")[2].removesuffix(".mp4") for video in opened.videos(filters)} == names


@pytest.mark.parametrize("text", ["lenght>=10", "length", "folder>holiday", ">=3", "length>=1:30", "bytes<10 MB"])
def test_filters_that_are_not_understood(opened, text):
    with pytest.raises(DataError, match=r"did you mean length|is not understood|takes = or !=|expected a number of"):
        opened.search("a red circle", filters=[text])


def test_a_filter_is_never_run_as_sql(opened):
    for text in ("path='; DROP TABLE files; --", "folder=' OR 1=1 --"):
        assert opened.search("a red circle", filters=[text]) == []
    assert len(opened.videos()) == 5


def test_another_student_is_refused_with_the_way_to_re_index(made_index):
    index = VideoIndex.open(made_index, queries=StudentQueries(tiny_student(seed=4)))
    with pytest.raises(DataError, match=r"made by another student.*teachclip index --index .* --model STUDENT"):
        index.search("a red circle")
    changed = tiny_student()
    changed.processor.frame_sampling = {**changed.processor.frame_sampling, "count": 3}
    with pytest.raises(DataError, match=r"frame sampling.count = 4 there, 3 now"):
        VideoIndex.open(made_index, queries=StudentQueries(changed)).search("a red circle")
    warmer = tiny_student(pooling_temperature=0.2)
    with pytest.raises(DataError, match=r"student.pooling_temperature = 0.1 there, 0.2 now"):
        VideoIndex.open(made_index, queries=StudentQueries(warmer)).search("a red circle")


def test_any_object_that_encodes_may_encode_queries(opened):
    class Fixed:
        fingerprint = opened.settings.fingerprint

        def texts(self, texts):
            return np.eye(32, dtype=np.float32)[: len(texts)]

    found = VideoIndex.open(opened.path, queries=Fixed()).search("anything at all")
    best = max(opened.vectors().values(), key=lambda vector: vector[0])
    assert found[0].score == pytest.approx(float(best[0]), abs=1e-5)


def test_the_command_prints_a_table_or_json(made_index, capsys):
    assert search_command.main([str(made_index), "a red circle", "--limit", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["score", "file", "best", "moments,"] and len(lines) == 4
    assert all(re.search(r"  \d:\d\d-\d:\d\d @\d:\d\d", line) for line in lines[1:])
    assert search_command.main([str(made_index), "a red circle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 5 and {"id", "path", "score", "parts", "columns"} <= set(found[0])
    assert {"id", "start", "end", "best", "times", "weights", "score"} <= set(found[0]["parts"][0])


def test_mistakes_of_the_command_are_one_line(made_index, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "none"), "a"], "there is no index here; make it: teachclip index FOLDER --model STUDENT"),
        ([str(made_index)], "nothing to search: give a text or an example"),
        ([str(made_index), "   "], "expected a text that is not empty"),
    ):
        assert search_command.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_without_lancedb_the_error_says_how_to_install_it(made_index, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(DataError, match=r"pip install 'teachclip\[search\]'"):
        VideoIndex.open(made_index, queries=StudentQueries(tiny_student())).search("a red circle")
