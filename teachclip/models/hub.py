"""The Hugging Face hub: say at once when it cannot be reached, instead of after minutes of retries."""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound

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
    if problem := why_unreachable():
        raise CheckpointError(
            f"{name}: there is no such file or folder, and {constants.ENDPOINT} cannot be reached "
            f"({problem}); on a computer that reaches it: hf download {name} --local-dir FOLDER; "
            "then copy the folder here and give its path"
        )


def why_unreachable() -> str:
    """Return why the hub cannot be reached, or "" if it takes a connection; behind a proxy nobody knows: ""."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=TIMEOUT).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def cached_models() -> dict[str, tuple[str, int]]:
    """Return the models of the hub's cache that have a configuration: by id their type and the bytes on the disk."""
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return {}
    models = {}
    for repository in found.repos:
        config = try_to_load_from_cache(repository.repo_id, "config.json")
        if repository.repo_type == "model" and isinstance(config, str):
            try:
                with open(config, encoding="utf-8") as file:
                    kind = str(json.load(file).get("model_type", ""))
            except (OSError, ValueError, AttributeError):
                continue
            models[repository.repo_id] = (kind, repository.size_on_disk)
    return models
