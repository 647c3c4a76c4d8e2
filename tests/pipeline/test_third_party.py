"""The README's "Add a teacher": its very code, in a package of its own, through the real commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import start
from runs import relevance_store

from teachclip.models.clip import load_clip
from teachclip.models.mean_pooling import MeanPooling

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parents[1] / "support" / "mean_teacher"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package, built and installed into a folder by pip."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PACKAGE, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", folder / "site"]
    command = [sys.executable, "-m", "pip", "install", *options, folder / "source"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    assert list((folder / "site").glob("*.dist-info/entry_points.txt"))
    return folder / "site"


def tool(site, name, *arguments):
    return start(ROOT / "tools" / f"{name}.py", *arguments, paths=site).finish()


def test_an_installed_package_teaches_under_its_own_name(project, installed):
    teacher = {"name": "mean", "checkpoint": str(project.root / "clip")}
    recipe = project(teachers=[teacher, {"name": "xpool", "checkpoint": str(project.root / "teacher.pth")}])
    for name, more in (("precompute", ["--verify"]), ("distill", []), ("evaluate", ["--model", "mean"])):
        done = tool([installed], name, recipe, *more)
        assert done.returncode == 0, done.stderr
    assert "| mean | test | text to video |" in done.stdout
    results = json.loads((project.folder / "run" / "results.json").read_text())
    assert results["test"]["videos"] == 3
    store = relevance_store(project.folder / "stores", "mean")
    np.testing.assert_allclose(store.read("frame_text", slice(None)).astype(np.float32).sum(axis=1), 1, atol=2e-3)


def test_its_scores_are_those_of_mean_pooling(project, installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    from teachers import load_teacher

    teacher, pooling = load_teacher("mean", project.root / "clip"), MeanPooling(load_clip(project.root / "clip"))
    generator = torch.Generator().manual_seed(0)
    pixels, mask = torch.randn(3, 4, 3, 32, 32, generator=generator), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    last = pooling_end(project)
    ids = torch.tensor([[0, 5, last], [0, 7, last]])
    scores = []
    with torch.no_grad():
        for scorer in (teacher, pooling):
            scores.append(scorer.score(scorer.encode_texts(ids, ids * 0 + 1), scorer.encode_videos(pixels, mask)))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def pooling_end(project):
    return load_clip(project.root / "clip").config.text_config.eos_token_id


def test_a_module_on_the_path_teaches_as_module_and_name(project):
    recipe = project(teachers=[{"name": "mean_teacher:MeanTeacher", "checkpoint": str(project.root / "clip")}])
    done = tool([PACKAGE], "distill", recipe)
    assert done.returncode == 0, done.stderr
    assert (project.folder / "stores" / "relevance-mean_teacher-MeanTeacher").is_dir()
    done = tool([], "distill", recipe)  # not on the path
    assert done.returncode == 2 and "cannot be imported: No module named 'mean_teacher'" in done.stderr


def test_a_wrong_name_or_checkpoint_of_it_is_one_line(project, installed):
    for name, checkpoint, part in (
        ("means", "x", "did you mean mean?"),
        ("mean", project.folder / "none.pth", "teacher mean: "),
        ("mean_teacher:Mean", "x", "cannot be imported: module 'mean_teacher' has no attribute 'Mean'"),
    ):
        recipe = project(teachers=[{"name": name, "checkpoint": str(checkpoint)}])
        done = tool([installed], "distill", recipe)
        errors = [line for line in done.stderr.splitlines() if "rror" in line]
        assert done.returncode == 2 and len(errors) == 1 and part in errors[0], done.stderr


def test_the_example_is_short():
    assert len((PACKAGE / "mean_teacher.py").read_text().splitlines()) < 40


def test_the_readme_shows_this_very_example():
    assert (PACKAGE / "mean_teacher.py").read_text() in (ROOT / "teachers" / "README.md").read_text()
