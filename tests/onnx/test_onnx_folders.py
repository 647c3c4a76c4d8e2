"""Unfinished, damaged and hostile ONNX folders: one short line each, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from teachclip import load_onnx, load_student
from teachclip.errors import CheckpointError
from teachclip.models.student import StudentModel
from teachclip.onnx.folder import is_onnx_folder

NESTED = b"[" * 100_000


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        loaded = load_onnx(folder)
        loaded.encode_text(["a"])
        loaded.encode_video([np.zeros((2, 3, 40, 40), dtype=np.uint8)], progress=False)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and len(message) < 700, message[:300]
    return message


@pytest.fixture
def folder(published: tuple[StudentModel, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(published[1], tmp_path / "student"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "text.onnx", "video.onnx"])
@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"3", b"\xff" * 64, NESTED, b'{"model_type": "teachclip-onnx"}']
)
def test_a_damaged_file_is_one_line(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    refused(folder)


@pytest.mark.parametrize("name", ["text.onnx", "video.onnx"])
def test_a_truncated_graph_is_one_line(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this version of teachclip reads 1"),
        ({"model_type": "other"}, "is no ONNX folder"),
        ({"dim": 31}, "is not the tower that config.json describes"),
        ({"dim": "x"}, "dim is 'x', expected a int"),
        ({"dim": -1}, "dim is -1, expected a whole number"),
        ({"dim": True}, "dim is True"),
        ({"towers": []}, "towers is"),
        ({"towers": ["audio"]}, "towers is"),
        ({"precision": "int4"}, "precision is 'int4', allowed: float32, float16, int8"),
        ({"text": 3}, "text is '3'"),
        ({"text": {"pad_id": -1}}, "pad_id is -1"),
        ({"text": {"max_tokens": 10**9}}, "max_tokens is"),
        ({"text": {"truncation_side": "up"}}, "truncation_side is 'up'"),
        ({"video": {"frame_sampling": {"kind": "never", "count": 4}}}, "frame_sampling: "),
        ({"video": {"frame_sampling": {"count": 4, "kinds": "x"}}}, "frame_sampling: "),
        ({"video": {"size": 10**9}}, "size is"),
        ({"video": {"resample": "nearest"}}, "resample is"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_setting_that_cannot_be_is_one_line(folder: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    assert message in refused(folder)


@pytest.mark.parametrize("key", ["dim", "text", "video", "towers", "fingerprint"])
def test_a_setting_that_is_not_there_is_one_line(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"it has no {key}" in refused(folder)


def test_another_graph_is_refused(folder: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [value], [out])
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), folder / "text.onnx"
    )
    assert "is not the tower" in refused(folder)


def test_weights_outside_of_the_folder_are_not_read(folder: Path) -> None:
    model = onnx.load(folder / "text.onnx")
    secret = folder.parent / "secret.bin"
    secret.write_bytes(b"\0" * (1 << 20))
    weight = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    (folder / "text.onnx").write_bytes(model.SerializeToString())
    refused(folder)


def test_load_student_says_that_it_is_another_kind(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="model type 'teachclip-onnx' cannot be loaded as a student"):
        load_student(folder)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert not is_onnx_folder(folder)
    assert "is no ONNX folder" in refused(folder)
    assert not is_onnx_folder(folder / "nowhere") and not is_onnx_folder(folder.parent)
