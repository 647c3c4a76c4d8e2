"""`teachclip serve`."""

from __future__ import annotations

import argparse
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress

from teachclip.cli.arguments import CommandParser, command, path_argument
from teachclip.console import log


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page and the JSON API of an index until it is interrupted."""
    parser = CommandParser(
        prog="teachclip serve",
        description="Open an index in a browser: a page to search and watch, and a JSON API (/api/openapi.json). "
        "Only this machine can reach it, unless --host says otherwise; then whoever asks needs the token that is "
        "printed.",
    )
    parser.add_argument("index", type=path_argument, metavar="INDEX", help="folder that `teachclip index` made")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on (default 8000; 0: a free one)")
    parser.add_argument("--token", type=_token, help="the token to ask for (default: a new one, where it is needed)")
    parser.add_argument("--model", help="the student of the index, if its folder was moved")
    parser.add_argument("--device", help="where the student runs (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    from teachclip.errors import DataError
    from teachclip.search.index import VideoIndex
    from teachclip.server.network import is_local
    from teachclip.server.run import serve

    token = args.token or (None if is_local(args.host) else secrets.token_urlsafe(24))
    with VideoIndex.open(args.index, model=args.model, device=args.device) as index:
        index.queries()  # another student is refused here
        with suppress(DataError):  # of a vocabulary without this word
            index.search("a", limit=1)  # so that the first search need not wait for the student and the engine
        serve(index, args.host, args.port, token, lambda address: log(f"{args.index}: open {address}"))


def _token(text: str) -> str:
    """Refuse what must be written otherwise in an address, a cookie or a header."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: letters, digits and . _ ~ -")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: 0 to 65535")
    return int(text)
