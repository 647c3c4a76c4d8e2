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
        "dict that TeachCLIP's own code reads (best_model.bin).",
    )
    parser.add_argument(
        "--out", type=path_argument, required=True, help="folder to write; with --layout official, file"
    )
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
    from teachclip.pipeline.export import export_student

    out = export_student(args.recipe, args.out, args.overrides, layout=args.layout, dtype=args.dtype)
    size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir()))
    log(f"exported: {out} ({size / 1e6:.1f} MB, {args.dtype})")
