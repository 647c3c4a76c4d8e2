"""What all commands share: arguments, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence

from teachclip.console import logging_to_console
from teachclip.errors import TeachclipError

_ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""A full disk and missing permissions: not mistakes of the program, so no traceback."""

Main = Callable[[Sequence[str] | None], int]


def command(main: Callable[[Sequence[str] | None], None]) -> Main:
    """Turn a function of arguments into a command: 0 when it returns, 2 on a user's mistake, 130 on Ctrl-C.

    A mistake is printed as `error: ...` on one line (a line per problem of a recipe), never as a traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with logging_to_console():
                main(argv)
        except TeachclipError as error:
            for line in _plain(str(error)).splitlines():
                print(f"{_who()}error: {line}", file=sys.stderr, flush=True)
            return 2
        except OSError as error:
            if error.errno not in _ENVIRONMENT:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"{_who()}error: {where}{error.strerror}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt as stop:
            what = str(stop) or "stopped"
            print(f"{_who()}{what}; the same command goes on from there", file=sys.stderr, flush=True)
            return 130
        return 0

    return wrapped


def recipe_arguments(description: str, *, dry_run: bool = False) -> argparse.ArgumentParser:
    """Return a parser with RECIPE and overrides. `--help` ends with every recipe key, its default and its meaning."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as recipes/shapes_xpool.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="replace a value, such as optimizer.lr=3e-4"
    )
    if dry_run:
        parser.add_argument(
            "--dry-run", action="store_true", help="check the recipe, decode two videos, take one step; write nothing"
        )
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Appends the recipe's keys, which are read only when help is asked for."""

    def format_help(self) -> str:
        from teachclip.recipe.loading import describe_keys

        return super().format_help() + "\nkeys of a recipe:\n" + "\n".join(describe_keys()) + "\n"


def positive_count(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _plain(message: str) -> str:
    """Take off what torch puts around an error of a process that loads batches."""
    if "Original Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _who() -> str:
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "
