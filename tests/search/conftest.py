"""A small library of real videos, a tiny student, and an index of them, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from indexing import update
from tiny_models import tiny_student
from video_files import write_video

from teachclip.search.update import Wanted


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "student"
    tiny_student().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made_library(tmp_path_factory):
    """Four clips of 2 seconds in two folders, and a film of 30 seconds."""
    root = tmp_path_factory.mktemp("library")
    (root / "holiday").mkdir()
    for number in range(4):
        folder = root / "holiday" if number < 2 else root
        write_video(folder / f"clip{number}.mp4", frames=20, seed=number)
    write_video(root / "film.mp4", frames=300, seed=9)
    return root


@pytest.fixture(scope="session")
def made_index(made_library, student_folder, tmp_path_factory):
    """An index of the library; tests that change it use `library` and `index` instead."""
    index = tmp_path_factory.mktemp("index") / "index"
    update(index, [made_library], Wanted(str(student_folder)))
    return index


@pytest.fixture
def library(made_library, made_index, tmp_path):
    """A copy of the library, with times of the files as before."""
    return Path(shutil.copytree(made_library, tmp_path / "library"))


@pytest.fixture
def index(library, student_folder, tmp_path):
    """A fresh index of the copied library."""
    place = tmp_path / "index"
    update(place, [library], Wanted(str(student_folder)))
    return place
