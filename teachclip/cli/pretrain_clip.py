"""`teachclip pretrain-clip`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import command, path_argument, recipe_parser
from teachclip.console import log


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train a tiny CLIP from the command line."""
    parser = recipe_parser(
        "pretrain-clip",
        "Pre-train a tiny CLIP on frames of a recipe's training videos and their captions, for data that no "
        "published CLIP knows: single frames beside captions, nothing of videos. Then give its folder as "
        "student.backbone. Only `data`, `frames`, `text.max_tokens` and `stores` of the recipe are read.",
    )
    parser.add_argument("--out", type=path_argument, required=True, help="folder of the CLIP")
    numbers = {"steps": 700, "batch-size": 128, "width": 128, "vision-layers": 3, "text-layers": 2, "patch-size": 16}
    for name, default in {**numbers, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default {default})")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest rate (default 1e-3)")
    args = parser.parse_intermixed_args(argv)
    from teachclip.pretraining.clip import ClipSettings
    from teachclip.pretraining.recipe_frames import pretrain_on_recipe

    names = (*(name.replace("-", "_") for name in numbers), "seed", "lr")
    settings = ClipSettings(**{name: getattr(args, name) for name in names})
    results = pretrain_on_recipe(args.recipe, args.overrides, out=args.out, settings=settings)
    log(f"{args.out}: {100 * results['accuracy']:.0f} % of the captions of a batch found their own frame at the end")
    if "frame_recall_at_1" in results:
        log(f"text-to-frame R@1 {results['frame_recall_at_1']:.1f} % on middle frames of validation videos")
