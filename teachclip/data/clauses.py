"""Captions that say the order of two clauses, and the same captions with the clauses in each other's place."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from teachclip.data.annotations.records import Split
from teachclip.data.annotations.uncaptioned import plain_text

CONNECTIVES = (", then ", " and then ", " then ", ", before ", " before ", ", after ", " after you ")
"""What stands between two clauses whose order a caption tells. Of two at one place the longer one counts.

Not " after " alone: one looks after a child.
"""
POOL = 20_000
"""Pairs of captions that joined clips are drawn from."""


def swapped(caption: str, connectives: Sequence[str] = CONNECTIVES) -> str | None:
    """Return a caption with its two clauses in each other's place.

    None if it has no connective or more than one, or if its clauses are the same. A comma, "and" and "but" before a
    connective stay there. Its end mark stays at the end, and its capital at the beginning.
    """
    sentence = caption.rstrip()
    body = sentence.rstrip(".!?")
    longest_first = sorted(connectives, key=len, reverse=True)
    places = list(re.finditer(rf"(,?( and| but)?)({'|'.join(map(re.escape, longest_first))})", body))
    if not connectives or len(places) != 1:
        return None
    first, between, second = body[: places[0].start()], places[0][0], body[places[0].end() :]
    if first.strip(" ,").lower() in ("", "and", "but") or not second.strip() or _plain(first) == _plain(second):
        return None
    if first[:1].isupper():
        first, second = _without_capital(first), second[:1].upper() + second[1:]
    return f"{second}{between}{first}{sentence[len(body) :]}"


def caption_pairs(split: Split, seed: int) -> np.ndarray:
    """Return caption rows of clips to join, (pairs, 2): of different videos and with different texts.

    With one text twice "A then B" and "B then A" would be the same.
    """
    rng, count = np.random.default_rng(seed), len(split.captions)
    pairs = np.unique(rng.integers(count, size=(min(POOL, 4 * count), 2)), axis=0)
    pairs = pairs[split.caption_videos[pairs[:, 0]] != split.caption_videos[pairs[:, 1]]]
    texts = [tuple(_plain(split.captions[row].text) for row in pair) for pair in pairs.tolist()]
    return pairs[np.array([one != other for one, other in texts], dtype=bool)]


def _plain(text: str) -> str:
    """Return a text without what makes no difference: capitals, spaces too many and end marks."""
    return plain_text(text).rstrip(" .!?")


def _without_capital(clause: str) -> str:
    """Return a clause as it stands inside a sentence; "I" and words in capitals stay."""
    word = re.split(r"\W", clause, maxsplit=1)[0]
    if word == "I" or (len(word) > 1 and word.isupper()):
        return clause
    return clause[:1].lower() + clause[1:]
