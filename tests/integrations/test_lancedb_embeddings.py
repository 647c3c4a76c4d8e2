"""A LanceDB table that embeds by the student finds what the student finds."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import tiny_student

from teachclip import load_student
from teachclip.errors import VideoError


@pytest.fixture(scope="module", autouse=True)
def imports():
    """Import here what takes a second, not in every process that collects tests."""
    global lancedb, get_registry, LanceModel, Vector
    import lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import teachclip.integrations.lancedb  # noqa: F401 - registers the function


@pytest.fixture
def folder(tmp_path):
    student = tiny_student()
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_a_table_embeds_videos_and_queries_by_itself(folder, tmp_path, made_project):
    function = get_registry().get("teachclip").create(name=str(folder))

    class Film(LanceModel):
        path: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    paths = [str(made_project / "videos" / f"clip{number}.mp4") for number in range(5)]
    lancedb.connect(tmp_path / "films").create_table("films", schema=Film).add([{"path": path} for path in paths])
    table = lancedb.connect(tmp_path / "films").open_table("films")  # the function is stored with the table
    found = table.search("a red circle").distance_type("dot").limit(5).to_list()
    student = load_student(folder)
    videos, text = student.encode_video(paths, progress=False), student.encode_text("a red circle", progress=False)
    scores = (text @ videos.T)[0].numpy()
    assert [row["path"] for row in found] == [paths[place] for place in np.argsort(-scores)]
    np.testing.assert_allclose([1 - row["_distance"] for row in found], np.sort(scores)[::-1], atol=1e-5)


def test_a_broken_file_is_named_and_not_tried_again(folder, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"junk" * 100)
    function = get_registry().get("teachclip").create(name=str(folder))
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        function.compute_source_embeddings_with_retry([str(tmp_path / "bad.mp4")])
