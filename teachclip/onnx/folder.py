"""What an ONNX folder holds: its files, and `config.json` with all that decoding and tokenising need."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from teachclip.errors import CheckpointError

MODEL_TYPE, VERSION = "teachclip-onnx", 1
CONFIG, TOKENIZER, TEXT, VIDEO = "config.json", "tokenizer.json", "text.onnx", "video.onnx"
PARITY, CARD, QUERY = "parity.json", "README.md", "query.py"
WEIGHTS = ".data"
"""What follows the name of a tower's file in the name of its weights, where they are in a file of their own."""

FILES = (CONFIG, TOKENIZER, TEXT, VIDEO, TEXT + WEIGHTS, VIDEO + WEIGHTS, PARITY, CARD, QUERY)
"""What an ONNX folder may hold; one with anything else is never replaced."""

PRECISIONS = ("float32", "float16", "int8")
"""How weights are stored. float16 computes in float32; int8 multiplies matrices in int8."""

TOWERS = ("text", "video")
MOST_BYTES = 1 << 20
"""No `config.json` of ours is larger."""


@dataclass(frozen=True)
class TextSettings:
    """How texts become token ids; see `teachclip.onnx.query.TextEncoder`."""

    max_tokens: int
    pad_to: int | None
    pad_id: int
    unknown_id: int | None
    truncation_side: str
    split_special_tokens: bool


@dataclass(frozen=True)
class VideoSettings:
    """How files become frames, as of the student's processor: fields of `FrameSampling` and of `FrameTransform`."""

    frame_sampling: Mapping[str, Any]
    size: int
    resize: str
    resample: str
    scale_to: int | None


@dataclass(frozen=True)
class OnnxConfig:
    """The content of `config.json`.

    precision: one of `PRECISIONS`. dim: of the vectors. family: of the dual encoder, as transformers' `model_type`.
    fingerprint: of the student, as in an index (`student_fingerprint`). towers: those that are there.
    """

    precision: str
    dim: int
    family: str
    fingerprint: str
    towers: tuple[str, ...]
    text: TextSettings
    video: VideoSettings

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps({"model_type": MODEL_TYPE, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> OnnxConfig:
        """Read the configuration of a folder. Raises CheckpointError if it is none of ours, damaged or unfinished."""
        content = read_content(folder)
        if content is None or content.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"{folder}: is no ONNX folder of teachclip; `teachclip export --layout onnx` makes one"
            )
        if content.get("version") != VERSION:
            version = str(content.get("version"))[:20]
            raise CheckpointError(
                f"{folder / CONFIG}: has version {version}, this version of teachclip reads {VERSION}"
            )
        try:
            config = _checked(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / CONFIG}: {str(error)[:200]}; export the student again") from error
        for name in (TOKENIZER, *(f"{tower}.onnx" for tower in config.towers)):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: it has no {name}; export the student again")
        return config


def require_packages(*names: str) -> None:
    """Raise CheckpointError, with what to install, unless these optional packages are there."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise CheckpointError(f"a student as ONNX needs {', '.join(missing)}: pip install 'teachclip[onnx]'")


def is_onnx_folder(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder's `config.json` says that it is one of ours."""
    content = read_content(Path(folder))
    return content is not None and content.get("model_type") == MODEL_TYPE


def read_content(folder: Path) -> dict[str, Any] | None:
    """Return the JSON object in a folder's `config.json`, or None if there is none that can be read."""
    file = folder / CONFIG
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
            return None
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _checked(content: Mapping[str, Any]) -> OnnxConfig:
    """Return the configuration. Raises KeyError, TypeError or ValueError, with the key, for values that cannot be."""
    text, video = _part(content, "text"), _part(content, "video")
    towers = _value(content, "towers", list)
    if not towers or not all(tower in TOWERS for tower in towers):
        raise ValueError(f"towers is {towers}, allowed: {', '.join(TOWERS)}")
    return OnnxConfig(
        precision=_one_of(content, "precision", PRECISIONS),
        dim=_count(content, "dim"),
        family=_value(content, "family", str),
        fingerprint=_value(content, "fingerprint", str),
        towers=tuple(towers),
        text=TextSettings(
            max_tokens=_count(text, "max_tokens"),
            pad_to=None if text["pad_to"] is None else _count(text, "pad_to"),
            pad_id=_count(text, "pad_id", least=0),
            unknown_id=None if text["unknown_id"] is None else _count(text, "unknown_id", least=0),
            truncation_side=_one_of(text, "truncation_side", ("left", "right")),
            split_special_tokens=_value(text, "split_special_tokens", bool),
        ),
        video=VideoSettings(
            frame_sampling=_part(video, "frame_sampling"),
            size=_count(video, "size"),
            resize=_one_of(video, "resize", ("crop", "stretch")),
            resample=_one_of(video, "resample", ("bicubic", "bilinear")),
            scale_to=None if video["scale_to"] is None else _count(video, "scale_to"),
        ),
    )


def _part(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    return dict(_value(content, key, dict))


def _value(content: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in content:
        raise ValueError(f"it has no {key}")
    if not isinstance(content[key], kind):
        raise ValueError(f"{key} is {str(content[key])[:60]!r}, expected a {kind.__name__}")
    return content[key]


def _count(content: Mapping[str, Any], key: str, *, least: int = 1, most: int = 10**6) -> int:
    value = _value(content, key, int)
    if isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{key} is {value}, expected a whole number from {least} to {most}")
    return int(value)


def _one_of(content: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = str(_value(content, key, str))
    if value not in allowed:
        raise ValueError(f"{key} is {value[:60]!r}, allowed: {', '.join(allowed)}")
    return value
