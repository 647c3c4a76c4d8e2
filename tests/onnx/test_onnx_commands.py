"""`teachclip export --layout onnx` and `teachclip evaluate` of what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachclip import load_onnx, load_student
from teachclip.cli.main import main


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_distilled_student_is_exported_evaluated_and_asked(
    project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = project(), project.folder / "onnx"
    assert run("distill", recipe) == 0
    capsys.readouterr()
    assert run("export", recipe, "--layout", "onnx", "--out", out, "--evaluate") == 0
    printed = capsys.readouterr().err
    assert "text.onnx differs from the student by at most" in printed and "MB, float32)" in printed
    assert "Skipping" not in printed and "Warning" not in printed
    card = (out / "README.md").read_text()
    assert "library_name: onnx" in card and "model-index" in card and "| student | test | text to video |" in card
    assert "| student, ONNX float32 | test | text to video | 6 | 3 |" in card
    assert str(project.root) not in card
    measured = json.loads((out / "parity.json").read_text())["test"]
    results = [project.folder / name for name in ("student.json", "onnx.json")]
    post = ("--post", "qb_norm")
    assert run("evaluate", recipe, "--out", results[0], *post) == 0
    assert run("evaluate", recipe, "--model", out, "--out", results[1], *post) == 0
    student, found = (json.loads(path.read_text()) for path in results)
    assert found["model"] == str(out)
    for direction in ("t2v", "v2t"):
        assert found["test"][direction] == measured[direction]
        # of six captions two pairs are alike, whose order is a matter of rounding, which differs by processor
        one = {"t2v": 100 / 6, "v2t": 100 / 3}[direction]
        for key, value in student["test"][direction].items():
            assert found["test"][direction][key] == pytest.approx(value, abs=1 if "rank" in key else one + 0.1), key
    assert found["test"]["post_processed"] == student["test"]["post_processed"]
    capsys.readouterr()
    assert run("evaluate", recipe, "--model", out, "--post", "dual_softmax") == 2  # the scale is not in the folder
    assert "does not hold the student's logit scale" in capsys.readouterr().err.splitlines()[-1]
    video = project.root / "videos" / "clip3.mp4"
    loaded, torch_student = load_onnx(out), load_student(project.folder / "run" / "student")
    np.testing.assert_allclose(
        loaded.encode_video(video, progress=False, workers=1),
        torch_student.encode_video(video, progress=False, workers=1),
        atol=1e-5,
        rtol=0,
    )
    assert run("export", recipe, "--layout", "onnx", "--out", out, "--only", "text", "--precision", "float16") == 0
    assert not (out / "video.onnx").exists()
    assert "model-index" not in (out / "README.md").read_text()  # no result is claimed for what was not measured
    capsys.readouterr()
    assert run("evaluate", recipe, "--model", out) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("it was exported with --only text")
    assert run("export", recipe, "--layout", "onnx", "--out", out, "--only", "text", "--evaluate") == 2
    assert capsys.readouterr().err.startswith("error: the text tower alone finds no videos")
    assert run("export", recipe, "--out", out) == 2  # nor is an ONNX folder replaced by another layout
    assert "holds" in capsys.readouterr().err and load_onnx(out).encode_text("a red circle").shape == (1, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "onnx", "--dtype", "float16"], "--dtype is not for --layout onnx"),
        (["--precision", "int8"], "--precision is not for --layout transformers"),
        (["--layout", "official", "--only", "text"], "--only is not for --layout official"),
        (["--evaluate"], "--evaluate is not for --layout transformers"),
        (["--layout", "onnx", "--only", "video"], "--only: invalid choice: 'video'"),
    ],
)
def test_options_of_another_layout_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "shapes_xpool", "--out", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
