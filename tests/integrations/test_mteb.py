"""mteb measures the student as teachclip does: on its own frames, with the same recalls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Video
from torch.utils.data import DataLoader

from teachclip import distill, evaluate, load_student
from teachclip.errors import DataError, VideoError


@pytest.fixture(scope="module", autouse=True)
def imports():
    """Import here what takes seconds, not in every process that collects tests."""
    global mteb, StudentEncoder, retrieval_task
    import mteb

    from teachclip.integrations.mteb import StudentEncoder, retrieval_task


def loader(columns, **cast):
    dataset = Dataset.from_dict(columns)
    for name, feature in cast.items():
        dataset = dataset.cast_column(name, feature)
    return DataLoader(dataset, batch_size=2)


@pytest.mark.parametrize("split", ["test", "train"])
def test_recalls_are_those_of_evaluate(project, split):
    recipe = project(student={"backbone": str(project.root / "clip"), "temporal_layers": 1})
    distill(recipe)
    ours = evaluate(recipe, split=split)[split]["t2v"]
    encoder = StudentEncoder(str(project.folder / "run" / "student"))
    task = retrieval_task(recipe, split=split)
    results = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    (scores,) = results.task_results[0].scores["test"]
    for k in (1, 5, 10):
        assert 100 * scores[f"recall_at_{k}"] == pytest.approx(ours[f"recall_at_{k}"], abs=1e-3)


@pytest.fixture(scope="module")
def encoder(made_project):
    return StudentEncoder(load_student(made_project / "clip"))


@pytest.fixture(scope="module")
def paths(made_project):
    return [str(made_project / "videos" / f"clip{number}.mp4") for number in range(3)]


def test_texts_and_videos_are_encoded_as_by_the_student(encoder, paths):
    videos = encoder.encode(loader({"video": paths}))
    assert videos.dtype == np.float32
    np.testing.assert_allclose(videos, encoder.student.encode_video(paths, progress=False), atol=1e-6)
    texts = ["a red circle", "a blue square", "a circle"]
    expected = encoder.student.encode_text(texts, progress=False)
    np.testing.assert_allclose(encoder.encode(loader({"text": texts})), expected, atol=1e-6)


def test_videos_that_hub_data_sets_hold_are_decoded_by_the_student(encoder, paths):
    expected = encoder.student.encode_video(paths, progress=False)
    contents = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    for column in (paths, contents):  # mteb's own decoder is not asked for a single frame
        np.testing.assert_allclose(encoder.encode(loader({"video": column}, video=Video())), expected, atol=1e-6)


def test_segments_are_encoded_as_segments(encoder, paths):
    parts = [{"path": paths[0], "start": 0.0, "end": 0.4}, {"path": paths[1], "start": None, "end": None}]
    expected = encoder.student.encode_video([(paths[0], 0.0, 0.4), paths[1]], progress=False)
    np.testing.assert_allclose(encoder.encode(loader({"video": parts})), expected, atol=1e-6)


def test_what_a_student_cannot_encode_is_refused(encoder, tmp_path):
    with pytest.raises(DataError, match="mteb gave the columns audio"):
        encoder.encode(loader({"audio": ["a"]}))
    (tmp_path / "bad.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        encoder.encode(loader({"video": [str(tmp_path / "bad.mp4")]}))
