"""Evaluate a student, a teacher or zero-shot CLIP on a split of a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import RecipeError
from teachclip.recipe.loading import load_recipe
from teachclip.recipe.schema import Recipe
from teachclip.registry import closest


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a model on a split and print a table."""
    parser = recipe_arguments(
        "Evaluate a model on the data of a recipe: text-to-video and video-to-text retrieval, and its cost."
    )
    parser.add_argument(
        "--model",
        default="student",
        help="student (the exported one of the recipe's run), zero_shot (mean pooling), the label of a teacher of "
        "the recipe, or the folder or file of a student",
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--out", type=Path, help="also write the results as JSON to this file")
    args = parser.parse_intermixed_args(argv)
    results = evaluate_model(load_recipe(args.recipe, args.overrides), args.model, args.split)
    from teachclip.reports.tables import results_table

    print(results_table([results]), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        say(f"results: {args.out}")


def evaluate_model(recipe: Recipe, model: str, split_name: str) -> dict[str, Any]:
    """Evaluate `student`, `zero_shot`, a teacher's label, or a student's folder or file. Returns the results."""
    from teachclip.evaluation.evaluator import evaluate
    from teachclip.models.mean_pooling import MeanPooling
    from teachclip.models.student import load_student
    from teachclip.pipeline import build, teacher_files
    from teachclip.pipeline.workspace import build_workspace
    from teachclip.scorer import reads_relevance
    from teachclip.training.distributed import build_accelerator, processes_of

    teachers = {section.label: section for section in recipe.teachers}
    if model not in (*teachers, "student", "zero_shot") and not Path(model).exists():
        known = ["student", "zero_shot", *teachers]
        raise RecipeError(f"--model {model!r}: allowed: {', '.join(known)}, or a path{closest(model, known)}")
    accelerator = build_accelerator()
    processes, device = processes_of(accelerator), accelerator.device
    work = build_workspace(recipe, processes, device)
    split = work.split(split_name)
    scorer: Any
    if model in teachers:
        scorer = teacher_files.build_teacher(teachers[model], device)
        if reads_relevance(scorer):
            raise RecipeError(f"--model {model!r} reads scores of training pairs from a file: it cannot be evaluated")
    elif model == "zero_shot":
        scorer = MeanPooling(work.backbone)
    else:
        path = recipe.output / "student" if model == "student" else Path(model)
        scorer = load_student(path, mask_padding=recipe.student.mask_padding)
    scorer = scorer.to(device).eval()
    inputs = work.inputs_for(scorer, split)
    results = work.stamp(model=model)
    results[split_name] = evaluate(
        scorer, inputs, split, build.build_blocks(recipe), device, processes, cost=True, progress=True
    )
    return results
