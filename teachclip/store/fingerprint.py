"""Provenance, all that stored numbers depend on: its hash, and the difference between two of them in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from teachclip.errors import StoreError

SHOWN = 3
"""How many differences a message names."""


def fingerprint_of(provenance: Mapping[str, Any]) -> str:
    """Return the sha256 of `provenance` in canonical JSON. Raises StoreError if it is not JSON."""
    return hashlib.sha256(_canonical(provenance).encode()).hexdigest()


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the first dotted keys in which `new` differs from `old`, with both values; empty if they are equal."""
    left, right = _canonical(old), _canonical(new)
    if left == right:
        return ""
    differences = list(_differences(json.loads(left), json.loads(right), ""))
    more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return "; ".join(differences[:SHOWN]) + more


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON content with the key `seal`: the sha256 of all its other keys. `check_seal` finds any change."""
    return {**content, "seal": _seal_of(content)}


def check_seal(content: Mapping[str, Any]) -> None:
    """Raise ValueError if sealed content was changed. Content without a seal passes: other programs write it so."""
    if "seal" in content and content["seal"] != _seal_of(content):
        raise ValueError("it was edited or damaged: its seal does not match")


def _seal_of(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "seal"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text, and 1, 1.0 and true differ."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"provenance must be JSON (text, numbers, lists, mappings): {error}") from error
    return text


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{key}.{name}" if key else name
            if name not in new:
                yield f"{inner} = {_window(old[name], None)} there, absent now"
            elif name not in old:
                yield f"{inner} absent there, {_window(new[name], None)} now"
            else:
                yield from _differences(old[name], new[name], inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) != len(new) and max(len(old), len(new)) > 4:
        yield f"{key} has {len(old)} entries there, {len(new)} now"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and len(old) > 4:
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{key}[{index}]")
    elif _canonical(old) != _canonical(new):
        yield f"{key} = {_window(old, new)} there, {_window(new, old)} now"


def _window(value: Any, other: Any, width: int = 48) -> str:
    """Return the value on one short line, cut so that it shows where it starts to differ from `other`."""
    text, against = _canonical(value), _canonical(other)
    if len(text) <= width:
        return text
    pairs = enumerate(zip(text, against, strict=False))
    same = next((index for index, (a, b) in pairs if a != b), min(len(text), len(against)))
    start = max(0, min(same - 8, len(text) - width))
    return ("..." if start else "") + text[start : start + width] + ("..." if start + width < len(text) else "")
