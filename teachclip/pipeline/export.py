"""The compact student as a folder (weights, tokenizer, decoding settings, model card) or as one official file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import save_checkpoint
from teachclip.models.clip import quiet_loading
from teachclip.models.layouts import to_official_types
from teachclip.models.student import StudentModel, load_student, student_to_official
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.reports.tables import results_table

_METHOD = {"method_output_name": "pooler_output"}
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "modality_config": {
            "text": {"method": "get_text_features", **_METHOD},
            "video": {"method": "get_video_features", **_METHOD},
        },
        "module_output_name": "sentence_embedding",
    },
}
"""Files with which `SentenceTransformer(folder)` loads the student, after `import teachclip.models`."""


OWN_FILES = {
    *SENTENCE_TRANSFORMERS,
    *("README.md", "config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("vocab.txt", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
}
"""What an export may hold; a folder with anything else is never replaced."""


def export_student(
    recipe: RecipeSource,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    layout: str = "transformers",
    dtype: str = "float16",
) -> Path:
    """Export the student of a finished run to `out`: a folder, or with layout `official` one file.

    `recipe`, `overrides`: as of `distill`. Returns `out`. Raises CheckpointError if the run has no student yet.
    """
    recipe, out = load_recipe(recipe, overrides), Path(out)
    source = recipe.output / "student"
    if not (source / "config.json").exists() or not (recipe.output / "results.json").exists():
        raise CheckpointError(f"{source} holds no student; distil the recipe first")
    results = json.loads((recipe.output / "results.json").read_text(encoding="utf-8"))
    student = load_student(source)
    if layout == "official":
        write_official_file(student, out, dtype=dtype)
    else:
        write_student_folder(student, out, results=results, recipe=recipe, dtype=dtype)
    return out


def write_student_folder(
    student: StudentModel,
    folder: Path,
    *,
    results: Mapping[str, Any],
    recipe: Recipe,
    dtype: str = "float32",
) -> None:
    """Write the student, its processor and a model card to `folder`, whole or not at all.

    `dtype` is `float32` or `float16`. Raises CheckpointError if the folder cannot be written or holds something else.
    """
    if student.processor is None:
        raise CheckpointError("the student has no processor (tokenizer and decoding settings) to export")
    _check_folder(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        processor = student.processor
        with quiet_loading():
            student.to(getattr(torch, dtype)).save_pretrained(temporary)
            processor.save_pretrained(temporary)
        for name, content in SENTENCE_TRANSFORMERS.items():
            (temporary / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        (temporary / "README.md").write_text(model_card(results, recipe), encoding="utf-8")
        for path in temporary.rglob("*"):  # some writers make files that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            os.replace(folder, before)
        os.replace(temporary, folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        raise CheckpointError(f"{folder}: cannot write the student: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def write_official_file(student: StudentModel, path: Path, *, dtype: str = "float16") -> None:
    """Write the student as one file that the official code and `load_student` read: a flat state dict.

    `dtype`: `float16` stores CLIP's linear layers so, as the official runs do; everything else is float32. Raises
    CheckpointError if the official layout cannot tell this student, or if `path` is a folder or cannot be written.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; the official layout is one file, such as {path / 'best_model.bin'}"
        )
    state = student_to_official(student)
    save_checkpoint(to_official_types(state) if dtype == "float16" else state, path)


def _check_folder(folder: Path) -> None:
    """Raise CheckpointError unless `folder` is new, empty, or an export of ours with nothing else in it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    names = {path.name for path in folder.iterdir()}
    if names and names - OWN_FILES:
        other = ", ".join(sorted(names - OWN_FILES)[:3])
        raise CheckpointError(f"{folder} holds {other}, which is no export of ours; choose another folder")
    if names and SENTENCE_TRANSFORMERS.keys() - names:
        raise CheckpointError(f"{folder} holds another model; choose another folder")


def model_card(results: Mapping[str, Any], recipe: Recipe) -> str:
    """Write a model card in the Hub's format from measured results."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    names = {"recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10"}
    measured = [
        EvalResult(
            task_type="text-to-video-retrieval",
            task_name="Text-to-video retrieval",
            dataset_type=recipe.name,
            dataset_name=f"{recipe.name} (test)",
            metric_type=name,
            metric_name=label,
            metric_value=round(float(results["test"]["t2v"][name]), 2),
        )
        for name, label in names.items()
        if "test" in results
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["video-text-retrieval", "teachclip"],
        model_name=recipe.name,
        eval_results=measured or None,
    )
    teachers = ", ".join(teacher.label for teacher in recipe.teachers) or "none (undistilled)"
    body = _BODY.format(
        name=recipe.name,
        teachers=teachers,
        backbone=recipe.student.backbone,
        layers=recipe.student.temporal_layers,
        options=_options(recipe, results),
        frames=recipe.frames.count,
        sampling=recipe.frames.sampling,
        selected=results.get("selected_on", "validation"),
        seed=results.get("seed", recipe.seed),
        table=results_table([results]),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))


def _options(recipe: Recipe, results: Mapping[str, Any]) -> str:
    """Say what the student has or learned from beyond the paper."""
    student, losses = recipe.student, recipe.losses
    factor = results.get("temperature_scaling", {}).get("factor", 1)
    options = [f"{student.attention} frame attention"] if student.attention != "softmax" else []
    options += ["frame attention before the temporal transformer"] if student.attention_input != "after" else []
    options += ["rescaled input of frame attention"] if student.attention_rescale else []
    options += [f"pooling temperature divided by {factor:g}"] if factor != 1 else []
    options += [f"residual adapters: {', '.join(student.adapters)}"] if student.adapters else []
    options += ["frame-set distillation"] if losses.uses_frame_sets else []
    if recipe.teachers:
        options += ["frame targets of the whole video"] if losses.frame_text.targets == "video" else []
        options += ["teachers by confidence"] if recipe.teaching.weighting == "confidence" else []
    return "".join(f"; {text}" for text in options)


_BODY = """
# {name}

A compact model for video search by text, trained with teachclip (the TeachCLIP method, CVPR 2024).
A video is one vector, a query is one vector, and their dot product is the score.

- Teachers: {teachers}
- Backbone: `{backbone}`; temporal transformer of {layers} blocks; attentional frame-feature aggregation{options}
- Frames: {frames} per video, sampling `{sampling}`
- Checkpoint, and pooling temperature if scaled, selected on: {selected}; one training run, seed {seed}

```python
from teachclip import load_student

student = load_student("THIS_FOLDER")
videos = student.encode_video(["a.mp4", "b.mp4"])
texts = student.encode_text(["a man plays a drum"])
scores = texts @ videos.T  # (texts, videos), higher is closer
```

## Measured results

{table}
"""
