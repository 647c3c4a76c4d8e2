"""Students as ONNX that several tests read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FRAMES, tiny_student
from video_files import write_video

from teachclip import export_onnx
from teachclip.models.student import StudentModel

OPTIONS = {
    "published": {"temporal_layers": 1},
    "options": {
        "temporal_layers": 1,
        "attention": "sigmoid",
        "attention_input": "before",
        "attention_rescale": True,
        "adapters": ["frame", "pooled", "text"],
        "adapter_width": 16,
        "mask_padding": False,
    },
    "mean": {"temporal_layers": 0, "pooling": "mean"},
}


def student_with(options: dict[str, object]) -> StudentModel:
    """A tiny student with these options; adapters start as the identity, so theirs are spread out."""
    student = tiny_student(layers=1, **options)  # of more layers the same is traced again
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.heads.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return student


@pytest.fixture(scope="session", params=OPTIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentModel, Path]:
    """A student, and the ONNX folder that was written from it, for each set of options."""
    if request.param == "published":
        made: tuple[StudentModel, Path] = request.getfixturevalue("published")
        return made
    student = student_with(OPTIONS[request.param])
    folder = tmp_path_factory.mktemp("onnx") / request.param
    export_onnx(student, folder)
    return student, folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentModel, Path]:
    student = student_with(OPTIONS["published"])
    folder = tmp_path_factory.mktemp("onnx") / "published"
    export_onnx(student, folder)
    return student, folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real mp4 files of several lengths and sizes; the first has fewer frames than a student reads."""
    folder = tmp_path_factory.mktemp("clips")
    sizes = [(FRAMES - 2, 64, 64), (12, 64, 48), (30, 48, 64), (12, 64, 64), (20, 96, 64)]
    return [
        write_video(folder / f"clip{k}.mp4", frames=count, width=width, height=height, seed=k)
        for k, (count, width, height) in enumerate(sizes)
    ]
