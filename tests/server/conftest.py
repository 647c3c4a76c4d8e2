"""An index of films that a browser plays, with hostile names among them, and its server in a thread."""

from __future__ import annotations

import shutil

import pytest
from indexing import update
from served import HOSTILE, running
from tiny_models import tiny_student
from video_files import write_video

from teachclip.search.index import VideoIndex
from teachclip.search.update import Wanted


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Five films of 4 to 22 seconds at 10 frames a second; one has a hostile name, one no browser plays."""
    root = tmp_path_factory.mktemp("films")
    (root / "holiday").mkdir()
    for number, name in enumerate(["one.mp4", "two.mp4", "holiday/three.mp4", HOSTILE]):
        write_video(root / name, frames=40 + 60 * number, width=128, height=96, seed=number, faststart=True)
    write_video(root / "old.avi", frames=50, width=128, height=96, codec="mpeg4", seed=7)
    (root / "broken.mp4").write_bytes(b"junk" * 100)
    return root


@pytest.fixture(scope="session")
def film_index(films, tmp_path_factory):
    """The folder of an index of the films."""
    student = tmp_path_factory.mktemp("student") / "student"
    tiny_student().save_pretrained(student)
    index = tmp_path_factory.mktemp("index") / "index"
    update(index, [films], Wanted(str(student)))
    return index


@pytest.fixture(scope="session")
def address(film_index):
    with running(film_index) as found:
        yield found


@pytest.fixture
def own_films(films, film_index, tmp_path):
    """A copy of films and index, to break."""
    copy = shutil.copytree(films, tmp_path / "films")
    index = tmp_path / "index"
    student = VideoIndex.open(film_index).settings.model
    update(index, [copy], Wanted(str(student)))
    return copy, index
