"""What all commands share: arguments, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from teachclip.console import logging_to_console, visible
from teachclip.errors import TeachclipError
from teachclip.registry import closest

_ENVIRONMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
"""A full disk, missing permissions, paths that cannot be: not mistakes of the program, so no traceback."""

Main = Callable[[Sequence[str] | None], int]


class UsageError(TeachclipError):
    """A command line that cannot be understood."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, with the nearest option for a mistyped one, and whose help is short."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        for name in ("description", "epilog"):
            if options.get(name):
                options[name] = _wrapped(options[name])
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message of argparse, completed where that helps."""
        if match := re.fullmatch(r"unrecognized arguments: (.*)", message):
            unknown = match[1].split()[0]
            options = [name for action in self._actions for name in action.option_strings]
            hint = closest(unknown.partition("=")[0], options) if unknown.startswith("-") else ""
            message = f"unknown argument {unknown!r}{hint or f'; see {self.prog} --help'}"
        elif match := re.fullmatch(r"the following arguments are required: (.*)", message):
            usage = " ".join(self.format_usage().split()[1:])
            message = f"{match[1].removesuffix(', KEY=VALUE')} is missing; usage: {usage}"
        raise UsageError(message)


def _wrapped(text: str, width: int = 96) -> str:
    """Return text in lines of at most `width` characters; lines that begin with spaces stay as they are."""
    return "\n".join(
        line if line.startswith(" ") else textwrap.fill(line, width, break_on_hyphens=False)
        for line in text.split("\n")
    )


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
            for line in _without_traceback(str(error)).split("\n"):
                print(f"{_process_prefix()}error: {_shortened(visible(line))}", file=sys.stderr, flush=True)
            return 2
        except OSError as error:
            if error.errno not in _ENVIRONMENT:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"{_process_prefix()}error: {visible(where)}{error.strerror}", file=sys.stderr, flush=True)
            return 2
        except KeyboardInterrupt as stop:
            reason = str(stop) or "stopped"
            print(f"{_process_prefix()}{reason}; run the same command to continue", file=sys.stderr, flush=True)
            return 130
        return 0

    return wrapped


def recipe_parser(name: str, description: str, *, dry_run: bool = False) -> CommandParser:
    """Return a parser with RECIPE and overrides for the command `name`."""
    parser = CommandParser(
        prog=f"teachclip {name}",
        description=description,
        epilog="`teachclip keys` lists all recipe keys.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of one of the project's recipes")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="replace a value, such as optimizer.lr=3e-4"
    )
    if dry_run:
        parser.add_argument(
            "--dry-run", action="store_true", help="check the recipe, decode two videos, take one step; write nothing"
        )
    return parser


def positive_count(text: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """Read a number above 0 from the command line."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def path_argument(text: str) -> Path:
    """Read a path from the command line; `~/` in `--out=~/x` is not expanded by every shell."""
    if "\0" in text:
        raise argparse.ArgumentTypeError("a path cannot contain a NUL character")
    return Path(os.path.expanduser(text))


def _without_traceback(message: str) -> str:
    """Remove what torch puts around an error of a process that loads batches."""
    if "Original Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _shortened(line: str, most: int = 2000) -> str:
    """Drop the middle of a line that no one can read: a name in a damaged file may have megabytes."""
    return line if len(line) <= most else f"{line[: most - 500]} ... {line[-400:]}"


def _process_prefix() -> str:
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"process {rank}: "
