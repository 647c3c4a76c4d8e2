"""The end of the demo, on a real student and real videos."""

import json
from pathlib import Path

import pytest
from tiny_models import tiny_student
from video_files import write_video

from teachclip import VideoIndex
from teachclip.demo.plan import VARIANTS, Demo
from teachclip.demo.search_index import best_student, index_videos


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A demo whose stages have left three students and two videos."""
    monkeypatch.setenv("TEACHCLIP_RUNS", str(tmp_path))
    monkeypatch.setenv("SHAPES_ROOT", str(tmp_path / "shapes"))
    plan = Demo.build(tmp_path, [4], 1, {})
    videos = plan.stages["shapes"].outputs[3]
    videos.mkdir(parents=True)
    for number in range(2):
        write_video(videos / f"video{number}.mp4", frames=10, seed=number)
    for place, (variant, recall) in enumerate(zip(VARIANTS, (100, 300, 200), strict=True)):
        folder = plan.folder / f"{variant}-4"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"validation": {"sum_of_recalls": recall}}))
        tiny_student(seed=place).save_pretrained(folder / "student")
    return plan


def test_the_videos_are_indexed_with_the_student_that_validation_prefers(finished, capsys):
    assert best_student(finished) == finished.folder / "distilled-4" / "student"
    index_videos(finished)
    index = VideoIndex.open(finished.folder / "index")
    assert len(index.videos()) == 2 and Path(index.settings.model).parent.name == "distilled-4"
    assert f"search them: teachclip search {finished.folder / 'index'}" in capsys.readouterr().err
    index_videos(finished)
    assert "0 videos encoded" in capsys.readouterr().err


def test_without_lancedb_the_demo_says_how_to_install_it(finished, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    index_videos(finished)
    shown = capsys.readouterr().err
    assert "pip install '.[search]'" in shown and not (finished.folder / "index").exists()
