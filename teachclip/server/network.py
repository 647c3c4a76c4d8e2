"""Addresses: which ones this machine alone can reach, and how they are written."""

from __future__ import annotations

import ipaddress


def is_local(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address_of(host: str, port: int, token: str | None) -> str:
    """Return the address that opens the page in a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
