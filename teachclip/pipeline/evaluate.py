"""Evaluate a student, a teacher or the zero-shot backbone on a split of a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachclip.errors import RecipeError
from teachclip.evaluation.per_query import check_writing, per_query, write_per_query
from teachclip.evaluation.reranking import DEPTHS, Reranking
from teachclip.evaluation.retrieval import Ranks
from teachclip.evaluation.splits import evaluate_split
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import load_student
from teachclip.onnx.folder import is_onnx_folder
from teachclip.onnx.student import load_onnx
from teachclip.pipeline import build
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.registry import closest
from teachclip.training.distributed import build_accelerator, processes_of


def evaluate(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    model: str = "student",
    split: str = "test",
    rerank: str | None = None,
    depths: Sequence[int] = DEPTHS,
    queries: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a split of a recipe's data: retrieval in both directions, and its cost.

    `recipe`, `overrides`: as of `distill`. `model`: `student` (the exported one of the recipe's run), `zero_shot`
    (mean pooling), a teacher's label, or a student's folder (an ONNX folder too) or file. `rerank`: the label of a
    teacher that orders the best videos of each text anew, as many as each of `depths` says. `queries`: a Parquet file
    for the rank and the score of each query, for `compare`. Returns the results. Raises RecipeError for an unknown
    model or teacher, DataError for a split that the data does not have.
    """
    recipe = load_recipe(recipe, overrides)
    if queries is not None:
        check_writing(Path(queries))
    model = os.path.expanduser(model)
    known = ["student", "zero_shot", *(section.label for section in recipe.teachers)]
    if model not in known and not Path(model).exists():
        raise RecipeError(f"--model {model!r}: allowed: {', '.join(known)}, or a path{closest(model, known)}")
    labels = [section.label for section in recipe.teachers]
    if rerank is not None and rerank not in labels:
        allowed = ", ".join(labels) or "the recipe has no teachers"
        raise RecipeError(f"--rerank {rerank!r}: allowed: {allowed}{closest(rerank, labels)}")
    accelerator = build_accelerator()
    processes, device = processes_of(accelerator), accelerator.device
    work = build_workspace(recipe, processes, device)
    videos = work.split(split)
    scorer = _scorer(work, model).to(device).eval()
    inputs = work.inputs_for(scorer, videos)
    results = work.stamp(model=model)
    reranking = None
    if rerank is not None:
        teacher = _teacher(work, "--rerank", rerank).to(device).eval()
        reranking = Reranking(rerank, teacher, work.inputs_for(teacher, videos), depths)
    blocks = build.build_blocks(recipe)
    kept: list[Ranks] = []
    results[split] = evaluate_split(
        scorer,
        inputs,
        videos,
        blocks,
        device,
        processes,
        final=True,
        reranking=reranking,
        keep_ranks=kept.append,
        progress=True,
    )
    if queries is not None and processes.is_main:
        write_per_query(Path(queries), per_query(kept[0], videos))
    return results


def _scorer(work: Workspace, model: str) -> Any:
    """Return what scores texts and videos by the name that `evaluate` got."""
    if model in work.teachers:
        return _teacher(work, "--model", model)
    if model == "zero_shot":
        return MeanPooling(work.backbone)
    if model != "student" and is_onnx_folder(model):
        from teachclip.onnx.scorer import OnnxScorer  # onnxruntime is optional

        student = load_onnx(model)
        student.video_session  # noqa: B018  (a folder without a video tower is refused before anything is encoded)
        return OnnxScorer(student)
    path = work.recipe.output / "student" if model == "student" else Path(model)
    section = work.recipe.student
    scorer: Any = load_student(path, mask_padding=section.mask_padding, trust_remote_code=section.trust_remote_code)
    if scorer.processor is not None:  # another backbone reads other tokens and pixels
        scorer.preprocessing = scorer.processor.preprocessing
    return scorer


def _teacher(work: Workspace, option: str, label: str) -> Any:
    """Return a teacher of the recipe that scores any text and video. Raises RecipeError for one that reads scores."""
    handle = work.teachers[label]
    if handle.reads_relevance:
        raise RecipeError(f"{option} {label!r} reads scores of training pairs from a file: it cannot be evaluated")
    return handle.model
