"""The part of a model card that says what an ONNX folder holds and how far it is from its student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachclip.onnx.folder import OnnxConfig

_KEPT = {
    "float32": "float32",
    "float16": "float16; they are computed with as float32",
    "int8": "int8, matrices and embeddings; activations are quantised when they are computed",
}


def describe_folder(config: OnnxConfig, parity: Mapping[str, Any]) -> str:
    """Return Markdown: how to use the folder, inputs and outputs, and what `parity.json` holds, without a title."""
    text = config.text
    tokens = f"{text.pad_to} tokens" if text.pad_to else f"at most {text.max_tokens} tokens"
    video = config.video
    frames = video.frame_sampling.get("count")
    scaled = video.scale_to or video.size
    shape = "the short side is scaled" if video.resize == "crop" else "they are stretched to a square"
    lines = [
        _USE,
        *(["", _USE_VIDEO] if "video" in config.towers else []),
        *(
            "",
            f"Weights are stored as {_KEPT[config.precision]}. Vectors are L2-normalised, {config.dim} numbers each.",
        ),
        *("", "| file | inputs | outputs |", "|---|---|---|"),
        f"| `text.onnx` | token ids from `query.py` (texts, {tokens}) | `embeddings` (texts, {config.dim}) |",
    ]
    if "video" in config.towers:
        lines += [
            f"| `video.onnx` | `frames` uint8 RGB (videos, {frames}, 3, {video.size}, {video.size}); `frame_mask` "
            f"bool (videos, {frames}), False for padding | `embeddings` (videos, {config.dim}); `frame_weights` "
            f"(videos, {frames}), the frame attention |",
            "",
            f"Frames: {frames} per video, sampling `{video.frame_sampling.get('kind')}`; {shape} to {scaled} pixels "
            f"({video.resample}, antialiased, as PIL), then the middle {video.size} x {video.size} is cut. Pixels "
            "are normalised inside.",
        ]
    lines += ["", *_parity_table(config, parity)]
    return "\n".join(lines) + "\n"


def _parity_table(config: OnnxConfig, parity: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| `{tower}.onnx` | {parity[tower]['max_abs']:.1e} | {parity[tower]['min_cosine']:.6f} |"
        for tower in config.towers
    ]
    header = ["| compared with the student, seeded inputs | largest difference of a number | smallest cosine |"]
    return [*header, "|---|---:|---:|", *rows]


_USE = """## Use

Texts need `pip install numpy tokenizers onnxruntime` and this folder, no PyTorch:

```
python query.py "a man plays a drum"
```

```python
from query import encode  # query.py of this folder

texts = encode(["a man plays a drum"])  # (texts, dim) float32
```"""

_USE_VIDEO = """Video files need `pip install teachclip`, which decodes them as in training. THIS_FOLDER is this
folder.

```python
from teachclip import load_onnx

student = load_onnx("THIS_FOLDER")
videos = student.encode_video(["a.mp4", "b.mp4"])
scores = student.encode_text(["a man plays a drum"]) @ videos.T  # (texts, videos), higher is closer
```"""
