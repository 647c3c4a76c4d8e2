"""Serve an index from a thread, for tests that ask it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from teachclip.search.index import VideoIndex
from teachclip.server.app import create_app

HOSTILE = "<img src=x onerror=alert(1)>\"'.mp4"


@contextlib.contextmanager
def running(index: Path, **options: Any) -> Iterator[str]:
    """Serve an index from a thread of this process; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        app = create_app(VideoIndex.open(index), picture_workers=1, **options)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
