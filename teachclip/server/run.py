"""Run the application under uvicorn until it is interrupted."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from teachclip.errors import DataError
from teachclip.search.index import VideoIndex
from teachclip.server.network import address_of

QUEUE = 2048
"""Connections that wait to be taken."""
FAREWELL = 3
"""Seconds that open answers get to end; a browser holds on to a film that it has paused."""


def serve(index: VideoIndex, host: str, port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """Serve an index on `host` and `port` (0: a free one). `ready` gets the address when the server answers there.

    `token`: see `create_app`. Raises DataError if the extra is not installed or nothing can listen there.
    """
    try:
        import uvicorn

        from teachclip.server.app import create_app
    except ImportError as error:
        raise DataError(f"the page needs more packages ({error}): pip install 'teachclip[search]'") from error
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), port))
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"cannot listen on {host}:{port}: {reason}; give another --host or --port") from error
        listener.listen(QUEUE)
        ready(address_of(host.strip("[]"), listener.getsockname()[1], token))
        config = uvicorn.Config(
            create_app(index, token=token),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=FAREWELL,
        )
        server = uvicorn.Server(config)
        # Of its end it says how many answers it cuts off, with a traceback for each.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])
        if server.should_exit:  # the interrupt that uvicorn raises again may be lost where it ends its tasks
            raise KeyboardInterrupt
