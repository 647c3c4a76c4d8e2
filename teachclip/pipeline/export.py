"""Write a student for use elsewhere: a transformers folder, or one file in the official layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from teachclip.cli.arguments import command, recipe_arguments, say
from teachclip.errors import CheckpointError
from teachclip.recipe.loading import load_recipe


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Export the student of a finished run."""
    parser = recipe_arguments(
        "Write the student of a finished run as a folder for use elsewhere: weights, tokenizer, decoding settings\n"
        "and a model card with the measured results. No teacher, no optimizer. With --layout official it is one\n"
        "file, a state dict as TeachCLIP's own code reads and writes it (best_model.bin)."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; with --layout official, file")
    parser.add_argument(
        "--layout", choices=["transformers", "official"], default="transformers", help="default: transformers"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float16",
        help="precision of the weights; official files keep float16 to CLIP's linear layers",
    )
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    from teachclip.models.student import load_student
    from teachclip.pipeline.export_formats import export_official, export_student

    source = recipe.output / "student"
    if not (source / "config.json").exists() or not (recipe.output / "results.json").exists():
        raise CheckpointError(f"{source} holds no student; train it first with tools/distill.py {args.recipe}")
    results = json.loads((recipe.output / "results.json").read_text(encoding="utf-8"))
    student = load_student(source)
    if args.layout == "official":
        export_official(student, args.out, dtype=args.dtype)
        size = args.out.stat().st_size
    else:
        export_student(student, args.out, results=results, recipe=recipe, dtype=args.dtype)
        size = sum(path.stat().st_size for path in args.out.iterdir())
    say(f"exported: {args.out} ({size / 1e6:.1f} MB, {args.dtype})")
