"""What people see in a terminal: lines of progress, the toolkit's log, and Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which command a terminal, the marks that turn the order of letters, and lone surrogates."""


def visible(text: str) -> str:
    """Return a text with its control characters written out, such as \\x1b; new lines and tabs stay."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return a text with all its control characters written out, new lines and tabs too: the name of a file."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def log(message: str) -> None:
    """Print a line of progress to stderr, once per machine. Control characters in it are written out."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(visible(message), file=sys.stderr, flush=True)


class _ProgressHandler(logging.Handler):
    """Prints what the parts of the toolkit log, such as which weights start at random, as lines of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        log(record.getMessage())


@contextlib.contextmanager
def logging_to_console() -> Iterator[None]:
    """Print the toolkit's own log records as lines of progress. Nested uses print each record once."""
    logger = logging.getLogger("teachclip")
    if any(isinstance(handler, _ProgressHandler) for handler in logger.handlers):
        yield
        return
    handler, level = _ProgressHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal do what Ctrl-C does: stop the children, then this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
