"""The model card of a student: how to load it, what it was made of, and what was measured, in the Hub's format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teachclip.console import visible
from teachclip.models.student_folder import read_card
from teachclip.onnx.card import describe_folder
from teachclip.onnx.folder import OnnxConfig
from teachclip.recipe.schema import Recipe
from teachclip.reports.tables import COLUMNS, DIRECTIONS, code_text, markdown_text, result_notes


def model_card(results: Mapping[str, Any], recipe: Recipe) -> str:
    """Write a model card from measured results, without paths of this machine.

    `results`: of a run; `zero_shot` in it are results by split of the backbone alone, with mean pooling.
    """
    from huggingface_hub import ModelCard

    _, backbone = _backbone(recipe.student.backbone)
    teachers = ", ".join(markdown_text(teacher.label) for teacher in recipe.teachers) or "none (undistilled)"
    body = _BODY.format(
        name=markdown_text(recipe.name),
        teachers=teachers,
        backbone=code_text(backbone),
        license=_licenses(recipe),
        layers=recipe.student.temporal_layers,
        options=_options(recipe, results),
        frames=recipe.frames.count,
        sampling=recipe.frames.sampling,
        selected=_selection(results),
        seed=results.get("seed", recipe.seed),
        table="\n".join(_table(results)),
        **_vectors(recipe.student.vectors),
    )
    return str(ModelCard(f"---\n{_front_matter(results, recipe, 'transformers')}\n---\n{body}"))


def onnx_card(
    results: Mapping[str, Any],
    recipe: Recipe,
    config: OnnxConfig,
    parity: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
) -> str:
    """Write the card of an ONNX folder: as `model_card`, with what `describe_folder` says of the files.

    `results`: of the student that was exported. `measured`: of the folder itself; without them the student's results
    are shown, and claimed for a float32 export alone.
    """
    from huggingface_hub import ModelCard

    claimed = measured or (results if config.precision == "float32" else {})
    head = _ONNX.format(name=markdown_text(recipe.name), license=_licenses(recipe))
    tables = ["## Measured results", "", *_table(measured)] if measured else []
    tables += ["", "## Measured results of the student before export", "", *_table(results)]
    body = "\n".join([head, describe_folder(config, parity), *tables])
    return str(ModelCard(f"---\n{_front_matter(claimed, recipe, 'onnx')}\n---\n{body}\n"))


def _front_matter(results: Mapping[str, Any], recipe: Recipe, library: str) -> str:
    """Return the part of a card that the Hub reads; `library`: the Hub's name of what loads the model."""
    from huggingface_hub import EvalResult, ModelCardData

    name = visible(" ".join(recipe.name.split()))
    sources = [source for source in (recipe.student.backbone, recipe.student.text_backbone) if source]
    hub_ids = [hub_id for hub_id in (_backbone(source)[0] for source in sources) if hub_id]
    measured = [
        EvalResult(
            task_type="text-to-video-retrieval",
            task_name="Text-to-video retrieval",
            dataset_type=name,
            dataset_name=f"{name} (test)",
            metric_type=metric,
            metric_name=COLUMNS[metric],
            metric_value=round(float(results["test"]["t2v"][metric]), 2),
        )
        for metric in ("recall_at_1", "recall_at_5", "recall_at_10")
        if "agreement_with" not in results.get("test", {"agreement_with": ()})
    ]
    data = ModelCardData(
        license=recipe.card.license,
        base_model=hub_ids[0] if len(hub_ids) == 1 else hub_ids or None,
        language=recipe.card.language or None,
        datasets=recipe.card.datasets or None,
        library_name=library,
        pipeline_tag="feature-extraction",
        tags=["video-text-retrieval", "teachclip"],
        model_name=name,
        eval_results=measured or None,
    )
    return data.to_yaml()


def _backbone(source: str) -> tuple[str | None, str]:
    """Return the hub id of a backbone, or None for a file or folder, and the name that a card may tell."""
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None and not Path(source).exists()
    return (source, source) if is_id else (None, re.split(r"[\\/]", source.rstrip("\\/"))[-1])


def _licenses(recipe: Recipe) -> str:
    """Say which licence the student has, and which its backbone names in its own card."""
    own, student = recipe.card.license, recipe.student
    parts = [f"this model: {code_text(own)}" if own else "none is claimed for this model"]
    parts.append(f"its backbone: {_license_of(student.backbone)}")
    parts += [f"its text encoder: {_license_of(student.text_backbone)}"] if student.text_backbone else []
    return "; ".join(parts)


def _license_of(source: str) -> str:
    """Return the licence that the card of a model names."""
    header = (read_card(source) or "")[:10_000].split("\n---")[0]
    known = re.search(r"^license: *['\"]?([\w.-]+)", header, re.MULTILINE)
    return code_text(known[1]) if known else "unknown here, see where you got it"


def _options(recipe: Recipe, results: Mapping[str, Any]) -> str:
    """Say what the student has or learned from beyond the paper."""
    student, losses = recipe.student, recipe.losses
    factor = results.get("temperature_scaling", {}).get("factor", 1)
    share = results.get("wise_ft", {}).get("share", 1)
    options = []
    if student.text_backbone is not None:
        options.append(f"text encoder {code_text(_backbone(student.text_backbone)[1])}, taught to replace its own")
    options += [f"{student.attention} frame attention"] if student.attention != "softmax" else []
    options += ["frame attention before the temporal transformer"] if student.attention_input != "after" else []
    options += ["rescaled input of frame attention"] if student.attention_rescale else []
    options += [f"pooling temperature divided by {factor:g}"] if factor != 1 else []
    spared = "" if losses.contrastive.teaches_adapters else ", not taught by captions"
    options += [f"residual adapters: {', '.join(student.adapters)}{spared}"] if student.adapters else []
    options += [f"prefixes of embeddings: {', '.join(map(str, student.matryoshka))}"] if student.matryoshka else []
    options += ["frame-set distillation"] if losses.uses_frame_sets else []
    options += ["captions with swapped clauses as negatives"] if losses.contrastive.swapped_clauses else []
    options += ["joined clips"] if losses.joined_clips.is_used else []
    options += _finetuning(recipe)
    options += [f"mean of the weights, decay {recipe.train.ema:g}"] if recipe.train.ema else []
    members = sum(student["in_mean"] for student in results.get("soup", {}).get("students", ()))
    options += [f"mean of {members} students"] if members else []
    options += [f"encoders {share:g} finetuned, {1 - share:g} as before"] if share != 1 else []
    if recipe.teachers:
        beyond = losses.video_text.is_used and losses.video_text.more_texts
        options += [f"relevance of {beyond} further texts a step"] if beyond else []
        options += ["softer video-text relevance"] if losses.video_text.teacher_temperature > 1 else []
        options += ["sharper video-text relevance"] if losses.video_text.teacher_temperature < 1 else []
        direction = losses.video_text.direction
        options += [f"video-text relevance of {direction} alone"] if direction != "both" else []
        options += ["frame relevance sharpened where it is flat"] if losses.frame_text.spread else []
        options += ["frame targets of the whole video"] if losses.frame_text.targets == "video" else []
        options += ["teachers by confidence"] if recipe.teaching.weighting == "confidence" else []
    return "".join(f"; {text}" for text in options)


def _finetuning(recipe: Recipe) -> list[str]:
    """Say how encoders were held back, where they trained."""
    train, optimizer = recipe.train, recipe.optimizer
    options = [f"LoRA of rank {train.lora_rank}, merged"] if train.encoders == "lora" else []
    options += [f"encoders frozen for the first {train.frozen_steps} steps"] if train.frozen_steps else []
    options += [f"rates of encoder layers times {optimizer.layer_decay:g}"] if optimizer.layer_decay != 1 else []
    options += [f"encoders held near their start, {optimizer.l2_start:g}"] if optimizer.l2_start else []
    return options


def _vectors(count: int) -> dict[str, str]:
    """Return what the card says of the vectors of a video, and of clients that take one alone."""
    if count == 1:
        return {
            "what": "A video is one vector, a query is one vector, and their dot product is the score.",
            "score": "texts @ videos.T",
            "clients": "transformers and with Sentence Transformers",
            "sentence": _SENTENCE,
        }
    return {
        "what": f"A video is {count} vectors, a query is one, and the largest of their dot products is the score.",
        "score": "(texts @ videos.flatten(0, 1).T).unflatten(1, videos.shape[:2]).amax(-1)",
        "clients": "transformers (Sentence Transformers takes one vector per video alone)",
        "sentence": "",
    }


def _selection(results: Mapping[str, Any]) -> str:
    """Say how the checkpoint and the pooling temperature were chosen."""
    split = results.get("selected_on", "validation")
    if results.get("selected_by") != "last step":
        return f", and pooling temperature if scaled, selected on: {split}"
    return f": the last step, as {split} has too few videos to select on; pooling temperature if scaled chosen on it"


def _table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of results: the student, its backbone alone, and a random order."""
    yield "| model | split | direction | queries | among | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|---|---|---:|---:|" + "---:|" * len(COLUMNS)
    zero_shot = results.get("zero_shot", {})
    for split in ("validation", "test"):
        if split not in results:
            continue
        numbers = {"t2v": ("captions", "videos"), "v2t": ("videos", "captions")}
        for direction, label in DIRECTIONS.items():
            if direction not in results[split]:
                continue
            queries, among = (results[split][name] for name in numbers[direction])
            rows = {markdown_text(str(results["model"])): results[split][direction]}
            if split in zero_shot:
                rows["zero-shot mean pooling"] = zero_shot[split][direction]
            if direction == "t2v":  # a video has several captions, in data of its own number
                rows["chance"] = _chance(among)
            for model, metrics in rows.items():
                cells = " | ".join(f"{metrics[name]:.1f}" for name in COLUMNS)
                yield f"| {model} | {split} | {label} | {queries:,} | {among:,} | {cells} |"
    for note in result_notes([results]):
        yield f"\n{markdown_text(note)}"


def _chance(candidates: int) -> dict[str, float]:
    """Return the expected metrics of a random order of candidates, one of which is right."""
    recalls = {
        name: min(100.0, 100 * int(name.rsplit("_", 1)[1]) / candidates) for name in COLUMNS if "recall" in name
    }
    return {**recalls, "median_rank": (candidates + 1) / 2, "mean_rank": (candidates + 1) / 2}


_BODY = """
# {name}

A compact model for video search by text, trained with teachclip (the TeachCLIP method, CVPR 2024).
{what}

- Teachers: {teachers}
- Backbone: {backbone}; temporal transformer of {layers} blocks; attentional frame-feature aggregation{options}
- Licence of {license}
- Frames: {frames} per video, sampling `{sampling}`
- Checkpoint{selected}; one training run, seed {seed}

## Use

`pip install teachclip` first. THIS_FOLDER is this folder, or the id of this repository.

```python
from teachclip import load_student

student = load_student("THIS_FOLDER")
videos = student.encode_video(["a.mp4", "b.mp4"])
texts = student.encode_text(["a man plays a drum"])
scores = {score}  # (texts, videos), higher is closer
```

With {clients}, after `import teachclip`; with `trust_remote_code=True` no import is
needed:

```python
import teachclip
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("THIS_FOLDER"), AutoProcessor.from_pretrained("THIS_FOLDER")
scores = model(**processor(text=["a man plays a drum"], videos=["a.mp4", "b.mp4"])).logits_per_text
```
{sentence}
## Measured results

{table}
"""

_SENTENCE = """
```python
import teachclip
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("THIS_FOLDER")
scores = model.encode(["a man plays a drum"]) @ model.encode([{"video": "a.mp4"}, {"video": "b.mp4"}]).T
```
"""

_ONNX = """
# {name}, as ONNX

A compact model for video search by text, trained with teachclip (the TeachCLIP method, CVPR 2024).
A video is one vector, a query is one vector, and their dot product is the score.

- Licences: {license}
"""
