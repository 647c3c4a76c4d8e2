"""Write a student as an ONNX folder, whole or not at all, and measure how far it is from the student."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from teachclip.errors import CheckpointError
from teachclip.models.modeling import StudentModel, evaluating
from teachclip.onnx.card import describe_folder
from teachclip.onnx.folder import (
    CARD,
    CONFIG,
    FILES,
    PARITY,
    PRECISIONS,
    QUERY,
    TEXT,
    TOKENIZER,
    TOWERS,
    VIDEO,
    OnnxConfig,
    TextSettings,
    VideoSettings,
    is_onnx_folder,
    require_packages,
)
from teachclip.onnx.graphs import graph_of, store_as
from teachclip.onnx.towers import TextTower, VideoTower, exportable
from teachclip.search.provenance import student_fingerprint
from teachclip.store.folders import check_replaceable, replaced_folder

Card = Callable[[OnnxConfig, Mapping[str, Any]], str]
"""Writes the model card from the configuration and the content of `parity.json`."""


def export_onnx(
    student: StudentModel,
    folder: str | Path,
    *,
    precision: str = "float32",
    only: str | None = None,
    card: Card | None = None,
) -> dict[str, Any]:
    """Write a student to `folder` as ONNX files; see `teachclip/onnx/README.md` for what it holds.

    `precision` of the stored weights: `float32`, `float16` or `int8`. `only`: `text` writes no video tower, for a
    server that takes queries alone. Returns the content of `parity.json`, which is measured on what was written.
    Raises CheckpointError if the student cannot be exported, if a float32 export differs from the student by more
    than 1e-5, and if the folder cannot be written or holds something else; then nothing is written.
    """
    require_packages("onnx", "onnxruntime", "onnxscript")
    from teachclip.onnx.query import ArtefactError

    if precision not in PRECISIONS or only not in (None, "text"):
        raise CheckpointError(
            f"precision is {precision!r} and only is {only!r}; allowed: {', '.join(PRECISIONS)}; text"
        )
    if student.config.vectors > 1 and only is None:
        raise CheckpointError(
            f"the student has {student.config.vectors} vectors per video, which an ONNX folder cannot hold yet; "
            "its text tower alone can be exported: --only text"
        )
    folder = Path(os.path.realpath(os.path.expanduser(folder)))
    check_replaceable(folder, FILES, is_onnx_folder)
    if student.dtype != torch.float32 or student.device.type != "cpu":
        student = copy.deepcopy(student).to("cpu", torch.float32)
    config = _config(student, precision, only)
    try:
        with replaced_folder(folder) as temporary, evaluating(student), exportable(student):
            _write_settings(student, config, temporary)
            parity = {"precision": precision, **_write_towers(student, config, temporary)}
            (temporary / PARITY).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
            (temporary / CARD).write_text((card or describe_folder)(config, parity), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot write the student: {error}") from error
    except ArtefactError as error:
        raise CheckpointError(f"the exported student does not run: {str(error)[:300]}") from error
    return parity


def _config(student: StudentModel, precision: str, only: str | None) -> OnnxConfig:
    """Return the configuration. Raises CheckpointError for a student without a processor or a tokenizer of files."""
    processor: Any = student.processor
    if processor is None:
        raise CheckpointError("the student has no processor (tokenizer and decoding settings) to export")
    tokenizer = processor.tokenizer
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        kind = type(tokenizer).__name__
        raise CheckpointError(f"the tokenizer is a {kind}, which works in Python alone; ONNX needs a tokenizer.json")
    text = TextSettings(
        max_tokens=processor.max_tokens,
        pad_to=processor.pad_to,
        pad_id=processor.pad_id,
        unknown_id=tokenizer.unk_token_id,
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=bool(tokenizer.split_special_tokens),
    )
    video = VideoSettings(
        frame_sampling=dict(processor.frame_sampling),
        size=processor.size,
        resize=processor.transform.resize,
        resample=processor.transform.resample,
        scale_to=processor.scale_to,
    )
    return OnnxConfig(
        precision=precision,
        dim=student.config.width,
        family=student.config.backbone_config.model_type,
        fingerprint=student_fingerprint(student),
        towers=TOWERS if only is None else (only,),
        text=text,
        video=video,
    )


def _write_settings(student: StudentModel, config: OnnxConfig, folder: Path) -> None:
    """Write all but the towers. The file of the tokenizer cuts texts by itself, whatever was called before."""
    from tokenizers import Tokenizer

    processor: Any = student.processor
    tokenizer = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(config.text.max_tokens, direction=config.text.truncation_side)
    tokenizer.save(str(folder / TOKENIZER))
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(QUERY), folder / QUERY)


def _write_towers(student: StudentModel, config: OnnxConfig, folder: Path) -> dict[str, Any]:
    """Write the towers, one after the other as each needs the memory of its weights, and measure them."""
    from teachclip.onnx.parity import (
        check_parity,
        check_tokens,
        example_texts,
        example_videos,
        measure_text,
        measure_video,
    )
    from teachclip.onnx.query import TextTokenizer

    alike = check_tokens(student, TextTokenizer(folder, asdict(config.text)))
    parity: dict[str, Any] = {"strings_tokenised_alike": alike}
    text = TextTower(student)
    ids, mask = example_texts(student)
    inputs = {
        name: value for name, value in (("input_ids", ids), ("attention_mask", mask)) if name in text.input_names
    }
    axes = {0: "texts"} if text.full_length else {0: "texts", 1: "tokens"}
    graph = graph_of(
        text, inputs, ["embeddings"], dynamic={**dict.fromkeys(inputs, axes), "embeddings": {0: "texts"}}
    )
    store_as(graph, config.precision, folder / TEXT)
    del graph
    parity["text"] = check_parity(TEXT, measure_text(text, folder), config.precision)
    if "video" not in config.towers:
        return parity
    processor: Any = student.processor
    video = VideoTower(student, processor.mean, processor.std)
    frames, frame_mask = example_videos(student)
    names = ("frames", "frame_mask", "embeddings", "frame_weights")
    graph = graph_of(
        video,
        {"frames": frames[:2], "frame_mask": frame_mask[:2]},
        names[2:],
        dynamic={name: {0: "videos"} for name in names},
    )
    store_as(graph, config.precision, folder / VIDEO)
    del graph
    parity["video"] = check_parity(VIDEO, measure_video(video, folder), config.precision)
    return parity
