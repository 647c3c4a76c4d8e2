"""`teachclip keys`."""

from __future__ import annotations

from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, UsageError, command
from teachclip.recipe.loading import describe_keys
from teachclip.registry import closest


@command
def main(argv: Sequence[str] | None = None) -> None:
    """List recipe keys with their defaults and meanings."""
    parser = CommandParser(prog="teachclip keys", description="List the keys of a recipe: name, default, meaning.")
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="such as losses.frame_text")
    prefix = parser.parse_args(argv).prefix
    lines = {line.split(maxsplit=1)[0]: line.strip() for line in describe_keys()}
    shown = [line for key, line in lines.items() if key.startswith(prefix)]
    if not shown:
        sections = {key[:end] for key in lines for end, mark in enumerate(key) if mark == "."}
        raise UsageError(f"no recipe key begins with {prefix!r}{closest(prefix, [*lines, *sections])}")
    print("\n".join(shown))
