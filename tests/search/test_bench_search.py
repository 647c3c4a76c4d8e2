"""What `bench-search` measures: real rows, true neighbours, and a search beside its parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from indexing import ONE_WORKER
from tiny_models import tiny_student

from teachclip import decode_frames
from teachclip.cli import bench_search
from teachclip.data.video.sampling import FrameSampling
from teachclip.errors import DataError
from teachclip.search import benchmark_vectors
from teachclip.search.benchmark import ask, measure, nearest_of
from teachclip.search.benchmark_vectors import vectors_of_frames


@pytest.fixture
def few_frames(monkeypatch):
    """Sizes that fit the tiny student and its videos of 20 frames."""
    monkeypatch.setattr(benchmark_vectors, "FRAMES_PER_VIDEO", 4)
    monkeypatch.setattr(benchmark_vectors, "FRAMES_PER_ROW", 3)


def test_rows_are_what_the_student_gives_for_these_frames(made_library, few_frames, tmp_path):
    student = tiny_student()
    folder = made_library / "holiday"
    rows = vectors_of_frames(student, folder, 40, limits=ONE_WORKER)
    assert rows.shape == (40, student.config.width)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    possible = []
    for path in sorted(folder.iterdir()):
        frames = decode_frames(path, FrameSampling("intervals", 4))
        possible += [frames[[k for k in range(4) if k != left]] for left in range(4)]
    expected = student.encode_video(possible, progress=False).numpy()
    assert (rows @ expected.T).max(axis=1).min() > 1 - 1e-4
    (tmp_path / "broken.mp4").write_bytes(b"junk")
    with pytest.raises(DataError, match="none of its 1 videos has 4 frames"):
        vectors_of_frames(student, tmp_path, 5, limits=ONE_WORKER)


def test_every_structure_is_measured_on_what_it_finds(tmp_path, monkeypatch):
    monkeypatch.setattr("teachclip.search.benchmark._in_a_fresh_process", ask)
    vectors = np.random.RandomState(0).standard_normal((600, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert nearest_of(vectors, vectors[7])[0] == 7 and len(set(nearest_of(vectors, vectors[7]))) == 10
    exact, rough = measure(vectors, vectors[:9], tmp_path / "table", ["flat", "ivf_sq"])
    assert exact["recall"] == 1 and 0 < rough["recall"] <= 1
    assert exact["rows"] == 600 and exact["dim"] == 16 and exact["ms"] > 0
    assert rough["bytes"] > exact["bytes"] > 600 * 16 * 4


def test_the_command_writes_what_it_measured(made_index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("teachclip.search.benchmark._in_a_fresh_process", ask)
    texts, out = tmp_path / "texts.txt", tmp_path / "out.json"
    texts.write_text("a red circle\n\na blue square\n")
    arguments = [str(made_index), str(texts), "--rows", "100", "--dim", "40", "--structures", "flat"]
    assert bench_search.main([*arguments, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    (row,) = content["measured"]
    assert (row["rows"], row["dim"], row["recall"]) == (100, 40, 1.0)
    asked = content["query"]["student"]
    assert asked["ratio"] > 0 and asked["search"] > asked["text"] > 0
    assert "query, text tower of student: " in capsys.readouterr().out
    assert bench_search.main([str(made_index), str(texts), "--dim", "8"]) == 2
    assert "--dim is 8, expected at least the 32" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(30, 48), (30,)])
def test_kept_rows_of_another_width_are_refused(made_index, tmp_path, shape, capsys):
    texts, kept = tmp_path / "texts.txt", tmp_path / "rows.npy"
    texts.write_text("a red circle\n")
    np.save(kept, np.zeros(shape, np.float32))
    videos = ["--videos", str(tmp_path), "--keep", str(kept), "--rows", "20", "--structures", "flat"]
    assert bench_search.main([str(made_index), str(texts), *videos]) == 2
    assert "rows.npy: its rows are not vectors of 32 numbers" in capsys.readouterr().err
