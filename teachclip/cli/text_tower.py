"""`teachclip text-tower`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, command, path_argument, positive_count
from teachclip.console import log
from teachclip.recipe.schema import TEXT_POOLINGS

DESCRIPTION = (
    "Give a dual encoder another text encoder, smaller or of more languages, for a student to stand on. The new one "
    "learns from texts alone to put each where the old encoder puts it; the images' half stays as it is. A file "
    "with a text per line is enough; with tabs between columns and a header that names them, every column of a row "
    "learns what the first one, which the CLIP understands, means. In a recipe, student.text_backbone does the same."
)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Teach a text encoder and write the dual encoder."""
    parser = CommandParser(prog="teachclip text-tower", description=DESCRIPTION)
    parser.add_argument(
        "--backbone",
        required=True,
        help="folder or hub id of a CLIP, MetaCLIP 2, AltCLIP, Chinese-CLIP or VisionTextDualEncoder",
    )
    parser.add_argument("--text", required=True, help="folder or hub id of a text encoder of transformers")
    parser.add_argument(
        "--pooling",
        choices=TEXT_POOLINGS,
        help="of the tokens of a text (default: as the model's Sentence Transformers files say, else pooler)",
    )
    parser.add_argument("--texts", required=True, type=path_argument, help="file of texts, one row per line")
    parser.add_argument("--out", required=True, type=path_argument, help="new folder, for student.backbone")
    parser.add_argument("--steps", type=positive_count, default=2000, help="steps (default: 2000)")
    parser.add_argument("--batch-size", type=positive_count, default=64, help="texts of a step (default: 64)")
    parser.add_argument("--lr", type=float, default=3e-4, help="highest learning rate (default: 3e-4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the projection and the batches (default: 0)")
    args = parser.parse_args(argv)
    if not 0 < args.lr < 1:
        parser.error(f"--lr {args.lr}: allowed: above 0 and below 1")
    from teachclip.pipeline.text_tower import TextTeaching, describe_taught, teach_text_tower

    teaching = TextTeaching(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed, pooling=args.pooling
    )
    record = teach_text_tower(args.backbone, args.text, args.texts, args.out, teaching)
    for line in describe_taught(record):
        log(line)
