"""`teachclip export`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser
from teachclip.console import log


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Export the student of a finished run."""
    parser = recipe_parser(
        "export",
        "Write the student of a finished run as a folder for use elsewhere: weights, tokenizer, decoding "
        "settings and a model card with the measured results. With --layout official it is one file, a state "
        "dict that TeachCLIP's own code reads (best_model.bin). With --layout onnx the folder holds the text and "
        "the video tower as ONNX, and query.py, which encodes texts without PyTorch.",
    )
    parser.add_argument(
        "--out", type=path_argument, required=True, help="folder to write; with --layout official, file"
    )
    parser.add_argument(
        "--layout", choices=["transformers", "official", "onnx"], default="transformers", help="default: transformers"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        help="precision of the weights, default float16; official files keep float16 to CLIP's linear layers",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        help="with --layout onnx, how weights are stored; default float32",
    )
    parser.add_argument("--only", choices=["text"], help="with --layout onnx: the text tower alone")
    parser.add_argument(
        "--evaluate", action="store_true", help="with --layout onnx: measure it on the test split, for its card"
    )
    args = parser.parse_intermixed_args(argv)
    other = ("dtype",) if args.layout == "onnx" else ("precision", "only", "evaluate")
    for name in other:
        if getattr(args, name):
            parser.error(f"--{name} is not for --layout {args.layout}")
    from teachclip.pipeline.export import export_student

    dtype, precision = args.dtype or "float16", args.precision or "float32"
    options = {"layout": args.layout, "dtype": dtype, "precision": precision, "only": args.only}
    options["evaluated"] = args.evaluate
    out = export_student(args.recipe, args.out, args.overrides, **options)
    size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir()))
    log(f"exported: {out} ({size / 1e6:.1f} MB, {precision if args.layout == 'onnx' else dtype})")
