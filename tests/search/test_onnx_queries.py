"""Queries without PyTorch: the text tower that an index keeps, and ONNX folders as models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from indexing import update
from tiny_models import tiny_student

from teachclip import load_student
from teachclip.errors import CheckpointError, DataError
from teachclip.onnx.export import export_onnx
from teachclip.search.index import VideoIndex
from teachclip.search.queries import TEXT_TOWER, OnnxQueries, StudentQueries, load_queries, write_text_tower
from teachclip.search.update import Wanted

ROOT = Path(__file__).parents[2]
SEARCH = """
import json, sys
from teachclip.search.index import VideoIndex
found = VideoIndex.open(sys.argv[1]).search("a red circle", limit=3)
loaded = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps([[one.path for one in found], [one.score for one in found], loaded]))
"""


def ranking(found):
    return [one.path for one in found], [one.score for one in found]


def test_a_search_by_text_loads_no_torch_and_finds_what_the_student_finds(made_index, student_folder):
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, str(made_index)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths, scores, loaded = json.loads(done.stdout)
    assert loaded == []
    with VideoIndex.open(made_index, model=str(student_folder)) as index:
        assert isinstance(index.queries(), StudentQueries)
        expected = ranking(index.search("a red circle", limit=3))
    assert paths == expected[0]
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)


def test_an_example_video_loads_the_student(made_index, made_library, tmp_path):
    copy = shutil.copy(made_library / "clip2.mp4", tmp_path / "elsewhere.mp4")
    with open(copy, "ab") as file:
        file.write(b"\0" * 8)  # other content, so it is no video of the index
    with VideoIndex.open(made_index) as index:
        assert isinstance(index.queries(), OnnxQueries)
        assert Path(index.search(like=copy, limit=1)[0].path).name == "clip2.mp4"


def test_an_onnx_folder_and_an_export_in_half_precision_are_the_same_student(made_index, student_folder, tmp_path):
    student = load_student(student_folder)
    export_onnx(student, tmp_path / "onnx")
    student.half().save_pretrained(tmp_path / "half")
    with VideoIndex.open(made_index) as index:
        expected = ranking(index.search("a red circle", limit=5))
    for model, tolerance in (("onnx", 1e-5), ("half", 1e-2)):
        with VideoIndex.open(made_index, model=str(tmp_path / model)) as index:
            found = ranking(index.search("a red circle", limit=5))
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=tolerance)


def test_another_student_as_onnx_is_refused(made_index, tmp_path):
    export_onnx(tiny_student(seed=5), tmp_path / "other", only="text")
    with (
        VideoIndex.open(made_index, model=str(tmp_path / "other")) as index,
        pytest.raises(DataError, match="was made by another student than this one"),
    ):
        index.search("a red circle")
    with pytest.raises(CheckpointError, match="has no video tower"):
        load_queries(str(tmp_path / "other")).videos(["a.mp4"])


def test_an_open_index_goes_on_with_the_student_that_took_over(index, library, tmp_path):
    tiny_student(seed=5).save_pretrained(tmp_path / "new")
    with VideoIndex.open(index) as opened:
        before = ranking(opened.search("a red circle", limit=5))
        update(index, [], Wanted(str(tmp_path / "new")))
        after = ranking(opened.search("a red circle", limit=5))
    assert before != after
    with VideoIndex.open(index, model=str(tmp_path / "new")) as fresh:
        np.testing.assert_allclose(after[1], ranking(fresh.search("a red circle", limit=5))[1], atol=1e-5)


def test_without_a_text_tower_the_student_answers(index):
    shutil.rmtree(next(index.glob("generation-*")) / TEXT_TOWER)
    with VideoIndex.open(index) as opened:
        assert isinstance(opened.queries(), StudentQueries)
        assert opened.search("a red circle", limit=1)


def test_a_tower_that_cannot_be_written_is_said_to_cost_seconds(
    library, student_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("teachclip.search.update.write_text_tower", write_text_tower)  # not the one of all tests
    monkeypatch.setattr("teachclip.onnx.folder.find_spec", lambda name: None)
    from indexing import ONE_WORKER

    from teachclip.search.update import update_index

    update_index(tmp_path / "i", [library], Wanted(str(student_folder)), limits=ONE_WORKER)
    assert "every search will load the student, which takes seconds: " in capsys.readouterr().err
    assert VideoIndex.open(tmp_path / "i").search("a red circle", limit=1)
