"""Damaged and hostile folders of models: one short line each, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_student

from teachclip.errors import CheckpointError
from teachclip.models.backbone import load_backbone
from teachclip.models.student import load_student


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "student"
    tiny_student().save_pretrained(folder)
    return folder


NESTED = b"[" * 100_000
FILES = {
    "config.json": [
        *(b"", b"[]", b"3", b"null", b'"x"', b"\xff", NESTED),
        *(b'{"model_type": [1]}', b'{"model_type": "clip", "text_config": 3}'),
    ],
    "processor_config.json": [NESTED, b"3"],
    "tokenizer.json": [NESTED, b"{}", b'{"model": {"type": "BPE", "dropout": true}}'],
    "tokenizer_config.json": [NESTED, b"\xff"],
    "model.safetensors": [b"", NESTED, b"\xff" * 16],
}
VALUES = {
    "adapters": [None, -1, True],
    "backbone_config": [-1, "x", [1]],
    "dtype": ["x", [1]],
    "max_frames": [10**15],
    "output_hidden_states": ["x", 3.5],
    "pooling_temperature": [None, 10**400, float("inf"), "x", [1]],
    "temporal_activation": [[], {}],
    "temporal_layers": [10**400],
}


def check_refusal(folder: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_student(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message and len(message) < 700, message[:300]


@pytest.mark.parametrize(
    ("name", "content"), [(n, c) for n, cs in FILES.items() for c in cs], ids=lambda v: str(v)[:24]
)
def test_a_damaged_file_of_a_folder_is_one_line(made: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "student"))
    (folder / name).write_bytes(content)
    check_refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, vs in VALUES.items() for v in vs], ids=lambda v: str(v)[:24]
)
def test_a_hostile_setting_of_a_folder_is_one_line(made: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "student"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    check_refusal(folder)
    with pytest.raises(CheckpointError):
        load_backbone(folder)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("key", ["output_hidden_states", "output_attentions"])
def test_a_hostile_setting_of_an_encoder_is_one_line(made: Path, tmp_path: Path, part: str, key: str) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "student"))
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"][part][key] = float("inf")
    (folder / "config.json").write_text(json.dumps(config))
    check_refusal(folder)


@pytest.mark.parametrize("key", ["max_tokens", "pad_to", "pad_id"])
@pytest.mark.parametrize("value", [float("inf"), "x", True, [1], -1])
def test_a_hostile_setting_of_a_processor_is_one_line(made: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "student"))
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**config, key: value}))
    check_refusal(folder)
