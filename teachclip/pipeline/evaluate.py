"""Evaluate a student, a teacher or the zero-shot backbone on a split of a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from teachclip.errors import RecipeError
from teachclip.evaluation.per_query import PerQuery, check_writing, per_query, write_per_query
from teachclip.evaluation.post_processing import DUAL_SOFTMAX, QB_NORM, PostProcessing
from teachclip.evaluation.reranking import DEPTHS, Reranking
from teachclip.evaluation.retrieval import Ranks
from teachclip.models.backbone import scale_and_bias
from teachclip.models.mean_pooling import MeanPooling
from teachclip.models.student import load_student
from teachclip.onnx.folder import is_onnx_folder
from teachclip.onnx.student import load_onnx
from teachclip.pipeline.build import without_text_backbone
from teachclip.pipeline.encoders import encoders_of, read_as_saved
from teachclip.pipeline.teachers import TeacherHandle, reranker_section
from teachclip.pipeline.uncaptioned import evaluate_any, teacher_choices
from teachclip.pipeline.workspace import Workspace, build_workspace
from teachclip.recipe.loading import RecipeSource, load_recipe
from teachclip.registry import closest
from teachclip.scorer import teacher_traits
from teachclip.training.distributed import build_accelerator, processes_of


def evaluate(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    model: str = "student",
    split: str = "test",
    rerank: str | None = None,
    depths: Sequence[int] = DEPTHS,
    post: Sequence[str] = (),
    queries: str | os.PathLike[str] | None = None,
    keep_queries: Callable[[PerQuery], object] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a split of a recipe's data: retrieval in both directions, and its cost.

    `recipe`, `overrides`: as of `distill`. `model`: `student` (the exported one of the recipe's run), `zero_shot`
    (mean pooling), a teacher's label, or a student's folder (an ONNX folder too) or file. `rerank`: who orders the
    best videos of each text anew, as many as each of `depths` says: a teacher's label, or the folder or hub id of a
    CrossEncoder. `post`: kinds of post-processing that are measured besides, of `post_processing.KINDS`; the queries
    of QB-Norm's bank are the training captions. `queries`: a Parquet file for the rank and the score of each query,
    for `compare`; `keep_queries` gets the same in memory. Returns the results.

    Raises RecipeError for an unknown model or teacher, DataError for a split that the data does not have.
    """
    recipe = load_recipe(recipe, overrides)
    if queries is not None:
        check_writing(Path(queries))
    model = os.path.expanduser(model)
    labels = [section.label for section in recipe.teachers]
    known = ["student", "zero_shot", *labels]
    if model not in known and not Path(model).exists():
        raise RecipeError(f"--model {model!r}: allowed: {', '.join(known)}, or a path{closest(model, known)}")
    reranker = None if rerank is None or rerank in labels else reranker_section(rerank, labels)
    accelerator = build_accelerator()
    processes, device = processes_of(accelerator), accelerator.device
    # students have their text encoder, teachers read as the backbone does
    work = build_workspace(recipe if model == "zero_shot" else without_text_backbone(recipe), processes, device)
    videos = work.split(split)
    scorer = _scorer(work, model).to(device).eval()
    inputs = work.inputs_for(scorer, videos)
    results = work.stamp(model=model)
    reranking = None
    if rerank is not None:
        videos.require_captions("--rerank measures what their order gains")
        handle = TeacherHandle(reranker, device) if reranker else work.teachers[rerank]
        teacher = _teacher(handle, "--rerank").to(device).eval()
        reranking = Reranking(rerank, teacher, work.inputs_for(teacher, videos), depths)
    kept: list[Ranks] = []
    captioned: dict[str, Any] = {"final": True, "reranking": reranking, "keep_ranks": kept.append}
    if post:
        videos.require_captions("--post measures what post-processing gains")
        captioned["post"] = _post_processing(work, scorer, post, model)
    options = captioned if videos.is_paired else {}
    choices = [] if videos.is_paired else teacher_choices(work, videos)
    results[split] = evaluate_any(work, scorer, inputs, videos, choices, progress=True, **options)
    if keep_queries is not None and kept:
        keep_queries(per_query(kept[0], videos))
    if queries is not None and processes.is_main:
        videos.require_captions("results per query are of captions")
        write_per_query(Path(queries), per_query(kept[0], videos))
    return results


def _scorer(work: Workspace, model: str) -> Any:
    """Return what is evaluated; see `evaluate`. Raises RecipeError for a teacher that cannot score all pairs."""
    if model in work.teachers:
        if work.teachers[model].scores_shortlist:
            raise RecipeError(
                f"--model {model!r} reads a text and a video together, which is too slow for all pairs; --rerank "
                f"{model} lets it score the best videos of each text"
            )
        return _teacher(work.teachers[model], "--model")
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
    read_as_saved(scorer)  # another backbone reads other tokens and pixels
    return scorer


def _post_processing(work: Workspace, scorer: Any, kinds: Sequence[str], model: str) -> PostProcessing:
    """Return what post-processing needs: training captions as a bank, and how the scorer's logits are made.

    Raises RecipeError for a scorer that does not say how it makes its scores of cosines.
    """
    if model != "student" and is_onnx_folder(model):
        if DUAL_SOFTMAX in kinds:
            raise RecipeError(
                f"--post {DUAL_SOFTMAX}: an ONNX folder does not hold the student's logit scale; evaluate the "
                f"student that it was exported from, or ask for {QB_NORM} alone"
            )
        scale, bias = 1.0, 0.0  # it returns cosines
    elif (says := teacher_traits(scorer).scale_and_bias) is not None:
        scale, bias = says()
    elif (encoders := encoders_of(scorer)) is not None:
        scale, bias = scale_and_bias(encoders)
    else:
        raise RecipeError(
            f"--post: {model!r} has neither a method scale_and_bias nor a clip, so that its cosines are not known"
        )
    bank = work.inputs_for(scorer, work.catalog.train) if QB_NORM in kinds else None
    return PostProcessing(tuple(kinds), bank, scale, bias)


def _teacher(handle: TeacherHandle, option: str) -> Any:
    """Return a teacher that scores any text and video. Raises RecipeError for one that reads scores."""
    if handle.reads_relevance:
        raise RecipeError(
            f"{option} {handle.label!r} reads scores of training pairs from a file: it cannot be evaluated"
        )
    return handle.model
