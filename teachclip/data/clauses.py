"""Captions that tell the order of two clauses, and the same captions with the clauses in each other's place."""

from __future__ import annotations

import re
from collections.abc import Sequence

JOINTS = (", then ", " and then ", " then ", ", before ", " before ", ", after ", " after you ")
"""What stands between two clauses whose order a caption tells. Of two that fit, the first of this list counts.

Not " after " alone: one looks after a child.
"""


def swapped(caption: str, joints: Sequence[str] = JOINTS) -> str | None:
    """Return a caption with its two clauses in each other's place; None if it has no joint, or more than one.

    Its end mark stays at the end, and its capital at the beginning.
    """
    sentence = caption.rstrip()
    body = sentence.rstrip(".!?")
    found = [joint for joint in joints if joint in body]
    if not found or body.count(found[0]) > 1:
        return None
    first, second = body.split(found[0])
    rest = [joint for joint in joints if joint in first or joint in second]
    if rest or not first.strip() or not second.strip():
        return None
    if first[:1].isupper():
        first, second = _without_capital(first), second[:1].upper() + second[1:]
    return f"{second}{found[0]}{first}{sentence[len(body) :]}"


def _without_capital(clause: str) -> str:
    """Return a clause as it stands inside a sentence; "I" and words in capitals stay."""
    word = re.split(r"\W", clause, maxsplit=1)[0]
    if word == "I" or (len(word) > 1 and word.isupper()):
        return clause
    return clause[:1].lower() + clause[1:]
