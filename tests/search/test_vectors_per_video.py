"""An index of a student with several vectors per video: rows for each, grouped by part and video."""

from __future__ import annotations

import numpy as np
import pytest
from indexing import update
from tiny_models import tiny_student

from teachclip import VideoIndex, load_student
from teachclip.models.modeling import best_cosines
from teachclip.search.compression_measure import measure_index
from teachclip.search.update import Wanted


@pytest.fixture(scope="module")
def opened(made_library, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    tiny_student(vectors=3).save_pretrained(root / "student")
    report = update(root / "index", [made_library], Wanted(str(root / "student")))
    with VideoIndex.open(root / "index") as index:
        yield index, load_student(root / "student"), report


def test_every_part_has_a_row_for_each_vector(opened):
    index, student, report = opened
    for video in index.videos():
        rows = index.parts(video.id)
        assert len(rows) == 3 * video.parts
        assert len({(part.start, part.end) for part in rows}) == video.parts
    clip = index.video("clip2.mp4")
    assert clip.parts == 1
    stored = np.stack(list(index.vectors([clip.id]).values()))
    expected = student.encode_video([clip.path], progress=False)[0].numpy()
    np.testing.assert_allclose(np.sort(stored, axis=0), np.sort(expected, axis=0), atol=1e-5)
    assert report.parts == sum(video.parts for video in index.videos())


def test_a_search_scores_a_video_by_its_nearest_vector_and_shows_each_part_once(opened):
    index, student, _ = opened
    found = index.search("a red circle", limit=10, parts=None)
    assert sorted(each.video.id for each in found) == sorted(video.id for video in index.videos())
    text = student.encode_text(["a red circle"], progress=False)
    clips = [each for each in found if each.video.parts == 1]
    videos = student.encode_video([each.path for each in clips], progress=False)
    np.testing.assert_allclose([each.score for each in clips], best_cosines(text, videos)[0].numpy(), atol=1e-5)
    for each in found:
        times = [(part.start, part.end) for part in each.parts]
        assert len(times) == len(set(times))


def test_an_example_is_one_direction_and_finds_itself(opened):
    index, _, _ = opened
    path = index.video("clip1.mp4").path
    vector = index.query_vector(like=path)
    assert vector.shape == (32,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    outside = index.queries().videos([path])[0]
    np.testing.assert_allclose(outside, vector, atol=1e-4)


def test_a_moment_means_all_vectors_of_its_part(opened):
    index, _, _ = opened
    film = index.video("film.mp4")
    rows = [part for part in index.parts(film.id) if (part.start, part.end) == (15, 25)]
    assert len(rows) == 3
    mean = np.mean([index.vectors([film.id])[row.id] for row in rows], axis=0)
    np.testing.assert_allclose(index.query_vector(like="film.mp4@0:22"), mean / np.linalg.norm(mean), atol=1e-5)


def test_rungs_are_measured_on_the_rows(opened):
    index, _, _ = opened
    report = measure_index(index, ["a red circle", "a blue square"], None)
    assert report["rows"] == 3 * sum(video.parts for video in index.videos())
    assert report["videos"] == len(index.videos())
