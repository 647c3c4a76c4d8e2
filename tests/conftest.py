"""Shared test settings and the whole small project that several rooms test with.

One thread per process, so that tests in parallel do not fight over the cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


import contextlib
import io
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from made_recipe import recipe_sections
from onnx_graphs import graphs  # noqa: F401 - a fixture
from tiny_models import tiny_clip, tiny_tokenizer
from video_files import write_video

from teachclip import precompute
from teachers.xpool import XPool

COLOURS = ("red", "blue")
SHAPES = ("circle", "square")


SLOW = (
    *(
        "pipeline",
        "demo",
        "docs",
        "shapes",
        "datasets",
        "pretraining",
        "data_check",
        "data/frames",
        "teachers",
        "onnx",
        "search",
        "server",
    ),
    *("integrations", "data/video/test_parts.py"),
    *(
        "studies/test_auto.py",
        "cli/test_python_api.py",
        "studies/test_study.py",
        "studies/test_trials.py",
        "studies/test_shapes_studies.py",
    ),
    *("diagnosis/test_diagnose.py", "training/test_loop.py", "training/test_trajectory.py"),
    *("training/test_float16_clip.py", "training/test_float16_study.py", "data/video/test_video.py"),
    *("data/video/test_video_damage.py", "data/video/test_workers.py", "data/video/test_probe.py"),
    *("models/test_student_families.py", "models/test_student_loading.py", "models/test_student_goldens.py"),
    *("models/test_backbone.py", "models/test_other_clients.py", "models/test_untrusted_folders.py"),
    *("models/test_preprocessing.py", "models/test_processing.py"),
)
"""Folders and files, below tests/, that start whole runs, processes, decoders or many models."""


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` does not run, and start with it, so that no worker ends long after the others."""
    here = Path(__file__).parent

    def is_slow(item):
        path = item.path.relative_to(here).as_posix()
        return any(path == slow or path.startswith(f"{slow}/") for slow in SLOW)

    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not is_slow(item))


@pytest.fixture(scope="session")
def made_project(tmp_path_factory):
    """Make the videos, the CLIP and the teacher once."""
    root = tmp_path_factory.mktemp("project")
    rows = ["video,caption,split"]
    (root / "videos").mkdir()
    for number in range(14):
        write_video(root / "videos" / f"clip{number}.mp4", frames=12, seed=number)
        split = "test" if number >= 11 else "train"
        for k in range(2):
            colour, shape = COLOURS[number % 2], SHAPES[(number // 2 + k) % 2]
            rows.append(f"clip{number}.mp4,a {colour} {shape},{split}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    clip = tiny_clip(text_layers=4, heads=1)
    clip.save_pretrained(root / "clip")
    tiny_tokenizer().save_pretrained(root / "clip")
    torch.manual_seed(0)
    torch.save(XPool.from_clip(tiny_clip(text_layers=4, heads=1, seed=1)).checkpoint(), root / "teacher.pth")
    return root


@pytest.fixture(scope="session")
def filled_stores(made_project, tmp_path_factory):
    """Fill the stores of the made project's recipe once; a recipe that can read them starts from a copy."""
    root = tmp_path_factory.mktemp("filled")
    with contextlib.redirect_stderr(io.StringIO()):  # or the first test to ask finds these lines among its own
        precompute(recipe_sections(made_project, root / "run", root / "stores"))
    return root / "stores"


@pytest.fixture
def project(made_project, tmp_path, request):
    """A recipe on the made project whose outputs go to a fresh folder. `write(**changes)` returns its path.

    Its stores are filled as far as the changes leave them valid. `write.fill = False` leaves them empty, and so
    does a test that names stores of its own.
    """

    def write(name="recipe.yaml", **sections) -> Path:
        usual = recipe_sections(made_project, tmp_path / "run", tmp_path / "stores")
        recipe = dict(usual)
        for section, values in sections.items():
            recipe[section] = {**recipe[section], **values} if isinstance(recipe.get(section), dict) else values
        if write.fill and "stores" not in sections and not (tmp_path / "stores").exists():
            copy_stores(request.getfixturevalue("filled_stores"), tmp_path / "stores", usual, recipe)
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    write.root, write.folder, write.fill = made_project, tmp_path, True
    return write


def copy_stores(filled: Path, stores: Path, usual: dict, recipe: dict) -> None:
    """Copy those of the filled stores that were made from what the recipe says too."""
    if any(recipe[section] != usual[section] for section in ("data", "frames", "text")):
        return
    names = ["frames"]
    if recipe["student"]["backbone"] == usual["student"]["backbone"]:
        names += [path.name for path in filled.glob("features-*")]
    if usual["teachers"][0] in recipe["teachers"] and "precision" not in recipe.get("teaching", {}):
        names += ["tokens-xpool", "relevance-xpool"]
    for name in names:
        shutil.copytree(filled / name, stores / name)
