"""Bring an index up to date as tests want it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import teachclip.search.update
from teachclip.models.modeling import StudentModel
from teachclip.search.limits import Limits
from teachclip.search.provenance import student_fingerprint
from teachclip.search.update import Report, update_index

ONE_WORKER = Limits(workers=1)


def update(index: Any, folders: Any = (), wanted: Any = None, **options: Any) -> Report:
    """Bring an index up to date, with one worker and no progress bar."""
    return update_index(index, folders, wanted, limits=ONE_WORKER, progress=False, **options)


class Towers:
    """Writes the text tower of each student once in a run of the tests; an index gets a copy, as an export takes
    seconds. Processes that test together share `folder`.
    """

    def __init__(self, folder: Path):
        self.folder, self.write = folder, teachclip.search.update.write_text_tower

    def __call__(self, student: StudentModel, out: Path) -> str:
        """Do what `write_text_tower` does."""
        made = self.folder / student_fingerprint(student)
        with FileLock(f"{made}.lock"):
            if not made.exists() and (problem := self.write(student, made)):
                return problem
        shutil.copytree(made, out)
        return ""


@pytest.fixture(scope="session", autouse=True)
def towers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Export each student's text tower once; for a `conftest.py` to import."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "towers"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachclip.search.update.write_text_tower", Towers(folder))
        yield
