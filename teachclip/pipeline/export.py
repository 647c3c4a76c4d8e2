"""The compact student as a folder (weights, tokenizer, decoding settings, model card) or as one official file."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from teachclip.errors import CheckpointError
from teachclip.models.checkpoints import save_checkpoint
from teachclip.models.clip import quiet_loading
from teachclip.models.layouts import to_official_types
from teachclip.models.student import StudentConfig, StudentModel, load_student, student_to_official
from teachclip.models.student_folder import CARD_FILE, CODE_FILE, SENTENCE_TRANSFORMERS
from teachclip.onnx.export import export_onnx
from teachclip.onnx.folder import CARD as ONNX_CARD
from teachclip.onnx.folder import PARITY, TOWERS, OnnxConfig
from teachclip.pipeline.conditions import as_trained
from teachclip.pipeline.evaluate import evaluate
from teachclip.pipeline.model_card import model_card, onnx_card
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.store.files import read_json, write_atomic
from teachclip.store.folders import check_replaceable, replaced_folder

log = logging.getLogger(__name__)

OWN_FILES = {
    *SENTENCE_TRANSFORMERS,
    *(CARD_FILE, CODE_FILE, "config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"),
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
    precision: str = "float32",
    only: str | None = None,
    evaluated: bool = False,
) -> Path:
    """Export the student of a finished run to `out`: a folder, or with layout `official` one file.

    `recipe`, `overrides`: as of `distill`. `dtype`: of the layouts `transformers` and `official`. `precision`,
    `only`: of the layout `onnx`, see `export_onnx`; `evaluated`: measure what that finds on the test split, for its
    card and `parity.json`. Returns `out`. Raises CheckpointError if the run has no student.
    """
    recipe, out = as_trained(load_recipe(recipe, overrides)), Path(os.path.expanduser(out))
    source = recipe.output / "student"
    if not (source / "config.json").exists() or not (recipe.output / "results.json").exists():
        raise CheckpointError(f"{source} holds no student; distil the recipe first")
    results = _read_results(recipe.output / "results.json", recipe)
    student = load_student(source, trust_remote_code=recipe.student.trust_remote_code)
    if layout == "onnx":
        _write_onnx_folder(student, out, results, recipe, precision=precision, only=only, evaluated=evaluated)
    elif layout == "official":
        write_official_file(student, out, dtype=dtype)
    else:
        write_student_folder(student, out, results=results, recipe=recipe, dtype=dtype)
    return out


def _write_onnx_folder(
    student: StudentModel,
    out: Path,
    results: dict[str, Any],
    recipe: Recipe,
    *,
    precision: str,
    only: str | None,
    evaluated: bool,
) -> None:
    """Export as ONNX. The card holds what was measured with the folder itself, or else the results of the student."""
    if evaluated and only is not None:
        raise CheckpointError(f"the {only} tower alone finds no videos, so it cannot be evaluated")
    parity = export_onnx(
        student, out, precision=precision, only=only, card=functools.partial(onnx_card, results, recipe)
    )
    for tower in (name for name in TOWERS if name in parity):
        log.info("%s.onnx differs from the student by at most %.1e", tower, parity[tower]["max_abs"])
    if not evaluated:
        return
    measured = evaluate(recipe, model=str(out))
    measured["model"] = f"{results['model']}, ONNX {precision}"
    parity["test"] = {key: value for key, value in measured["test"].items() if key != "cost"}  # times are no parity
    card = onnx_card(results, recipe, OnnxConfig.read(out), parity, measured)
    write_atomic(out / PARITY, (json.dumps(parity, indent=2) + "\n").encode())
    write_atomic(out / ONNX_CARD, card.encode())


def _read_results(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Return the results of a run. Raises CheckpointError if a model card cannot be made of them."""
    try:
        results = read_json(path)
        if not isinstance(results, dict) or "model" not in results:
            raise ValueError("it names no model")
        model_card(results, recipe)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} does not hold the results of a run ({type(error).__name__}: {cause}); distil the recipe again "
            "to measure the student again"
        ) from error
    return results


def write_student_folder(
    student: StudentModel,
    folder: Path,
    *,
    results: Mapping[str, Any],
    recipe: Recipe,
    dtype: str = "float32",
) -> None:
    """Write the student, its processor and a model card to `folder`, whole or not at all.

    `dtype` of the stored weights is `float32` or `float16`; either loads as float32 unless another is asked for.
    Raises CheckpointError if the folder cannot be written or holds something else.
    """
    if student.processor is None:
        raise CheckpointError("the student has no processor (tokenizer and decoding settings) to export")
    folder = Path(os.path.realpath(folder))  # the folder behind a link, and not the link, is replaced
    check_replaceable(folder, OWN_FILES, lambda path: _model_type(path) == StudentConfig.model_type)
    try:
        with replaced_folder(folder) as temporary:
            student.card = model_card(results, recipe)
            with quiet_loading():
                student.to(getattr(torch, dtype)).save_pretrained(temporary)
            _load_as_float32(temporary / "config.json")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot write the student: {error}") from error


def _load_as_float32(path: Path) -> None:
    """Name float32 in a configuration: transformers loads weights in the type named there, not as they are stored."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "dtype": "float32"}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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


def _model_type(folder: Path) -> str | None:
    """Return the model type in a folder's configuration, or None if there is none that can be read."""
    try:
        return read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
