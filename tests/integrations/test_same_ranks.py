"""One split by every way in: evaluate, an index, ONNX, mteb and LanceDB's function give the same ranks."""

from __future__ import annotations

import numpy as np
import pytest
from indexing import update

from teachclip import distill, evaluate, export_student
from teachclip.pipeline.build import build_catalog
from teachclip.recipe.loading import load_recipe
from teachclip.search.index import VideoIndex
from teachclip.search.queries import OnnxQueries
from teachclip.search.update import Wanted

K = (1, 2, 3)


def recalls(found, wanted):
    """Return R@1, R@2 and R@3 in percent of lists of names, best first."""
    places = [names.index(name) for names, name in zip(found, wanted, strict=True)]
    return [100 * float(np.mean([place < k for place in places])) for k in K]


def test_every_way_gives_the_same_ranks(project, tmp_path):
    # late: not in every process that collects tests
    import lancedb
    import mteb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import teachclip.integrations.lancedb  # noqa: F401 - registers the function
    from teachclip.integrations.mteb import StudentEncoder, retrieval_task

    recipe = project(train={"steps": 8, "evaluate_every": 8})
    distill(recipe)
    student = project.folder / "run" / "student"
    test = build_catalog(load_recipe(recipe)).test
    assert test is not None
    texts = [caption.text for caption in test.captions]
    wanted = [caption.video_id for caption in test.captions]
    paths = {video.path.name: video.path for video in test.videos}

    ours = evaluate(recipe)["test"]
    export_student(recipe, tmp_path / "onnx", layout="onnx")
    as_onnx = evaluate(recipe, model=str(tmp_path / "onnx"))["test"]
    for key in ("recall_at_1", "recall_at_5", "mean_rank", "median_rank"):
        assert as_onnx["t2v"][key] == pytest.approx(ours["t2v"][key], abs=1e-6)

    films = tmp_path / "films"
    films.mkdir()
    for name, path in paths.items():
        (films / name).symlink_to(path)
    update(tmp_path / "index", [films], Wanted(str(student), window=1000.0, stride=1000.0))
    with VideoIndex.open(tmp_path / "index") as index:
        by_index = [[found.path.rpartition("/")[2] for found in index.search(text, limit=3)] for text in texts]
    with VideoIndex.open(tmp_path / "index", model=str(tmp_path / "onnx")) as index:
        assert isinstance(index.queries(), OnnxQueries)
        by_onnx = [[found.path.rpartition("/")[2] for found in index.search(text, limit=3)] for text in texts]
    assert by_onnx == by_index
    expected = recalls(by_index, wanted)

    function = get_registry().get("teachclip").create(name=str(student))

    class Film(LanceModel):
        path: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()

    table = lancedb.connect(tmp_path / "lance").create_table("films", schema=Film)
    table.add([{"path": str(path)} for path in paths.values()])
    by_lance = [
        [row["path"].rpartition("/")[2] for row in table.search(text).distance_type("dot").limit(3).to_list()]
        for text in texts
    ]
    assert by_lance == by_index

    task = retrieval_task(recipe)
    task.k_values = K
    (scores,) = mteb.evaluate(StudentEncoder(str(student)), task, cache=None).task_results[0].scores["test"]
    assert [100 * scores[f"recall_at_{k}"] for k in K] == pytest.approx(expected, abs=1e-3)
    assert ours["t2v"]["recall_at_1"] == pytest.approx(expected[0], abs=1e-6)
    assert ours["t2v"]["mean_rank"] == pytest.approx(
        float(np.mean([names.index(name) + 1 for names, name in zip(by_index, wanted, strict=True)])), abs=1e-6
    )
