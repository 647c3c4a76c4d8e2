"""The Hugging Face hub: say at once when it cannot be reached, instead of after minutes of retries."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, try_to_load_from_cache

from teachclip.errors import CheckpointError

TIMEOUT = 5.0
"""Seconds to wait for the hub to take a connection."""


def require_reachable(source: str | os.PathLike[str], **hub: Any) -> None:
    """Raise CheckpointError if `source` must be fetched from the hub, and the hub cannot be reached.

    A file or folder, and what is in the cache, need no hub; behind a proxy nothing is known, so nothing is raised.
    `hub`: as of `load_backbone`.
    """
    name = str(source)
    if os.path.exists(name) or constants.HF_HUB_OFFLINE or hub.get("local_files_only") or urllib.request.getproxies():
        return
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        return  # no name that the hub could know: who loads it says what it is
    where = {"cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    if isinstance(try_to_load_from_cache(name, "config.json", **where), str):
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=TIMEOUT).close()
    except OSError as error:
        raise CheckpointError(
            f"{name}: there is no such file or folder, and {constants.ENDPOINT} cannot be reached "
            f"({error.strerror or error}); on a computer that reaches it: hf download {name} --local-dir FOLDER; "
            "then copy the folder here and give its path"
        ) from error
