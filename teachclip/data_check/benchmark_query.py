"""What one text query costs beside the bare text tower, and from the start of a process: with torch, with ONNX."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from teachclip.data.video.sampling import FrameSampling
from teachclip.data_check.benchmark import machine_facts
from teachclip.errors import RecipeError
from teachclip.models.backbone import text_features
from teachclip.models.processing import StudentProcessor
from teachclip.models.student import StudentModel
from teachclip.onnx.export import export_onnx
from teachclip.onnx.student import load_onnx
from teachclip.pipeline.benchmark_parts import FRAMES, SIZES, TOKENS
from teachclip.pretraining.tokenizer import build_tokenizer
from teachclip.registry import closest

QUERY, WARM_QUERIES = "a red circle", 200
STARTS = {
    "torch alone": "import torch",
    "torch and the CLIP of transformers": "import torch; from transformers import CLIPModel, CLIPTokenizer",
    "student, one query": "from teachclip import load_student; "
    "load_student({student!r}).encode_text({query!r}, progress=False)",
    "onnxruntime alone": "import onnxruntime, tokenizers, numpy",
    "ONNX folder, one query": "from teachclip.onnx.student import load_onnx; "
    "load_onnx({onnx!r}).encode_text({query!r}, progress=False)",
}
"""What a process does from its start to its end."""


def benchmark_query(size: str = "tiny", *, rounds: int = 5, json_file: Path | None = None) -> dict[str, Any]:
    """Measure `encode_text` of one text against the tower alone, and cold starts; print and return them.

    The student has random weights. `size`: of CLIP, one of `SIZES`. Raises RecipeError for an unknown size.
    """
    if size not in SIZES:
        raise RecipeError(f"{size!r} cannot be measured; known: {', '.join(SIZES)}{closest(size, SIZES)}")
    with tempfile.TemporaryDirectory(prefix="teachclip-bench-") as folder:
        student, onnx = Path(folder) / "student", Path(folder) / "onnx"
        model = _student(size)
        model.save_pretrained(student)
        export_onnx(model, onnx, only="text")
        warm = _warm(model, onnx, WARM_QUERIES)
        cold = _cold({"student": str(student), "onnx": str(onnx), "query": QUERY}, rounds)
    result = {
        "machine": machine_facts(),
        "size": size,
        "threads": torch.get_num_threads(),
        "warm": warm,
        "cold": cold,
    }
    print("\n".join(_table(result)), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _student(size: str) -> StudentModel:
    torch.manual_seed(0)
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in SIZES[size].items()}
    tokenizer = build_tokenizer(QUERY.split(), TOKENS)
    text = {"vocab_size": 49_408 if size != "tiny" else 1000, **config.get("text_config", {})}
    config["text_config"] = text | {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    student = StudentModel.from_backbone(CLIPModel(CLIPConfig(**config)), frames=FRAMES).eval()
    side = student.backbone.config.vision_config.image_size
    student.processor = StudentProcessor(tokenizer, FrameSampling("intervals", FRAMES), size=side, max_tokens=TOKENS)
    return student


@torch.no_grad()
def _warm(student: StudentModel, onnx: Path, queries: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of each way to encode one text, the ways in turn, and what a wrapper takes of its tower."""
    assert student.processor is not None
    inputs = student.processor(text=[QUERY])
    artefact = load_onnx(onnx, threads=torch.get_num_threads())
    feed = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
    ways: dict[str, Callable[[], object]] = {
        "bare text tower": lambda: torch.nn.functional.normalize(
            text_features(student.backbone, inputs["input_ids"], inputs["attention_mask"]), dim=-1
        ),
        "encode_text": lambda: student.encode_text(QUERY, progress=False),
        "bare ONNX session": lambda: artefact.text_encoder.run(*feed),
        "encode_text of the ONNX folder": lambda: artefact.encode_text(QUERY, progress=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(queries + 5):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number >= 5:
                times[name].append(1e3 * (time.perf_counter() - started))
    medians, bare = {}, ""
    for name, taken in times.items():
        bare = name if name.startswith("bare") else bare
        ratios = np.array(taken) / np.array(times[bare])
        low, middle, high = statistics.quantiles(taken, n=4)
        medians[name] = {"ms": middle, "low": low, "high": high, "of_tower": float(np.median(ratios))}
    return medians


def _cold(names: dict[str, str], rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds of processes from their start to their end, by the clock and of CPU; medians."""
    wall: dict[str, list[float]] = {name: [] for name in STARTS}
    cpu: dict[str, list[float]] = {name: [] for name in STARTS}
    for number in range(rounds + 1):
        for name, code in STARTS.items():
            before, started = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-c", code.format(**names)], check=True, stderr=subprocess.DEVNULL)
            after = os.times()
            if number:  # the first round reads files from the disk
                wall[name].append(time.perf_counter() - started)
                spent = after.children_user + after.children_system
                cpu[name].append(spent - before.children_user - before.children_system)
    return {
        name: {"seconds": statistics.median(wall[name]), "low": min(wall[name]), "cpu": statistics.median(cpu[name])}
        for name in STARTS
    }


def _table(result: dict[str, Any]) -> list[str]:
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"machine: {machine}",
        f"one query, {result['size']}, {result['threads']} threads",
        "| way | ms (quartiles) | of its tower |",
        "|---|---:|---:|",
    ]
    for name, measured in result["warm"].items():
        times = f"{measured['ms']:.2f} ({measured['low']:.2f} - {measured['high']:.2f})"
        lines.append(f"| {name} | {times} | {measured['of_tower']:.3f} |")
    lines += ["| process, cold | seconds (least) | of CPU |", "|---|---:|---:|"]
    for name, measured in result["cold"].items():
        lines.append(f"| {name} | {measured['seconds']:.2f} ({measured['low']:.2f}) | {measured['cpu']:.2f} |")
    return lines
